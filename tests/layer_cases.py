"""Small layers and batches whose sizes divide nothing, and the error budget of a float32 result."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from haste import nn, ops, topology
from haste.ops import reference

# (batch, in_features, num_labels, fan_in, group_size): gathered, CSR, dense, and the corners.
SIZES = {
    "gathered": (13, 37, 101, 11, 8),
    "csr": (13, 37, 101, 11, 1),
    "dense": (13, 37, 101, 37, 8),
    "groups-of-16": (7, 40, 130, 9, 16),
    "groups-of-64": (5, 40, 130, 39, 64),
    "whole-groups": (6, 20, 32, 5, 16),
    "one-point": (1, 37, 101, 11, 8),
    "one-label": (9, 12, 1, 5, 8),
    "one-label-csr": (9, 12, 1, 5, 1),
    "one-label-dense": (9, 12, 1, 12, 1),
    "one-input": (4, 9, 21, 1, 4),
}
LAYOUTS = ("gathered", "csr", "dense")
LOSSES = ("bce", "squared_hinge")


@dataclass(frozen=True, kw_only=True)
class Operands:
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

    def to(self, dtype: torch.dtype) -> "Operands":
        """Return the same numbers with features, weight and bias in another dtype."""
        return replace(self, features=self.features.to(dtype), weight=self.weight.to(dtype), bias=self.bias.to(dtype))


def operands(
    name: str = "gathered", *, seed: int = 0, weight_dtype: torch.dtype = torch.float32, with_positives: bool = True
) -> Operands:
    """Return random operands of a size; the first of several points has no positives. Padded rows are zero."""
    batch, in_features, num_labels, fan_in, group_size = SIZES[name]
    generator = torch.Generator().manual_seed(seed)
    groups = -(-num_labels // group_size)
    weight = torch.randn(groups, group_size, fan_in, generator=generator) / fan_in**0.5
    bias = torch.randn(groups, group_size, generator=generator)
    for tensor in (weight.view(-1, fan_in), bias.view(-1)):
        tensor[num_labels:] = 0
    indices = None
    if fan_in < in_features:
        indices = topology.draw_indices(in_features, groups, fan_in, seed=seed)
    offsets, labels = random_positives(batch, num_labels, generator)
    if not with_positives:
        offsets, labels = torch.zeros_like(offsets), labels[:0]
    return Operands(
        features=2 * torch.randn(batch, in_features, generator=generator),
        weight=weight.to(weight_dtype),
        bias=bias,
        indices=indices,
        offsets=offsets,
        labels=labels,
        num_labels=num_labels,
    )


def random_positives(batch: int, num_labels: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return CSR positives, about three a point, none for the first of several points."""
    truth = torch.rand(batch, num_labels, generator=generator) < min(0.5, 3 / num_labels)
    if batch > 1:
        truth[0] = False
    return torch.nn.functional.pad(truth.sum(1).cumsum(0), (1, 0)), truth.nonzero()[:, 1]


def assert_within_budget(found: Tensor, truth: Tensor, torch_result: Tensor) -> None:
    """Assert that the error is at most twice that of plain PyTorch plus a unit in the last place.

    The unit is that of the largest value, plus a float32 one of 8 because the summands, of about that size, may cancel.

    Args:
        found: the result under test.
        truth: the same in float64.
        torch_result: the same by plain PyTorch, in float32.
    """
    assert found.shape == truth.shape
    theirs = torch_result.to(found.dtype).double()
    ulp = torch.finfo(found.dtype).eps * truth.abs().max() + 8 * torch.finfo(torch.float32).eps
    error = (found.double() - truth).abs().max()
    budget = 2 * (theirs - truth).abs().max() + ulp
    assert error <= budget, f"error {error:.3g} beyond the budget {budget:.3g}"


def reference_loss(x: Operands, loss: str, scale: float = 1.0) -> tuple[Tensor, ...]:
    """Return (loss, grad_features, grad_weight, grad_bias) of the reference, in the precision of the features."""
    rest = (*x.layer, *x.positives, x.num_labels, loss)
    return reference.loss(*rest), *reference.loss_backward(torch.tensor(scale), *rest)


def torch_logits(features: Tensor, weight: Tensor, bias: Tensor, x: Operands) -> Tensor:
    """Return logits by one dense product, differentiable: what a user would write without this library."""
    rows = weight.flatten(0, 1)
    if x.indices is not None:
        columns = x.indices.long().repeat_interleave(weight.shape[1], dim=0)
        rows = rows.new_zeros(len(rows), features.shape[1]).scatter(1, columns, rows)
    return torch.nn.functional.linear(features, rows, bias.flatten())[:, : x.num_labels]


def torch_loss(x: Operands, loss: str, scale: float = 1.0) -> tuple[Tensor, ...]:
    """Return (loss, grad_features, grad_weight, grad_bias) by PyTorch's autograd."""
    inputs = leaf(x.features), leaf(x.weight), leaf(x.bias)
    value = dense_loss(torch_logits(*inputs, x), x.positives, loss)
    return value.detach(), *torch.autograd.grad(value * scale, inputs)


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def linear(name: str = "gathered", **settings: Any) -> nn.FanInLinear:
    """Return a layer of a size, its bias random."""
    _, in_features, num_labels, fan_in, group_size = SIZES[name]
    layer = nn.FanInLinear(in_features, num_labels, fan_in, group_size, **settings)
    generator = torch.Generator().manual_seed(7)
    layer.bias.data.view(-1)[:num_labels] = torch.randn(num_labels, generator=generator)
    return layer


def batch_of(name: str = "gathered", seed: int = 1) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return (features, positives) for a size."""
    x = operands(name, seed=seed)
    return x.features, x.positives


def padding(layer: nn.FanInLinear) -> Tensor:
    """Return everything in the padded rows of a layer, flat."""
    rows = layer.weight.data.view(-1, layer.fan_in)[layer.num_labels :]
    return torch.cat((rows.reshape(-1).float(), layer.bias.data.view(-1)[layer.num_labels :].float()))


def dense_weight(layer: nn.FanInLinear) -> Tensor:
    """Return the weights as a matrix (num_labels, in_features), zero where there is no link."""
    full = layer.weight.new_zeros(layer.num_groups * layer.group_size, layer.in_features)
    rows = layer.weight.data.view(-1, layer.fan_in)
    if layer.indices is None:
        return rows[: layer.num_labels]
    columns = layer.indices.long().repeat_interleave(layer.group_size, dim=0)
    return full.scatter_(1, columns, rows)[: layer.num_labels]


def dense_loss(logits: Tensor, positives: tuple[Tensor, Tensor], loss: str = "bce") -> Tensor:
    """Return the loss as plain PyTorch writes it, summed over all labels."""
    y = reference.indicator(*positives, logits.shape[1], logits.dtype)
    if loss == "bce":
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="sum")
    return (1 - (2 * y - 1) * logits).clamp(min=0).square().sum()


def topk_pairs(keys: Tensor) -> list[list[tuple[float, int]]]:
    """Return (score, label) of every key."""
    scores, labels = ops.unpack_keys(keys)
    return [list(zip(s, c, strict=True)) for s, c in zip(scores.tolist(), labels.tolist(), strict=True)]
