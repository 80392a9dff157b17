"""Several optimizers as one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class ChainedOptimizer(torch.optim.Optimizer):
    """Optimizers of different parameters that step, are scheduled and are saved as one.

    For programs that take a single optimizer (Hugging Face's Trainer, Lightning's automatic optimization), where
    encoder and output layer have rules of their own. What was given stays in use: `haste.nn.FanInLinear.step` takes
    the optimizer of the layer, while its learning rate and its state are those of the chain.

    Args:
        optimizers: no parameter in two of them.

    Raises:
        ValueError: no optimizer, or a parameter in two.
    """

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        if not optimizers:
            raise ValueError("optimizers (none) must be at least one")
        seen: set[Tensor] = set()
        for optimizer in optimizers:
            held = {param for group in optimizer.param_groups for param in group["params"]}
            if seen & held:
                raise ValueError(f"optimizers must not share parameters; {len(seen & held)} are in two of them")
            seen |= held
        self.optimizers = optimizers
        super().__init__(self.param_groups, {})

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of all optimizers, in their order; to change a group is to change theirs."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        """Take no groups: torch's constructor sets an empty list."""

    @property
    def state(self) -> Any:
        """State of every parameter, of all optimizers."""
        return {param: state for optimizer in self.optimizers for param, state in optimizer.state.items()}

    @state.setter
    def state(self, state: Any) -> None:
        """Take no state: torch's constructor sets an empty one."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse a group that is in none of the optimizers."""
        if not any(group is param_group for group in self.param_groups):
            raise ValueError("param_group must be added to one of the optimizers, which says how it is trained")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step every optimizer; the closure runs once, before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state dicts of all, under ``optimizers``."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            ValueError: of another number of optimizers.
        """
        saved = state_dict.get("optimizers", [])
        if len(saved) != len(self.optimizers):
            raise ValueError(
                f"state_dict ({len(saved)} optimizers) must hold {len(self.optimizers)}; chain those it was saved of"
            )
        for optimizer, state in zip(self.optimizers, saved, strict=True):
            optimizer.load_state_dict(state)

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizers": self.optimizers, "defaults": self.defaults}
