"""Logits and their gradients on a GPU: the operators ``fan_in`` and ``fan_in_backward``."""

import torch
from torch import Tensor

from haste.ops.triton._batch import prepare
from haste.ops.triton._layer import gradients, make_layer
from haste.ops.triton._pass import FeatureGradient, Slopes, add_gradients, chunk_tiles, plan_for, write_logits


def fan_in(features: Tensor, weight: Tensor, bias: Tensor, indices: Tensor | None, num_labels: int) -> Tensor:
    return write_logits(features, make_layer(weight, bias, indices, num_labels))


def fan_in_backward(
    grad: Tensor, features: Tensor, weight: Tensor, bias: Tensor, indices: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    layer = make_layer(weight, bias, indices, grad.shape[1])
    plan, dtype = plan_for(features, layer)
    batch = prepare(features, dtype, plan.block_b)
    batch.bad.zero_()
    gradient = FeatureGradient(batch, layer, plan)
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(bias)
    sink = gradients(grad_weight, grad_bias)
    per_chunk = min(layer.tiles, chunk_tiles(batch, layer, plan))
    for first in range(0, layer.tiles, per_chunk):
        count = min(per_chunk, layer.tiles - first)
        part = grad[:, first * layer.rows : (first + count) * layer.rows].float()
        padded = part.new_zeros((batch.leading, count * layer.rows))
        padded[: batch.size, : part.shape[1]] = part
        tiles = padded.view(batch.leading, count, layer.rows).transpose(0, 1)
        sums = tiles.reshape(count, batch.blocks, batch.block, layer.rows).sum(2)
        slopes = Slopes(first=first, count=count, values=tiles.to(dtype).contiguous(), grad_bias=sums)
        add_gradients(slopes, batch, layer, plan, sink, gradient)
    return gradient.result(features.dtype), grad_weight, grad_bias
