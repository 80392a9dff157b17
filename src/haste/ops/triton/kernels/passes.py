"""Kernels over groups of labels: logits, the fused step, and its two halves.

A program owns a tile of S rows of the weights. Per block of BLOCK_F inputs, with x (BLOCK_F, B) gathered from the
transposed features, contiguous in the batch, w (S, BLOCK_F), and g (B, S) the slope of the loss:

    sweep 1     z += x^T w^T                             (B, S), in registers for all blocks
    between     g = dloss/dz, in the dtype of x;  bias updated
    sweep 2     dw = x g;   dx = w^T g^T, added to grad_xt;   w = round(rule(w, dw^T)), in place

`step_kernel` does it all, for a batch of one tile. `logits_kernel` and `update_kernel` are sweeps 1 and 2 with g in
memory, for any batch. Layouts of the tile of rows: ``gathered``, a group with its own inputs; ``dense``, any S rows
that read every input; ``rows``, S rows with inputs of their own (sweep 1 only).
"""

import triton
import triton.language as tl

from haste.ops.triton.kernels.tiles import (
    NOTHING,
    int64,
    load_rates,
    loss_and_slope,
    mark_positives,
    update_bias,
    update_tile,
)


@triton.jit
def inputs_of(indices_ptr, k, f, F: tl.constexpr, BLOCK_F: tl.constexpr, LAYOUT: tl.constexpr):
    """Return the inputs in slots f (BLOCK_F,) of tile k; slots beyond F repeat input 0."""
    if LAYOUT == "dense":
        inputs = f
        if F % BLOCK_F != 0:
            inputs = tl.where(f < F, f, 0)
    elif F % BLOCK_F != 0:
        inputs = tl.load(indices_ptr + k * F + f, mask=f < F, other=0).to(tl.int32)
    else:
        inputs = tl.load(indices_ptr + k * F + f).to(tl.int32)
    return inputs


@triton.jit
def weight_mask(own, f, num_rows, S: tl.constexpr, F: tl.constexpr, BLOCK_F: tl.constexpr, LAYOUT: tl.constexpr):
    """Return which elements of a tile (S, BLOCK_F) are weights; a constant where all are."""
    mask = tl.full((S, BLOCK_F), True, tl.int1)
    if LAYOUT != "gathered":
        mask = mask & (own < num_rows)[:, None]
    if F % BLOCK_F != 0:
        mask = mask & (f < F)[None, :]
    return mask


@triton.jit
def logits_of(
    xt_ptr,
    weight_ptr,
    bias_ptr,
    indices_ptr,
    k,
    points,
    leading,
    num_rows,
    num_labels,
    S: tl.constexpr,
    F: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_F: tl.constexpr,
    LAYOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return float32 logits (BLOCK_B, S) of tile k (int64) at these points of the batch, NOTHING of padded rows."""
    rows = tl.arange(0, S)
    own = k * S + rows
    z = tl.zeros((BLOCK_B, S), tl.float32)
    if LAYOUT == "rows":
        for f in range(0, F):
            inputs = tl.load(indices_ptr + own * F + f, mask=own < num_rows, other=0).to(tl.int32)
            w = tl.load(weight_ptr + own * F + f, mask=own < num_rows, other=0.0).to(tl.float32)
            x = tl.load(xt_ptr + (inputs * leading)[None, :] + points[:, None]).to(tl.float32)
            z += x * w[None, :]
    else:
        for f0 in range(0, F, BLOCK_F):
            f = f0 + tl.arange(0, BLOCK_F)
            inputs = inputs_of(indices_ptr, k, f, F, BLOCK_F, LAYOUT)
            mask = weight_mask(own, f, num_rows, S, F, BLOCK_F, LAYOUT)
            x = tl.load(xt_ptr + (inputs * leading)[:, None] + points[None, :])
            w = tl.load(weight_ptr + k * (S * F) + (rows * F)[:, None] + f[None, :], mask=mask, other=0.0)
            z = tl.dot(tl.trans(x), tl.trans(w).to(x.dtype), z, input_precision=PRECISION)
    bias = tl.load(bias_ptr + own, mask=own < num_labels, other=NOTHING).to(tl.float32)
    return z + bias[None, :]


@triton.jit
def add_grad_x(
    grad_xt_ptr, inputs, points, f, leading, in_features, values, F: tl.constexpr, BLOCK_F: tl.constexpr,
    SCATTER: tl.constexpr,
):  # fmt: skip
    """Add dloss/dx (BLOCK_F, points) to the gradient of the features.

    ``atomics``: to (H, B), rows of which are contiguous in the batch. ``atomics_by_point``: to (B, H), for comparison.
    ``partials``: to a (H, B) of this program alone, so that barriers between tiles fix the order.
    """
    if SCATTER == "atomics_by_point":
        offsets = inputs[:, None] + (points * in_features)[None, :]
    else:
        offsets = (inputs * leading)[:, None] + points[None, :]
    mask = tl.full(offsets.shape, True, tl.int1)
    if F % BLOCK_F != 0:
        mask = mask & (f < F)[:, None]
    tl.atomic_add(grad_xt_ptr + offsets, values, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["num_groups", "num_labels", "first_row", "batch", "layer", "seed"])
def step_kernel(
    xt_ptr,
    grad_xt_ptr,
    weight_ptr,
    first_ptr,
    second_ptr,
    bias_ptr,
    bias_first_ptr,
    bias_second_ptr,
    rates_ptr,
    indices_ptr,
    sorted_rows_ptr,
    sorted_points_ptr,
    bounds_ptr,
    losses_ptr,
    numbers_ptr,
    step_ptr,
    bad_ptr,
    scale_ptr,
    num_groups,
    num_labels,
    first_row,
    batch,
    in_features,
    layer,
    seed,
    S: tl.constexpr,
    F: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_F: tl.constexpr,
    LOSS: tl.constexpr,
    FULL: tl.constexpr,
    FLUSH: tl.constexpr,
    RULE: tl.constexpr,
    RATED: tl.constexpr,
    SCATTER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Train groups on a batch of at most BLOCK_B points: both sweeps, g in registers. Gathered layout.

    Pointers: xt (H, BLOCK_B), its float32 gradient (zero before; per program for partials), weight (G, S, F) with
    state, bias (G, S) with state, rates (G, S) where RATED, indices (G, F), positives sorted by row with bounds
    (G + 1,), losses (G,), numbers (2, 8), step () int64, bad () (non-zero: do nothing), scale () of loss gradients.
    """
    if tl.load(bad_ptr) == 0:
        step = tl.load(step_ptr)
        scale = tl.load(scale_ptr).to(tl.float32)
        points = tl.arange(0, BLOCK_B)
        rows = tl.arange(0, S)
        num_rows = num_labels  # unused by the gathered layout
        if SCATTER == "partials":
            grad_xt_ptr += tl.program_id(0).to(tl.int64) * in_features * BLOCK_B
        for group in range(tl.program_id(0), num_groups, tl.num_programs(0)):
            k = int64(group)
            own = k * S + rows
            z = logits_of(
                xt_ptr, weight_ptr, bias_ptr, indices_ptr, k, points, BLOCK_B, num_rows, num_labels, S, F, BLOCK_B,
                BLOCK_F, "gathered", PRECISION,
            )  # fmt: skip
            start = tl.load(bounds_ptr + k)
            stop = tl.load(bounds_ptr + k + 1)
            marked = mark_positives(
                z, k * S, rows, points, batch, sorted_rows_ptr, sorted_points_ptr, start, stop, FULL
            )
            loss, slope = loss_and_slope(marked, scale, LOSS, FLUSH)
            tl.store(losses_ptr + k, loss)
            g = slope.to(xt_ptr.dtype.element_ty)
            update_bias(
                bias_ptr, bias_first_ptr, bias_second_ptr, own, own >= 0, tl.sum(slope, axis=0),
                numbers_ptr + 8, first_row, S, layer, step, seed, RULE,
            )  # fmt: skip
            for f0 in range(0, F, BLOCK_F):
                f = f0 + tl.arange(0, BLOCK_F)
                inputs = inputs_of(indices_ptr, k, f, F, BLOCK_F, "gathered")
                mask = weight_mask(own, f, num_rows, S, F, BLOCK_F, "gathered")
                x = tl.load(xt_ptr + (inputs * BLOCK_B)[:, None] + points[None, :])
                offsets = (rows * F)[:, None] + f[None, :]
                w = tl.load(weight_ptr + k * (S * F) + offsets, mask=mask, other=0.0)
                grad_x = tl.dot(tl.trans(w).to(x.dtype), tl.trans(g), input_precision=PRECISION)
                add_grad_x(grad_xt_ptr, inputs, points, f, BLOCK_B, in_features, grad_x, F, BLOCK_F, SCATTER)
                grad_w = tl.dot(x, g, input_precision=PRECISION)
                rates = load_rates(rates_ptr, own, own >= 0, RATED)
                update_tile(
                    weight_ptr + k * (S * F), first_ptr + k * (S * F), second_ptr + k * (S * F), offsets, mask,
                    w.to(tl.float32), tl.trans(grad_w), rates, numbers_ptr, first_row + k * S, S, f0, BLOCK_F,
                    (F + 7) // 8, layer, step, seed, RULE, RATED,
                )  # fmt: skip
            if SCATTER == "partials":
                tl.debug_barrier()  # the next group may add to the same elements from other threads


@triton.jit(do_not_specialize=["first_tile", "num_rows", "num_labels", "batch"])
def logits_kernel(
    xt_ptr,
    weight_ptr,
    bias_ptr,
    indices_ptr,
    sorted_rows_ptr,
    sorted_points_ptr,
    bounds_ptr,
    out_ptr,
    grad_bias_ptr,
    losses_ptr,
    bad_ptr,
    scale_ptr,
    first_tile,
    num_rows,
    num_labels,
    batch,
    leading,
    S: tl.constexpr,
    F: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_F: tl.constexpr,
    OUT: tl.constexpr,
    FULL: tl.constexpr,
    FLUSH: tl.constexpr,
    LAYOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sweep 1 for tile first_tile + program 0 and block program 1 of the batch.

    OUT ``logits``: out (batch, num_labels) float32. Else a loss: out (tiles, leading, S) is g in the dtype of x,
    grad_bias (tiles, blocks, S) its sums over the block, losses (all tiles, blocks) the sums of the loss.
    """
    if tl.load(bad_ptr) == 0:
        tile = tl.program_id(0)
        block = tl.program_id(1)
        blocks = tl.num_programs(1)
        k = int64(first_tile + tile)
        rows = tl.arange(0, S)
        own = k * S + rows
        points = block * BLOCK_B + tl.arange(0, BLOCK_B)
        z = logits_of(
            xt_ptr, weight_ptr, bias_ptr, indices_ptr, k, points, leading, num_rows, num_labels, S, F, BLOCK_B, BLOCK_F,
            LAYOUT, PRECISION,
        )  # fmt: skip
        if OUT == "logits":
            valid = (points < batch)[:, None] & (own < num_labels)[None, :]
            tl.store(out_ptr + points.to(tl.int64)[:, None] * num_labels + own[None, :], z, mask=valid)
        else:
            start = tl.load(bounds_ptr + k)
            stop = tl.load(bounds_ptr + k + 1)
            marked = mark_positives(
                z, k * S, rows, points, batch, sorted_rows_ptr, sorted_points_ptr, start, stop, FULL
            )
            scale = tl.load(scale_ptr).to(tl.float32)
            loss, slope = loss_and_slope(marked, scale, OUT, FLUSH)
            tl.store(losses_ptr + k * blocks + block, loss)
            tl.store(grad_bias_ptr + (tile * blocks + block) * S + rows, tl.sum(slope, axis=0))
            here = out_ptr + int64(tile) * leading * S
            tl.store(here + (points * S)[:, None] + rows[None, :], slope.to(out_ptr.dtype.element_ty))


@triton.jit(
    do_not_specialize=[
        "first_tile",
        "tiles",
        "blocks",
        "group_size",
        "num_rows",
        "num_labels",
        "first_row",
        "layer",
        "seed",
    ]
)
def update_kernel(
    xt_ptr,
    grad_xt_ptr,
    weight_ptr,
    first_ptr,
    second_ptr,
    bias_ptr,
    bias_first_ptr,
    bias_second_ptr,
    rates_ptr,
    indices_ptr,
    slopes_ptr,
    grad_bias_ptr,
    numbers_ptr,
    step_ptr,
    bad_ptr,
    first_tile,
    tiles,
    blocks,
    group_size,
    num_rows,
    num_labels,
    first_row,
    in_features,
    leading,
    layer,
    seed,
    S: tl.constexpr,
    F: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_F: tl.constexpr,
    RULE: tl.constexpr,
    RATED: tl.constexpr,
    SCATTER: tl.constexpr,
    LAYOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    FEATURES: tl.constexpr,
    WEIGHTS: tl.constexpr,
):
    """Sweep 2 for tiles [first_tile, first_tile + tiles), from the slopes that `logits_kernel` left.

    slopes (tiles, leading, S), grad_bias (tiles, blocks, S); the rest as `step_kernel`. FEATURES and WEIGHTS say which
    of the two gradients are computed; RULE ``grad`` stores the latter to first and bias_first.
    """
    if tl.load(bad_ptr) == 0:
        step = tl.load(step_ptr)
        rows = tl.arange(0, S)
        if SCATTER == "partials":
            grad_xt_ptr += tl.program_id(0).to(tl.int64) * in_features * leading
        for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
            k = int64(first_tile + tile)
            own = k * S + rows
            here = slopes_ptr + int64(tile) * leading * S
            if WEIGHTS:
                grad_bias = tl.zeros((S,), tl.float32)
                for block in range(0, blocks):
                    grad_bias += tl.load(grad_bias_ptr + (tile * blocks + block) * S + rows)
                update_bias(
                    bias_ptr, bias_first_ptr, bias_second_ptr, own, own < num_rows, grad_bias, numbers_ptr + 8,
                    first_row, group_size, layer, step, seed, RULE,
                )  # fmt: skip
            for f0 in range(0, F, BLOCK_F):
                f = f0 + tl.arange(0, BLOCK_F)
                inputs = inputs_of(indices_ptr, k, f, F, BLOCK_F, LAYOUT)
                mask = weight_mask(own, f, num_rows, S, F, BLOCK_F, LAYOUT)
                offsets = (rows * F)[:, None] + f[None, :]
                w = tl.load(weight_ptr + k * (S * F) + offsets, mask=mask, other=0.0)
                grad_w = tl.zeros((BLOCK_F, S), tl.float32)
                for block in range(0, blocks):
                    points = block * BLOCK_B + tl.arange(0, BLOCK_B)
                    g = tl.load(here + (points * S)[:, None] + rows[None, :])
                    if WEIGHTS:
                        x = tl.load(xt_ptr + (inputs * leading)[:, None] + points[None, :])
                        grad_w = tl.dot(x, g, grad_w, input_precision=PRECISION)
                    if FEATURES:
                        grad_x = tl.dot(tl.trans(w).to(g.dtype), tl.trans(g), input_precision=PRECISION)
                        add_grad_x(grad_xt_ptr, inputs, points, f, leading, in_features, grad_x, F, BLOCK_F, SCATTER)
                if WEIGHTS:
                    held = own >= 0 if LAYOUT == "gathered" else own < num_rows
                    rates = load_rates(rates_ptr, own, held, RATED)
                    update_tile(
                        weight_ptr + k * (S * F), first_ptr + k * (S * F), second_ptr + k * (S * F), offsets, mask,
                        w.to(tl.float32), tl.trans(grad_w), rates, numbers_ptr, first_row + k * S, S, f0, BLOCK_F,
                        (F + 7) // 8, layer, step, seed, RULE, RATED,
                    )  # fmt: skip
            if SCATTER == "partials":
                tl.debug_barrier()  # the next tile may add to the same elements from other threads
