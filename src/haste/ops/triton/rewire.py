"""Link scores and regrowth by gradient on a GPU: the operators ``link_scores`` and ``regrow_gradient``."""

from dataclasses import replace

import torch
import triton
from torch import Tensor

from haste.ops.triton._batch import prepare
from haste.ops.triton._layer import make_layer
from haste.ops.triton._pass import chunk_tiles, plan_for, slopes_of
from haste.ops.triton.kernels.elementwise import gradient_scores_kernel, link_scores_kernel

_SCORES_BYTES = 64 << 20


def link_scores(weight: Tensor, num_labels: int) -> Tensor:
    groups, group_size, fan_in = weight.shape
    if group_size & (group_size - 1):
        raise ValueError(
            f"group_size ({group_size}) must be a power of two for the triton kernels; set HASTE_KERNELS=torch"
        )
    scores = torch.empty((groups, fan_in), device=weight.device)
    block = min(64, max(16, triton.next_power_of_2(fan_in)))
    grid = (groups, triton.cdiv(fan_in, block))
    link_scores_kernel[grid](weight, scores, num_labels, fan_in, S=group_size, BLOCK_F=block)
    return scores


def regrow_gradient(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    indices: Tensor,
    offsets: Tensor,
    labels: Tensor,
    num_labels: int,
    loss: str,
    most: int,
) -> Tensor:
    layer = make_layer(weight, bias, indices, num_labels)
    plan, dtype = plan_for(features, layer)
    batch = prepare(features, dtype, plan.block_b)
    batch.bad.zero_()
    in_features, groups_per_tile = features.shape[1], layer.rows if layer.layout == "rows" else 1
    # The scores of a chunk, their ranks and their order weigh more than its slopes.
    per_group = 16 * in_features * groups_per_tile
    limit = max(1, min(chunk_tiles(batch, layer, plan), _SCORES_BYTES // per_group))
    plan = replace(plan, chunk_bytes=limit * batch.leading * layer.rows * batch.xt.element_size())
    losses = torch.empty((layer.tiles, batch.blocks), device=features.device)
    one = torch.ones((), device=features.device)
    new = torch.empty((len(weight), most), dtype=torch.int64, device=weight.device)
    block_h = 32 if dtype == torch.float32 else 64
    for slopes in slopes_of(batch, layer, plan, layer.sort(offsets, labels), loss, one, losses):
        first = slopes.first * groups_per_tile
        scores = torch.empty((slopes.count * groups_per_tile, in_features), device=features.device)
        gradient_scores_kernel[(slopes.count, triton.cdiv(in_features, block_h))](
            batch.xt, slopes.values, scores, slopes.first, batch.blocks, num_labels, in_features, batch.leading,
            S=layer.rows, BLOCK_B=batch.block, BLOCK_H=block_h, LAYOUT=layer.layout,
            PRECISION=plan.precision, **plan.options(),
        )  # fmt: skip
        scores = scores[: len(weight) - first]
        held = indices[first : first + len(scores)].long()
        scores.scatter_(1, held, -1.0)
        # A stable order: equal gradients (an input that is zero in the batch) are taken in order of input.
        new[first : first + len(scores)] = scores.sort(dim=1, descending=True, stable=True).indices[:, :most]
    return new
