"""AdamW for bfloat16 parameters that keeps what rounding takes from them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from haste.ops import _random as random
from haste.ops._update import apply_rule
from haste.optim._rule import _distinct_rows
from haste.optim.adamw import AdamW

_TILE = 1 << 17  # elements that are widened at a time


class KahanAdamW(AdamW):
    """AdamW on parameters stored as the sum of two bfloat16 numbers, the parameter and a compensation in the state.

        value = w + c;  AdamW's step on value, in float32;  w = bfloat16(value);  c = bfloat16(value - w)

    Steps far below a unit in the last place of w are not lost, as they are in plain bfloat16. float32 parameters have
    no compensation and train as by `AdamW`. Gradients may be row-sparse. For encoders: the fused pass of a `haste.nn`
    layer does not take it, and writes bfloat16 weights with stochastic rounding instead.

    Args:
        params, lr, betas, eps, weight_decay, state_dtype, seed: as `AdamW`; bfloat16 moments are written with
            stochastic rounding and have betas (0.9, 0.99) by default.

    ELMO, arXiv 2510.11168, for bfloat16 encoders; its released code decays weights through the gradient.
    """

    rule = "kahan_adamw"

    def arguments(self, param: Tensor) -> Any:
        """Refuse: there is no fused pass with a compensation."""
        raise TypeError(
            "update (KahanAdamW) must be haste.optim.SGD or haste.optim.AdamW for the fused pass of a layer"
        )

    def set_rates(self, param: Tensor, rates: Tensor) -> None:
        """Refuse: an encoder's rows have no rates."""
        raise TypeError("rates must be given to haste.optim.SGD or haste.optim.AdamW; KahanAdamW takes none")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        number = 0
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, group, number)
                number += 1
        return loss

    def _update(self, param: Tensor, group: dict[str, Any], number: int) -> None:
        """Take a step of one parameter; its number keeps its rounding bits apart from other parameters'."""
        assert param.grad is not None
        grad, rows = param.grad, None
        if grad.is_sparse:
            grad, rows = _distinct_rows(grad)
        state = self._ready(param)
        count, decayed = int(state["step"]) + 1, getattr(getattr(param, "haste_role", None), "decayed", True)
        columns = param.shape[-1] if param.dim() else 1
        names = [name for name in ("exp_avg", "exp_avg_sq", "compensation") if name in state]
        flat = [t.view(-1, columns) for t in (param, *(state[name] for name in names))]
        rows = torch.arange(len(flat[0]), device=param.device) if rows is None else rows
        grad, length = grad.reshape(-1, columns), max(1, _TILE // columns)
        for start in range(0, len(grad), length):
            here = rows[start : start + length]
            weight, first, second, *compensation = (t[here].float() for t in flat)
            if compensation:
                weight += compensation[0]
            g = grad[start : start + length].float().clone()
            apply_rule("adamw", self._hyper(group, decayed), weight, g, [first, second], float(group["lr"]), count)
            rounded = weight.to(param.dtype)
            flat[0][here] = rounded
            for stream, (target, values) in enumerate(((flat[1], first), (flat[2], second)), 1):
                target[here] = self._rounded(values, target.dtype, here, stream, count, number)
            if compensation:
                flat[3][here] = (weight - rounded.float()).to(torch.bfloat16)
        self.advance(param)

    def _ready(self, param: Tensor) -> dict[str, Any]:
        """Return the state of a parameter, made on first use."""
        state = self.state[param]
        if "step" in state:
            state["step"] = state["step"].cpu()  # a state that was loaded may have it beside the parameter
        else:
            state["step"] = torch.zeros((), dtype=torch.int64)  # read in every step: the host must not wait for a GPU
            for name in self.state_names:
                state[name] = torch.zeros(param.shape, dtype=self.state_dtype or torch.float32, device=param.device)
            if param.dtype == torch.bfloat16:
                state["compensation"] = torch.zeros(param.shape, dtype=torch.bfloat16, device=param.device)
        return state

    def _rounded(self, values: Tensor, dtype: torch.dtype, rows: Tensor, stream: int, step: int, number: int) -> Tensor:
        """Return float32 values of some rows in a dtype, with stochastic rounding to bfloat16."""
        if dtype != torch.bfloat16:
            return values
        per_row = -(-values.shape[1] // 8)
        blocks = rows[:, None] * per_row + torch.arange(per_row, device=rows.device)
        words = random.philox(blocks, seed=self.seed, step=step, layer=number, stream=stream)
        halves = words.to(torch.int32).view(torch.int16).view(len(rows), -1)[:, : values.shape[1]]
        return random.round_stochastically(values, halves.to(torch.int32).bitwise_and_(0xFFFF))
