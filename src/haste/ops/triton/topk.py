"""Streamed top-k on a GPU: the operator ``topk``."""

import torch
import triton
from torch import Tensor

from haste.ops._topk import pack_keys
from haste.ops.triton import plans
from haste.ops.triton._batch import compute_dtype, prepare
from haste.ops.triton._layer import make_layer
from haste.ops.triton.kernels.select import topk_kernel

_PROGRAMS = 264  # of the grid, 2 for each of an H200's 132 multiprocessors: every part fills a best of its own first


def topk(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    indices: Tensor | None,
    row_labels: Tensor | None,
    num_labels: int,
    k: int,
    exclude_offsets: Tensor | None,
    exclude_rows: Tensor | None,
) -> Tensor:
    if k > plans.MAX_K:
        raise ValueError(
            f"k ({k}) must be at most {plans.MAX_K} for the triton kernels; ask for fewer labels, or set "
            "HASTE_KERNELS=torch for slower kernels without this limit"
        )
    layer = make_layer(weight, bias, indices, num_labels)
    dtype = compute_dtype(features, weight)
    width = max(4, triton.next_power_of_2(k))
    tile = plans.choose_topk(layer.rows, layer.fan_in, dtype, plans.target_of(features.device))
    batch = prepare(features, dtype, tile.block_b)
    parts = max(1, min(layer.tiles, _PROGRAMS // batch.blocks))
    per_part = -(-layer.tiles // parts)
    parts = -(-layer.tiles // per_part)
    best = torch.empty((batch.size, parts * width), dtype=torch.int64, device=features.device)
    pairs = (best, best, best)
    if exclude_offsets is not None and exclude_rows is not None:
        excluded = layer.sort(exclude_offsets, exclude_rows)
        pairs = (excluded.rows, excluded.points, excluded.bounds)
    topk_kernel[(batch.blocks, parts)](
        batch.xt, weight, bias, layer.index_pointer, best if row_labels is None else row_labels, *pairs, best,
        layer.tiles, per_part, layer.num_rows, num_labels, batch.size, batch.leading, S=layer.rows, F=layer.fan_in,
        K=width, BLOCK_B=tile.block_b, BLOCK_F=tile.block_f,
        LAYOUT=layer.layout, LABELLED=row_labels is not None, EXCLUDE=exclude_offsets is not None,
        PRECISION=tile.precision, **tile.options(),
    )  # fmt: skip
    keys = best.topk(k, dim=1, sorted=True).values
    infinite = pack_keys(torch.tensor(torch.inf), torch.tensor(0))
    if (keys[:, 0] > int(infinite)).any():
        raise ValueError("scores must not be NaN; the features or the weights of this layer are not finite")
    return keys
