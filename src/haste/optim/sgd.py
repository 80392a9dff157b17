"""Stochastic gradient descent."""

from collections.abc import Iterable
from typing import Any

import torch

from haste.optim._rule import RuleOptimizer


class SGD(RuleOptimizer):
    """Stochastic gradient descent, as torch.optim.SGD.

        m = momentum * m + (g + weight_decay * w);  w -= lr * m

    Args:
        params: parameters or groups of them.
        lr: learning rate; of a summed loss it is per example.
        momentum: 0 keeps no momentum buffer.
        weight_decay: never applied to the bias of a `haste.nn` layer.
        state_dtype: of the momentum buffer, float32 (default) or bfloat16, written with stochastic rounding.
        seed: of the rounding bits.
    """

    rule = "sgd"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        state_dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum ({momentum}) must be in [0, 1)")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults, state_dtype=state_dtype, seed=seed)

    def _hyper(self, group: dict[str, Any], decayed: bool) -> list[float]:
        return [group["momentum"], group["weight_decay"] if decayed else 0.0]

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()
