"""AdamW."""

from collections.abc import Iterable
from typing import Any

import torch

from haste.optim._rule import RuleOptimizer


class AdamW(RuleOptimizer):
    """Adam with decoupled weight decay, as torch.optim.AdamW.

        w *= 1 - lr * weight_decay;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
        w -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Rows that a row-sparse gradient does not name keep their value and moments (torch.optim.SparseAdam's rule).

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: default (0.9, 0.999), and (0.9, 0.99) for bfloat16 moments.
        eps: added to the root of the second moment; above 0.
        weight_decay: never applied to the bias of a `haste.nn` layer.
        state_dtype: of the moments, float32 (default) or bfloat16, written with stochastic rounding.
        seed: of the rounding bits.
    """

    rule = "adamw"
    state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        state_dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        if betas is None:
            betas = (0.9, 0.99 if state_dtype == torch.bfloat16 else 0.999)
        for beta in betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas {tuple(betas)} must be in [0, 1)")
        if eps <= 0:
            raise ValueError(f"eps ({eps}) must be above 0; a weight without gradients would become NaN")
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, state_dtype=state_dtype, seed=seed)

    def _hyper(self, group: dict[str, Any], decayed: bool) -> list[float]:
        return [*group["betas"], group["eps"], group["weight_decay"] if decayed else 0.0]
