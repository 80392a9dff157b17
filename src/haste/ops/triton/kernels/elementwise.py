"""Kernels around the pass: features in and out, the numbers of a rule, plain updates, link scores, regrowth."""

import triton
import triton.language as tl

from haste.ops.triton.kernels.tiles import int64, load_rates, update_tile


@triton.jit(do_not_specialize=["batch"])
def prepare_kernel(
    features_ptr,
    xt_ptr,
    bad_ptr,
    batch,
    in_features,
    stride_point,
    stride_input,
    leading,
    BLOCK: tl.constexpr,
):
    """xt (in_features, leading) = features^T, zero beyond the batch; bad becomes 1 where a feature is not finite."""
    inputs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    points = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (points < batch)[:, None] & (inputs < in_features)[None, :]
    offsets = (points.to(tl.int64) * stride_point)[:, None] + (inputs.to(tl.int64) * stride_input)[None, :]
    x = tl.load(features_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    finite = tl.abs(x) < float("inf")
    if tl.min(finite.to(tl.int32)) == 0:
        tl.atomic_max(bad_ptr, 1)
    here = xt_ptr + (inputs.to(tl.int64) * leading)[:, None] + points[None, :]
    mask = (inputs < in_features)[:, None] & (points < leading)[None, :]
    tl.store(here, tl.trans(x).to(xt_ptr.dtype.element_ty), mask=mask)


@triton.jit
def numbers_kernel(
    numbers_ptr,
    lr_ptr,
    bias_lr_ptr,
    step_ptr,
    decay,
    bias_decay,
    keep_first,
    bias_keep_first,
    mix_first,
    bias_mix_first,
    log2_first,
    bias_log2_first,
    keep_second,
    bias_keep_second,
    mix_second,
    bias_mix_second,
    log2_second,
    bias_log2_second,
    eps,
    bias_eps,
    RULE: tl.constexpr,
):
    """numbers (2, 8) float32: what `apply_rule` reads, for the weight and the bias, from lr and step on the device.

        sgd, momentum   lr, decay, momentum
        adamw           lr, 1 - lr decay, 1 - b1, b2, 1 - b2, 1 / sqrt(1 - b2^t), eps, lr / (1 - b1^t)

    Arithmetic is float64, for 1 - b^t cancels.
    """
    bias = tl.program_id(0) == 1
    here = numbers_ptr + tl.program_id(0) * 8
    lr = tl.where(bias, tl.load(bias_lr_ptr).to(tl.float64), tl.load(lr_ptr).to(tl.float64))
    decay = tl.where(bias, bias_decay, decay).to(tl.float64)
    tl.store(here, lr.to(tl.float32))
    if RULE == "adamw":
        t = tl.load(step_ptr).to(tl.float64)
        first = 1.0 - tl.exp2(t * tl.where(bias, bias_log2_first, log2_first).to(tl.float64))
        second = 1.0 - tl.exp2(t * tl.where(bias, bias_log2_second, log2_second).to(tl.float64))
        tl.store(here + 1, (1.0 - lr * decay).to(tl.float32))
        tl.store(here + 2, tl.where(bias, bias_mix_first, mix_first))
        tl.store(here + 3, tl.where(bias, bias_keep_second, keep_second))
        tl.store(here + 4, tl.where(bias, bias_mix_second, mix_second))
        tl.store(here + 5, (1.0 / tl.sqrt(second)).to(tl.float32))
        tl.store(here + 6, tl.where(bias, bias_eps, eps))
        tl.store(here + 7, (lr / first).to(tl.float32))
    else:
        tl.store(here + 1, decay.to(tl.float32))
        tl.store(here + 2, tl.where(bias, bias_keep_first, keep_first))


@triton.jit(do_not_specialize=["num_rows", "first_row", "layer", "seed", "per_row"])
def update_rows_kernel(
    weight_ptr,
    grad_ptr,
    rows_ptr,
    first_ptr,
    second_ptr,
    rates_ptr,
    numbers_ptr,
    step_ptr,
    bad_ptr,
    num_rows,
    columns,
    first_row,
    layer,
    seed,
    per_row,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RULE: tl.constexpr,
    RATED: tl.constexpr,
    CHOSEN: tl.constexpr,
):
    """The rule on a matrix (rows, columns) with its gradient; CHOSEN: row r of the gradient is row rows[r].

    rates (rows,) float32 where RATED.
    """
    if tl.load(bad_ptr) == 0:
        step = tl.load(step_ptr)
        blocks = tl.cdiv(columns, COLUMNS)
        start = (tl.program_id(0) // blocks).to(tl.int64) * ROWS
        local = start + tl.arange(0, ROWS)
        first_column = (tl.program_id(0) % blocks) * COLUMNS
        column = first_column + tl.arange(0, COLUMNS)
        mask = (local < num_rows)[:, None] & (column < columns)[None, :]
        grad = tl.load(grad_ptr + local[:, None] * columns + column[None, :], mask=mask, other=0.0).to(tl.float32)
        target = local
        if CHOSEN:
            target = tl.load(rows_ptr + local, mask=local < num_rows, other=0)
        offsets = target[:, None] * columns + column[None, :]
        weight = tl.load(weight_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        rates = load_rates(rates_ptr, target, local < num_rows, RATED)
        update_tile(
            weight_ptr, first_ptr, second_ptr, offsets, mask, weight, grad, rates, numbers_ptr, first_row + start, ROWS,
            first_column, COLUMNS, per_row, layer, step, seed, RULE, RATED,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_labels"])
def link_scores_kernel(
    weight_ptr,
    scores_ptr,
    num_labels,
    fan_in,
    S: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """scores[k, f] = mean over the labels of group k of |weight[k, s, f]|; padded rows are zero."""
    k = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    rows = tl.arange(0, S)
    offsets = (rows * fan_in)[:, None] + f[None, :]
    w = tl.load(weight_ptr + k * S * fan_in + offsets, mask=(f < fan_in)[None, :], other=0.0).to(tl.float32)
    count = tl.minimum(num_labels - k * S, S).to(tl.float32)
    tl.store(scores_ptr + k * fan_in + f, tl.sum(tl.abs(w), axis=0) / count, mask=f < fan_in)


@triton.jit(do_not_specialize=["first_tile", "blocks", "num_labels"])
def gradient_scores_kernel(
    xt_ptr,
    slopes_ptr,
    scores_ptr,
    first_tile,
    blocks,
    num_labels,
    in_features,
    leading,
    S: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    LAYOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """scores[k, h] = mean over the labels of group k of |dloss/dweight[k, s, h]|, every input h, from the slopes.

    Program (tile, block of inputs). Layout ``rows``: a tile is S groups of one label, scores (tiles, S, in_features).
    """
    tile = tl.program_id(0)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    rows = tl.arange(0, S)
    here = slopes_ptr + int64(tile) * leading * S
    grad = tl.zeros((BLOCK_H, S), tl.float32)
    for block in range(0, blocks):
        points = block * BLOCK_B + tl.arange(0, BLOCK_B)
        g = tl.load(here + (points * S)[:, None] + rows[None, :])
        mask = (h < in_features)[:, None]
        x = tl.load(xt_ptr + (h.to(tl.int64) * leading)[:, None] + points[None, :], mask=mask, other=0.0)
        grad = tl.dot(x, g, grad, input_precision=PRECISION)
    if LAYOUT == "rows":
        out = scores_ptr + (int64(tile) * S + rows)[None, :] * in_features + h[:, None]
        tl.store(out, tl.abs(grad), mask=(h < in_features)[:, None] & (rows >= 0)[None, :])
    else:
        count = tl.minimum(num_labels - int64(first_tile + tile) * S, S).to(tl.float32)
        out = scores_ptr + int64(tile) * in_features + h
        tl.store(out, tl.sum(tl.abs(grad), axis=1) / count, mask=h < in_features)
