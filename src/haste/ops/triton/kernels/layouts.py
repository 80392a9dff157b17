"""Kernels of layouts whose gradients are no sum over groups of gathered inputs: dense, and one row a group."""

import triton
import triton.language as tl

from haste.ops.triton.kernels.tiles import int64


@triton.jit(do_not_specialize=["first_tile", "tiles", "num_rows"])
def dense_grad_x_kernel(
    slopes_ptr,
    weight_ptr,
    parts_ptr,
    bad_ptr,
    first_tile,
    tiles,
    num_rows,
    leading,
    S: tl.constexpr,
    F: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_F: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """parts[p] += w^T g^T over every P-th tile of rows: the dense layer's dloss/dx, (P, F, leading) float32.

    Program (input block, batch block, p). slopes (tiles, leading, S) as `logits_kernel` leaves them.
    """
    if tl.load(bad_ptr) == 0:
        f = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
        points = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
        part = tl.program_id(2)
        rows = tl.arange(0, S)
        total = tl.zeros((BLOCK_F, BLOCK_B), tl.float32)
        for tile in range(part, tiles, tl.num_programs(2)):
            own = int64(first_tile + tile) * S + rows
            mask = (own < num_rows)[:, None] & (f < F)[None, :]
            w = tl.load(weight_ptr + own[:, None] * F + f[None, :], mask=mask, other=0.0)
            g = tl.load(slopes_ptr + int64(tile) * leading * S + (points * S)[:, None] + rows[None, :])
            total = tl.dot(tl.trans(w).to(g.dtype), tl.trans(g), total, input_precision=PRECISION)
        here = parts_ptr + (part.to(tl.int64) * F + f)[:, None] * leading + points[None, :]
        mask = (f < F)[:, None] & (points < leading)[None, :]
        tl.store(here, tl.load(here, mask=mask, other=0.0) + total, mask=mask)


@triton.jit(do_not_specialize=["first_tile", "tiles", "blocks", "num_rows"])
def rows_grad_kernel(
    xt_ptr,
    grad_xt_ptr,
    weight_ptr,
    indices_ptr,
    slopes_ptr,
    grad_weight_ptr,
    bad_ptr,
    first_tile,
    tiles,
    blocks,
    num_rows,
    in_features,
    leading,
    S: tl.constexpr,
    F: tl.constexpr,
    BLOCK_B: tl.constexpr,
    SCATTER: tl.constexpr,
):
    """Gradients of S rows with inputs of their own: grad_weight (tiles, S, F) float32 is written, grad_xt added to.

    dw[r, f] = sum_b g[b, r] x[b, indices[r, f]]        dx[b, indices[r, f]] += g[b, r] w[r, f]
    """
    if tl.load(bad_ptr) == 0:
        rows = tl.arange(0, S)
        if SCATTER == "partials":
            grad_xt_ptr += tl.program_id(0).to(tl.int64) * in_features * leading
        for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
            own = int64(first_tile + tile) * S + rows
            here = slopes_ptr + int64(tile) * leading * S
            out = grad_weight_ptr + int64(tile) * (S * F) + rows * F
            for f in range(0, F):
                inputs = tl.load(indices_ptr + own * F + f, mask=own < num_rows, other=0).to(tl.int32)
                w = tl.load(weight_ptr + own * F + f, mask=own < num_rows, other=0.0).to(tl.float32)
                grad_w = tl.zeros((S,), tl.float32)
                for block in range(0, blocks):
                    points = block * BLOCK_B + tl.arange(0, BLOCK_B)
                    g = tl.load(here + (points * S)[:, None] + rows[None, :]).to(tl.float32)
                    offsets = (inputs * leading)[None, :] + points[:, None]
                    grad_w += tl.sum(tl.load(xt_ptr + offsets).to(tl.float32) * g, axis=0)
                    grad_x = g * w[None, :]
                    if SCATTER == "partials":
                        for r in range(0, S):  # rows may share an input: one at a time, in order
                            mask = tl.broadcast_to(((rows == r) & (own < num_rows))[None, :], grad_x.shape)
                            tl.atomic_add(grad_xt_ptr + offsets, grad_x, mask=mask, sem="relaxed")
                            tl.debug_barrier()
                    else:
                        mask = tl.broadcast_to((own < num_rows)[None, :], grad_x.shape)
                        tl.atomic_add(grad_xt_ptr + offsets, grad_x, mask=mask, sem="relaxed")
                tl.store(out + f, grad_w)
