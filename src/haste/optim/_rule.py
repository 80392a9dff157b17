"""A torch optimizer around one update rule, usable with `backward` or inside the fused pass."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from haste.ops._update import update


@dataclass(frozen=True, kw_only=True)
class Role:
    """What a parameter is to the update rule; parameters of `haste.nn` layers carry one as ``haste_role``.

    layer, first_row: coordinates of its rounding bits. decayed: whether weight decay and rates apply; not to a bias.
    """

    layer: int = 0
    first_row: int = 0
    decayed: bool = True


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """One parameter's share of a step: everything a rule needs but the gradient."""

    rule: str
    hyper: list[float]
    lr: Tensor
    step: Tensor
    state: list[Tensor]
    rates: Tensor | None
    seed: int
    role: Role


class RuleOptimizer(torch.optim.Optimizer):
    """Base of `SGD` and `AdamW`: an ordinary optimizer whose rule the fused pass can apply as well.

    Weights in bfloat16 are written with stochastic rounding. Gradients may be row-sparse (coalesced COO): then only
    their rows are read and written.
    """

    rule: str
    state_names: tuple[str, ...]

    def __init__(
        self, params: Iterable[Any], defaults: dict[str, Any], *, state_dtype: torch.dtype | None, seed: int
    ) -> None:
        if defaults["weight_decay"] < 0:
            raise ValueError(f"weight_decay ({defaults['weight_decay']}) must not be negative")
        if not isinstance(defaults["lr"], Tensor) and defaults["lr"] < 0:
            raise ValueError(f"lr ({defaults['lr']}) must not be negative")
        if state_dtype not in (None, torch.float32, torch.bfloat16):
            raise TypeError(f"state_dtype ({state_dtype}) must be torch.float32 or torch.bfloat16")
        self.state_dtype, self.seed = state_dtype, seed
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        # torch's copies and pickles keep only what it knows.
        return {**super().__getstate__(), "state_dtype": self.state_dtype, "seed": self.seed}

    def _hyper(self, group: dict[str, Any], decayed: bool) -> list[float]:
        raise AssertionError("SGD or AdamW")

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return self.state_names

    def group_of(self, param: Tensor) -> dict[str, Any]:
        """Return the parameter group that holds ``param``.

        Raises:
            ValueError: none does.
        """
        for group in self.param_groups:
            if any(p is param for p in group["params"]):
                return group
        raise ValueError(
            "update must hold the parameters of the layer that it updates; "
            "make it with haste.optim.SGD(layer.parameters(), ...)"
        )

    def set_rates(self, param: Tensor, rates: Tensor) -> None:
        """Give every row of ``param`` a learning rate of its own, lr * rates[row], here and in the fused pass.

        They are part of the state: saved and loaded with it, and where they are through a rewiring.

        Args:
            param: of two dimensions or more; its rows are those of (..., columns).
            rates: (...) or as many in a row, finite, not negative; kept as float32.

        Raises:
            ValueError: the optimizer does not hold the parameter, it is a bias of a `haste.nn` layer, which takes
                none (see `haste.ops._step`), or rates are not one for every row or out of range.
        """
        self.group_of(param)
        if param.dim() < 2 or not getattr(param, "haste_role", Role()).decayed:
            raise ValueError(f"rates must be for a weight, not for a parameter {tuple(param.shape)} that is a bias")
        rows = param.shape[:-1]
        if rates.shape not in (rows, (rows.numel(),)):
            raise ValueError(f"rates {tuple(rates.shape)} must be {tuple(rows)}, one for each of {rows.numel()} rows")
        if not (rates.isfinite() & (rates >= 0)).all():
            bad = rates[~(rates.isfinite() & (rates >= 0))][0].item()
            raise ValueError(f"rates ({bad}) must be finite and not negative; 1 is the learning rate itself")
        self.state[param]["rates"] = rates.detach().to(param.device, torch.float32, copy=True).reshape(rows)

    def arguments(self, param: Tensor) -> Arguments:
        """Return what the next step of ``param`` takes; its state is made on first use. Call `advance` afterwards.

        Raises:
            ValueError: the optimizer does not hold the parameter.
        """
        group = self.group_of(param)
        state, names = self.state[param], self._state_names(group)
        missing = [name for name in ("step", *names) if name not in state]
        if missing and param.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"state ({', '.join(missing)}) must exist before a CUDA graph is captured, or every replay starts "
                "anew; take one step first"
            )
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.int64, device=param.device)
        dtype = self.state_dtype or (torch.float64 if param.dtype == torch.float64 else torch.float32)
        for name in names:
            if name not in state:
                state[name] = torch.zeros_like(param, dtype=dtype, memory_format=torch.contiguous_format)
        role = getattr(param, "haste_role", Role())
        return Arguments(
            rule=self.rule,
            hyper=self._hyper(group, role.decayed),
            lr=_on_device(group["lr"], param.device),
            step=state["step"] + 1,
            state=[state[name] for name in names],
            rates=state.get("rates"),
            seed=self.seed,
            role=role,
        )

    def advance(self, param: Tensor) -> None:
        """Count a step of ``param`` as done."""
        self.state[param]["step"].add_(1)
        self._opt_called = True  # torch's schedulers warn without it, and the fused pass does not call `step`

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                grad, rows = param.grad, None
                if grad.is_sparse:
                    grad, rows = _distinct_rows(grad)
                a = self.arguments(param)
                update(
                    param,
                    grad,
                    a.state,
                    lr=a.lr,
                    step=a.step,
                    rule=a.rule,
                    hyper=a.hyper,
                    rows=rows,
                    rates=a.rates,
                    seed=a.seed,
                    layer=a.role.layer,
                    first_row=a.role.first_row,
                )
                self.advance(param)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict; moments keep the dtype they were saved with."""
        super().load_state_dict(state_dict)
        saved = state_dict["state"]
        numbers = [n for g in state_dict["param_groups"] for n in g["params"]]
        for number, param in zip(numbers, (p for g in self.param_groups for p in g["params"]), strict=True):
            for name, value in saved.get(number, {}).items():
                if isinstance(value, Tensor):
                    self.state[param][name] = value.detach().to(param.device, copy=True)


def _on_device(lr: float | Tensor, device: torch.device) -> Tensor:
    """Return a learning rate as a 0-dim float64 tensor there; a tensor on that device stays live in a CUDA graph."""
    if isinstance(lr, Tensor) and lr.device.type != "cpu":
        return lr.detach().to(device, torch.float64)
    return torch.full((), float(lr), dtype=torch.float64, device=device)


def _distinct_rows(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return (values (n, columns), rows (n,)) of a row-sparse gradient, every row once."""
    if grad.dim() != 2 or grad.sparse_dim() != 1:
        raise ValueError(
            f"a sparse gradient (of {grad.dim()} dimensions, {grad.sparse_dim()} sparse) must be row-sparse, of a "
            "matrix; make others dense with grad.to_dense()"
        )
    rows = grad._indices()[0]
    # Autograd forgets that a gradient is coalesced, and to coalesce it again would sort and copy it.
    if not (rows[1:] > rows[:-1]).all():
        grad = grad.coalesce()
    return grad._values(), grad._indices()[0]
