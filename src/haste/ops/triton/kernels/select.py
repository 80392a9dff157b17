"""Kernel of the running top-k: the best labels of every point, no logits stored."""

import triton
import triton.language as tl

from haste.ops.triton.kernels.passes import logits_of
from haste.ops.triton.kernels.tiles import int64

# The key of (-inf, label 2^31 - 1): what a slot holds before any label. See `haste.ops.pack_keys`.
_LOWEST = tl.constexpr(-9187343244130779136)


@triton.jit
def keys_of(scores, labels):
    """Return int64 keys that order by (score descending, label ascending); any NaN sorts above infinity."""
    raw = (scores + 0.0).to(tl.int32, bitcast=True)
    ordered = tl.where(raw < 0, raw ^ 0x7FFFFFFF, raw)
    ordered = tl.where(scores != scores, 0x7FC00000, ordered)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - labels.to(tl.int64))


@triton.jit(do_not_specialize=["tiles", "tiles_per_part", "num_rows", "num_labels", "batch"])
def topk_kernel(
    xt_ptr,
    weight_ptr,
    bias_ptr,
    indices_ptr,
    row_labels_ptr,
    sorted_rows_ptr,
    sorted_points_ptr,
    bounds_ptr,
    best_ptr,
    tiles,
    tiles_per_part,
    num_rows,
    num_labels,
    batch,
    leading,
    S: tl.constexpr,
    F: tl.constexpr,
    K: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_F: tl.constexpr,
    LAYOUT: tl.constexpr,
    LABELLED: tl.constexpr,
    EXCLUDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """best (batch, parts, K): the K best keys of each point among the tiles of a part, in no order.

    Program (batch block, part). A key above the worst of a point's best takes its place, one for each point at a time.
    Of n labels in random order about K ln(n / K) do, so that in the long run a tile costs its logits and one
    comparison. K is a power of two.
    """
    part = tl.program_id(1)
    points = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    rows = tl.arange(0, S)
    slots = tl.arange(0, K)[None, :]
    best = tl.full((BLOCK_B, K), _LOWEST, tl.int64) - slots  # distinct, so that one at a time is replaced
    for tile in range(part * tiles_per_part, tl.minimum((part + 1) * tiles_per_part, tiles)):
        k = int64(tile)
        own = k * S + rows
        z = logits_of(
            xt_ptr, weight_ptr, bias_ptr, indices_ptr, k, points, leading, num_rows, num_labels, S, F, BLOCK_B, BLOCK_F,
            LAYOUT, PRECISION,
        )  # fmt: skip
        if EXCLUDE:
            for p in range(tl.load(bounds_ptr + k), tl.load(bounds_ptr + k + 1)):
                row = (tl.load(sorted_rows_ptr + p) - k * S).to(tl.int32)
                point = tl.load(sorted_points_ptr + p).to(tl.int32)
                hit = (points == point)[:, None] & (rows == row)[None, :]
                z = tl.where(hit, -float("inf"), z)
        labels = own
        if LABELLED:
            labels = tl.load(row_labels_ptr + own, mask=own < num_labels, other=0).to(tl.int64)
        valid = (points < batch)[:, None] & (own < num_labels)[None, :]
        keys = tl.where(valid, keys_of(z, labels[None, :]), _LOWEST)
        top, worst = tl.max(keys, axis=1), tl.min(best, axis=1)
        better = (top > worst) & (top > _LOWEST)
        while tl.max(better.to(tl.int32)) > 0:
            best = tl.where(better[:, None] & (best == worst[:, None]), top[:, None], best)
            keys = tl.where(keys == top[:, None], _LOWEST, keys)
            top, worst = tl.max(keys, axis=1), tl.min(best, axis=1)
            better = (top > worst) & (top > _LOWEST)
    here = best_ptr + (points.to(tl.int64) * tl.num_programs(1) + part)[:, None] * K + slots
    tl.store(here, tl.maximum(best, _LOWEST), mask=(points < batch)[:, None])
