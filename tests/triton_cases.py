"""Layers of sizes that the GPU kernels take, and the two places to run them: interpreted on a CPU, or on a GPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from haste import topology
from haste.ops import reference

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="the kernels are compiled, not interpreted")),
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")]),
]

# (batch, in_features, num_labels, fan_in, group_size)
SIZES = {
    "groups-of-16": (5, 40, 45, 16, 16),
    "groups-of-32": (13, 70, 75, 48, 32),
    "groups-of-64": (3, 90, 70, 80, 64),
    "groups-of-128": (18, 40, 130, 32, 128),
    "one-label": (4, 40, 1, 16, 16),
    "one-point": (1, 40, 33, 32, 16),
    "rows": (6, 21, 37, 5, 1),
    "dense": (7, 37, 75, 37, 8),
}
LAYOUTS = ("groups-of-16", "rows", "dense")
MORE = {"two-blocks": (70, 40, 20, 16, 16), "many-groups": (6, 40, 150, 16, 16)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What an operator of the layer takes."""

    features: Tensor
    weight: Tensor
    bias: Tensor
    indices: Tensor | None
    offsets: Tensor
    labels: Tensor
    num_labels: int

    @property
    def layer(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        return self.features, self.weight, self.bias, self.indices

    @property
    def positives(self) -> tuple[Tensor, Tensor]:
        return self.offsets, self.labels

    def cast(self, features: torch.dtype, weight: torch.dtype | None = None) -> "Case":
        """Return the same numbers, rounded, with other dtypes of features and weight."""
        return replace(self, features=self.features.to(features), weight=self.weight.to(weight or features))

    def wide(self) -> "Case":
        """Return the same numbers in float64."""
        doubles = {name: getattr(self, name).double() for name in ("features", "weight", "bias")}
        return replace(self, **doubles)

    def to(self, device: str) -> "Case":
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


def case(name: str = "groups-of-32", *, seed: int = 0, scale: float = 1.0) -> Case:
    """Return random operands of a size; the first of several points has no positives. Padded rows are zero."""
    batch, in_features, num_labels, fan_in, group_size = {**SIZES, **MORE}[name]
    generator = torch.Generator().manual_seed(seed)
    groups = -(-num_labels // group_size)
    weight = torch.randn(groups, group_size, fan_in, generator=generator) / fan_in**0.5
    bias = torch.randn(groups, group_size, generator=generator)
    weight.view(-1, fan_in)[num_labels:] = 0
    bias.view(-1)[num_labels:] = 0
    indices = topology.draw_indices(in_features, groups, fan_in, seed=seed) if fan_in < in_features else None
    truth = torch.rand(batch, num_labels, generator=generator) < min(0.5, 3 / num_labels)
    if batch > 1:
        truth[0] = False
    return Case(
        features=scale * torch.randn(batch, in_features, generator=generator),
        weight=weight,
        bias=bias,
        indices=indices,
        offsets=torch.nn.functional.pad(truth.sum(1).cumsum(0), (1, 0)),
        labels=truth.nonzero()[:, 1],
        num_labels=num_labels,
    )


def dyadic(name: str = "groups-of-32", seed: int = 0) -> Case:
    """Return operands whose products and sums float32 holds exactly: small multiples of powers of two."""
    x = case(name, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def small(tensor: Tensor, unit: float) -> Tensor:
        drawn = torch.randint(-4, 5, tensor.shape, generator=generator) * unit
        return torch.where(tensor == 0, 0.0, drawn)

    return replace(x, features=small(x.features, 0.25), weight=small(x.weight, 0.125), bias=small(x.bias, 0.5))


RULES: dict[str, tuple[str, int, list[float], list[float]]] = {  # rule, state tensors, hyper, bias_hyper
    "sgd": ("sgd", 0, [0.0, 0.01], [0.0, 0.0]),
    "momentum": ("sgd", 1, [0.6, 0.01], [0.6, 0.0]),
    "adamw": ("adamw", 2, [0.8, 0.95, 1e-3, 0.01], [0.9, 0.97, 1e-2, 0.0]),
}


def take_step(
    implementation: Any,
    x: Case,
    rule: str,
    loss: str = "bce",
    *,
    scale: float = 0.5,
    state: torch.dtype = torch.float32,
    lr: float = 0.02,
    bias_lr: float = 0.03,
    decay: bool = True,
    first_row: int = 0,
    rated: bool = False,
) -> list[Tensor]:
    """Take a step on copies; return loss, grad_features, weight, bias, then the states of both, on the CPU.

    rated: with rates of the rows, powers of two.
    """
    name, count, hyper, bias_hyper = RULES[rule]
    if not decay:
        hyper = [*hyper[:-1], 0.0]
    weight, bias = x.weight.clone(), x.bias.clone()
    device, states = x.features.device, []
    wide = torch.float64 if x.features.dtype == torch.float64 else state
    for tensor in (weight, bias):
        generator = torch.Generator().manual_seed(5)
        drawn = [torch.randint(1, 5, tensor.shape, generator=generator) * 0.25 for _ in range(count)]
        states.append([torch.where(tensor.cpu() == 0, 0.0, d).to(device, wide) for d in drawn])
    numbers = [torch.tensor(value, dtype=torch.float64, device=device) for value in (lr, bias_lr)]
    step = torch.tensor(4, device=device)
    rates = 2.0 ** (torch.arange(bias.numel(), device=device) % 5 - 1) if rated else None
    value, grad = implementation(
        x.features, weight, bias, *states, x.indices, *x.positives, *numbers, step, x.num_labels, loss, scale, name,
        hyper, bias_hyper, 9, 2, first_row, rates,
    )  # fmt: skip
    return [t.cpu() for t in (value, grad, weight, bias, *states[0], *states[1])]


def assert_close(found: Tensor, truth: Tensor, dtype: torch.dtype, *, terms: int) -> None:
    """Assert that the error is within what sums of ``terms`` products in ``dtype``, accumulated in float32, allow.

    Twice the root of the number of terms in units in the last place of the operands, of the largest result or of 1.
    """
    assert found.shape == truth.shape
    unit = max(torch.finfo(dtype).eps, torch.finfo(found.dtype).eps) * truth.abs().max().clamp(min=1)
    error = (found.double() - truth).abs().max()
    budget = 2 * terms**0.5 * unit
    assert error <= budget, f"error {error:.3g} beyond the budget {budget:.3g}"


@contextmanager
def deterministic() -> Iterator[None]:
    """Ask PyTorch, and with it the kernels, for bitwise the same results each time."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def truth_of_loss(x: Case, loss: str, scale: float) -> tuple[Tensor, ...]:
    """Return (loss, grad_features, grad_weight, grad_bias) of the reference in float64, on the CPU."""
    wide = x.to("cpu").wide()
    rest = (*wide.layer, *wide.positives, wide.num_labels, loss)
    return reference.loss(*rest), *reference.loss_backward(torch.tensor(scale), *rest)
