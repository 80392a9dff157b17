"""Claim cpu-step: on a CPU, the fused step of a group-shared layer costs little more than its bare products.

Beside it, in one interleaved run: the three dense products of as many FLOP, with nothing around them; the fused step
of the dense layer; the fused step of plain fixed fan-in (group_size 1), done by CSR products.
"""

import copy
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from haste import optim
from haste.bench import machine
from haste.bench._case import POSITIVES, Positives, make_batch
from haste.bench._harness import Timing, check, interleave
from haste.nn import FanInLinear
from haste.ops import reference

CLAIMS = {"over_bare_gemms": "<= 1.3", "dense_over_step": ">= 3", "group1_over_step": ">= 3"}
_NAMES = {  # in the order of the table
    "step": "fused step",
    "bare_gemms": "three bare GEMMs",
    "dense_step": "dense step",
    "group1_step": "group_size 1 step",
}
_LAYERS = ("step", "dense_step", "group1_step")
_RATIOS = {
    "over_bare_gemms": ("step", "bare_gemms"),
    "dense_over_step": ("dense_step", "step"),
    "group1_over_step": ("group1_step", "step"),
}
_TOLERANCE = 1e-5  # float32 sums in another order
_LR = 0.01
_BUSY = 0.5  # load average above which another process takes time from ours


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of one measurement."""

    batch: int = 128
    in_features: int = 768
    num_labels: int = 131_072
    fan_in: int = 128
    group_size: int = 64

    def __post_init__(self) -> None:
        if self.num_labels < POSITIVES:
            raise ValueError(f"num_labels ({self.num_labels}) must be at least {POSITIVES}, the positives of a row")

    def __str__(self) -> str:
        return f"B={self.batch} H={self.in_features} L={self.num_labels} F={self.fan_in} S={self.group_size} float32"


_SMALL = Shape(batch=16, in_features=48, num_labels=203, fan_in=12, group_size=8)


def run(*, num_labels: int | None = None, threads: int = 2, repeats: int = 10) -> dict[str, Any]:
    """Check, then time; return the record that `python -m haste.bench --json` prints.

    Args:
        num_labels: L; default the claim's.
        threads: of PyTorch.
        repeats: rounds timed, after two that are not.

    Raises:
        ValueError: a size out of range.
        CheckError: the fused step differs from the reference or from the unfused step.
    """
    for name, value in (("threads", threads), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1")
    shape = Shape() if num_labels is None else Shape(num_labels=num_labels)
    before, load = torch.get_num_threads(), os.getloadavg()[0]
    torch.set_num_threads(threads)
    try:
        errors = {"reference": _check_reference(), "unfused": _check_unfused(shape)}
        steps = {name: _step(name, shape) for name in _LAYERS}
        timings = interleave({**steps, "bare_gemms": _bare_gemms(shape)}, repeats)
        return {
            "claim": "cpu-step",
            "shape": {**asdict(shape), "dtype": "float32"},
            "largest_error": errors,
            "repeats": repeats,
            "load_before": load,
            "ms": {name: timing.median for name, timing in timings.items()},
            "spread": {name: [timing.low, timing.high] for name, timing in timings.items()},
            **_ratios(timings),
            **machine.describe(torch.device("cpu")),
        }
    finally:
        torch.set_num_threads(before)


def table(record: dict[str, Any]) -> str:
    """Lay a record of `run` out for people."""
    shape = Shape(**{name: size for name, size in record["shape"].items() if name != "dtype"})
    device = record["device"]
    lines = [
        f"{record['claim']}: {shape}, {device['threads']} threads of {device['name']}",
        "checked, largest error against "
        + ", ".join(f"{what} {error:.0e}" for what, error in record["largest_error"].items()),
        "",
        f"{'':<20}{'median ms':>10}   quartiles",
    ]
    for name, label in _NAMES.items():
        low, high = record["spread"][name]
        lines.append(f"{label:<20}{record['ms'][name]:>10.2f}   {low:.2f} .. {high:.2f}")
    lines.append("")
    for name, (over, under) in _RATIOS.items():
        lines.append(f"{_NAMES[over]} / {_NAMES[under]}: {record[name]:.2f} (claim {CLAIMS[name]})")
    if record["load_before"] > _BUSY:
        lines.append(f"The machine was busy before the run (load {record['load_before']:.1f}): measure again.")
    versions = ", ".join(f"{name} {found}" for name, found in record["versions"].items())
    return "\n".join([*lines, "", f"{versions}, commit {record['commit'] or 'unknown'}"])


def _ratios(timings: dict[str, Timing]) -> dict[str, float]:
    return {name: timings[over].median / timings[under].median for name, (over, under) in _RATIOS.items()}


def _layer(name: str, shape: Shape) -> FanInLinear:
    fan_in = None if name == "dense_step" else shape.fan_in
    group_size = 1 if name == "group1_step" else shape.group_size
    return FanInLinear(shape.in_features, shape.num_labels, fan_in, group_size)


def _batch(shape: Shape) -> tuple[Tensor, Positives]:
    return make_batch(shape.batch, shape.in_features, shape.num_labels)


def _results(loss: Tensor, features: Tensor, layer: FanInLinear) -> dict[str, Tensor]:
    assert features.grad is not None
    return {"loss": loss, "grad_features": features.grad, "weight": layer.weight, "bias": layer.bias}


def _fused(layer: FanInLinear, shape: Shape) -> dict[str, Tensor]:
    features, positives = _batch(shape)
    loss = layer.step(features, positives, optim.SGD(layer.parameters(), lr=_LR))
    loss.backward()
    return _results(loss, features, layer)


def _check_reference() -> float:
    """Compare the step of all three layers at a small shape with the formulas, one group at a time."""
    errors = []
    for name in _LAYERS:
        layer = _layer(name, _SMALL)
        features, (offsets, labels) = _batch(_SMALL)
        weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
        lr, count, hyper = torch.tensor(_LR), torch.tensor(1), [0.0, 0.0]
        loss, grad = reference.step(
            features.detach(), weight, bias, [], [], layer.indices, offsets, labels, lr, lr, count,
            num_labels=_SMALL.num_labels, loss="bce", scale=1.0, rule="sgd", hyper=hyper, bias_hyper=hyper,
            seed=0, layer=0, first_row=0,
        )  # fmt: skip
        expected = {"loss": loss, "grad_features": grad, "weight": weight, "bias": bias}
        errors.append(check(f"{name} against the reference", _fused(layer, _SMALL), expected, _TOLERANCE))
    return max(errors)


def _check_unfused(shape: Shape) -> float:
    """Compare the fused step at the shape to be timed with loss().backward() and update.step()."""
    layer = _layer("step", shape)
    other, (features, positives) = copy.deepcopy(layer), _batch(shape)
    loss = other.loss(features, positives)
    loss.backward()
    optim.SGD(other.parameters(), lr=_LR).step()
    expected = _results(loss, features, other)
    return check("step against loss().backward()", _fused(layer, shape), expected, _TOLERANCE)


def _step(name: str, shape: Shape) -> Callable[[], None]:
    layer, (features, positives) = _layer(name, shape), _batch(shape)
    update = optim.SGD(layer.parameters(), lr=_LR)

    def train() -> None:
        features.grad = None
        layer.step(features, positives, update).backward()

    return train


def _bare_gemms(shape: Shape) -> Callable[[], None]:
    """The products of a dense layer (F -> L): as many FLOP as the group-shared one, outputs allocated beforehand."""
    x, w, g = (
        torch.randn(size)
        for size in ((shape.batch, shape.fan_in), (shape.num_labels, shape.fan_in), (shape.batch, shape.num_labels))
    )
    logits, grad_x, grad_w = torch.empty_like(g), torch.empty_like(x), torch.empty_like(w)

    def multiply() -> None:
        torch.mm(x, w.t(), out=logits)
        torch.mm(g, w, out=grad_x)
        torch.mm(g.t(), x, out=grad_w)

    return multiply
