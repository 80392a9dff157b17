"""The layer itself: logits of fan-in-sparse labels, and their gradients.

logits[b, k S + s] = sum_f features[b, indices[k, f]] weight[k, s, f] + bias[k, s]
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from haste.ops._chunks import accumulate_dtype, chunks
from haste.ops._library import define


def transpose_features(features: Tensor) -> Tensor:
    """Return features (B, H) as (H, B), contiguous, in the dtype of all arithmetic."""
    return features.t().to(accumulate_dtype(features)).contiguous()


def untranspose(grad_features: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a gradient (H, B) as (B, H), contiguous, in the dtype of the features."""
    return grad_features.t().to(dtype).contiguous()


def _fan_in(features: Tensor, weight: Tensor, bias: Tensor, indices: Tensor | None, num_labels: int) -> Tensor:
    features_t = transpose_features(features)
    logits = features_t.new_empty((num_labels, features.shape[0]))
    for chunk in chunks(features_t, weight, bias, indices):
        rows = logits[chunk.first_row : chunk.stop * chunk.group_size]
        rows.copy_(chunk.logits().view(-1, features.shape[0])[: len(rows)])
    return logits.t().contiguous()


def _fan_in_fake(features: Tensor, weight: Tensor, bias: Tensor, indices: Tensor | None, num_labels: int) -> Tensor:
    return features.new_empty((features.shape[0], num_labels), dtype=accumulate_dtype(features))


def _fan_in_backward(
    grad: Tensor, features: Tensor, weight: Tensor, bias: Tensor, indices: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    features_t = transpose_features(features)
    grad_features = torch.zeros_like(features_t)
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(bias)
    for chunk in chunks(features_t, weight, bias, indices):
        rows = (chunk.stop - chunk.start) * chunk.group_size
        g = features_t.new_zeros((rows, features.shape[0]))
        part = grad[:, chunk.first_row : chunk.first_row + rows]
        g[: part.shape[1]] = part.t()
        g = g.view(-1, chunk.group_size, features.shape[0])
        chunk.add_grad_features(g, grad_features)
        grad_weight[chunk.start : chunk.stop] = chunk.grad_weight(g)
        grad_bias[chunk.start : chunk.stop] = g.sum(-1)
    return untranspose(grad_features, features.dtype), grad_weight, grad_bias


def _fan_in_backward_fake(
    grad: Tensor, features: Tensor, weight: Tensor, bias: Tensor, indices: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(features, memory_format=torch.contiguous_format),
        torch.empty_like(weight),
        torch.empty_like(bias),
    )


fan_in_op = define(
    "fan_in(Tensor features, Tensor weight, Tensor bias, Tensor? indices, int num_labels) -> Tensor",
    _fan_in_fake,
    _fan_in,
)
fan_in_backward_op = define(
    "fan_in_backward(Tensor grad, Tensor features, Tensor weight, Tensor bias, Tensor? indices) "
    "-> (Tensor, Tensor, Tensor)",
    _fan_in_backward_fake,
    _fan_in_backward,
)


class _FanIn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, indices: Tensor | None, num_labels: int
    ) -> Tensor:
        ctx.save_for_backward(features, weight, bias, indices)
        return fan_in_op(features, weight, bias, indices, num_labels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *fan_in_backward_op(grads[0], *ctx.saved_tensors), None, None


def fan_in(features: Tensor, weight: Tensor, bias: Tensor, indices: Tensor | None, num_labels: int) -> Tensor:
    """Return logits; differentiable. For small layers: the result has a column for every label.

    Args:
        features: (B, H), floating.
        weight: (G, S, F), float32, float64 or bfloat16; rows beyond num_labels are padding.
        bias: (G, S), float32 or float64.
        indices: (G, F) integers in [0, H), or None where F = H.
        num_labels: labels, in ((G - 1) S, G S].

    Returns:
        logits (B, num_labels), float32 (float64 for float64 features), accumulated in that dtype.

    Raises:
        ValueError: shapes disagree.
    """
    check_operands(features, weight, bias, indices, num_labels)
    return _FanIn.apply(features, weight, bias, indices, num_labels)


def check_operands(features: Tensor, weight: Tensor, bias: Tensor, indices: Tensor | None, num_labels: int) -> None:
    """Raise ValueError or TypeError where the operands of the layer do not fit each other."""
    if not features.is_floating_point():
        raise TypeError(f"features ({features.dtype}) must be floating; convert them with .float()")
    groups, group_size, fan_in = weight.shape
    in_features = fan_in if indices is None else None
    if features.dim() != 2 or (in_features is not None and features.shape[1] != in_features):
        expected = f"(batch, {in_features})" if in_features is not None else "(batch, in_features)"
        raise ValueError(f"features {tuple(features.shape)} must have shape {expected}")
    if not len(features):
        raise ValueError(f"features {tuple(features.shape)} must hold at least one row; skip empty batches")
    if bias.shape != (groups, group_size):
        raise ValueError(f"bias {tuple(bias.shape)} must have shape {(groups, group_size)}, weight's first two")
    if indices is not None and indices.shape != (groups, fan_in):
        raise ValueError(
            f"indices {tuple(indices.shape)} must have shape {(groups, fan_in)}, weight's groups and fan_in"
        )
    if not (groups - 1) * group_size < num_labels <= groups * group_size:
        raise ValueError(f"num_labels ({num_labels}) must fill {groups} groups of {group_size}")
