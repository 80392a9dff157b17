"""Device functions that every kernel shares: random bits, rounding, the loss and the update rule on a tile.

They compute what `haste.ops._random`, `haste.ops._losses` and `haste.ops._update` say, in float32 registers. A tile of
weights is (rows, columns), of logits (batch, rows). This module and the kernels import triton alone, so that they
compile for any target without PyTorch or a GPU.
"""

import triton
import triton.language as tl

# The logit of a padded row or point: its loss and slope are 0.
NOTHING = tl.constexpr(-1e30)


@triton.jit
def int64(number):
    """Return a scalar as int64; numbers of loops are not always tensors."""
    return tl.full((), 0, tl.int64) + number


@triton.jit
def philox(block, stream, step, seed):
    """Return the four uint32 words of Philox4x32-10 for int64 block numbers, of their shape.

    stream (counter word c2), step (c3) and seed (the key) are integer scalars, taken modulo 2^32, 2^32 and 2^64.
    """
    seed = seed.to(tl.int64)
    c0 = block.to(tl.uint32)
    c1 = (block >> 32).to(tl.uint32)
    c2 = tl.zeros_like(c0) + stream.to(tl.uint32)
    c3 = tl.zeros_like(c0) + step.to(tl.uint32)
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        low0 = c0 * 0xD2511F53
        low1 = c2 * 0xCD9E8D57
        high0 = tl.umulhi(c0, tl.full(c0.shape, 0xD2511F53, tl.uint32))
        high1 = tl.umulhi(c2, tl.full(c0.shape, 0xCD9E8D57, tl.uint32))
        c0 = high1 ^ c1 ^ k0
        c2 = high0 ^ c3 ^ k1
        c1 = low1
        c3 = low0
        k0 = k0 + tl.full((), 0x9E3779B9, tl.uint32)
        k1 = k1 + tl.full((), 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def bits16(
    first_row, ROWS: tl.constexpr, first_column, COLUMNS: tl.constexpr, per_row: tl.constexpr, stream, step, seed
):
    """Return 16 random bits for each element of a tile, int32 (ROWS, COLUMNS); one Philox call serves 8 columns.

    first_row is the global row (int64), first_column a multiple of 8, per_row = ceil(columns of the tensor / 8).
    """
    rows = first_row + tl.arange(0, ROWS)
    blocks = rows[:, None] * per_row + (first_column // 8 + tl.arange(0, COLUMNS // 8))[None, :]
    w0, w1, w2, w3 = philox(blocks, stream, step, seed)
    # Element 4 a + 2 b + c of eight is half c of word 2 a + b; every join adds the next finer dimension.
    low = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    words = tl.join(low & 0xFFFF, low >> 16)
    return tl.reshape(words.to(tl.int32), (ROWS, COLUMNS))


@triton.jit
def bits16_at(row, column, per_row, stream, step, seed):
    """Return 16 random bits of elements (row, column), any shape; one Philox call an element."""
    w0, w1, w2, w3 = philox(row * per_row + column // 8, stream, step, seed)
    pair = (column % 8) // 2
    word = tl.where(pair < 2, tl.where(pair == 0, w0, w1), tl.where(pair == 2, w2, w3))
    return tl.where(column % 2 == 0, word & 0xFFFF, word >> 16).to(tl.int32)


@triton.jit
def to_bfloat16(values, bits):
    """Round float32 stochastically: up with probability equal to the discarded fraction; infinities and NaN stay."""
    raw = values.to(tl.int32, bitcast=True)
    finite = (raw & 0x7F800000) != 0x7F800000
    quiet = tl.where((raw & 0x7FFFFF) != 0, raw | 0x400000, raw)
    rounded = tl.where(finite, raw + bits, quiet)
    return (rounded >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def mark_positives(
    z, first_row, rows, points, batch, sorted_rows_ptr, sorted_points_ptr, start, stop, FULL: tl.constexpr
):
    """Return logits as int32 bits whose lowest bit says whether the pair is a positive; NOTHING beyond the batch.

    That bit of the mantissa is given up: at most a unit in the last place of a float32 logit, and no register.
    """
    if not FULL:
        z = tl.where((points < batch)[:, None], z, NOTHING)
    marked = z.to(tl.int32, bitcast=True) & -2
    for p in range(start, stop):
        row = (tl.load(sorted_rows_ptr + p) - first_row).to(tl.int32)
        point = tl.load(sorted_points_ptr + p).to(tl.int32)
        hit = (points == point)[:, None] & (rows == row)[None, :]
        marked = marked | hit.to(tl.int32)
    return marked


@triton.jit
def log1p(x):
    """Return log(1 + x) of x >= 0 to float32 precision: 1 + x would lose every label that is nearly certain."""
    e = tl.minimum(x, 1.0, propagate_nan=tl.PropagateNan.ALL)
    series = -0.008574675768613815  # log1p(e) / e on [0, 1]
    series = series * e + 0.044214192777872086
    series = series * e - 0.10785368084907532
    series = series * e + 0.17757023870944977
    series = series * e - 0.2449961155653
    series = series * e + 0.3327617645263672
    series = series * e - 0.49997448921203613
    series = series * e + 0.9999998211860657
    return tl.where(x > 1.0, tl.log(1.0 + x), e * series)


@triton.jit
def grow(a, b):
    """Return (1 + a) (1 + b) - 1, exact where both are tiny."""
    return a * b + a + b


@triton.jit
def exp_and_inverse(x, FLUSH: tl.constexpr):
    """Return e = exp(-x) and 1 / (1 + e) of x >= 0.

    FLUSH (NVIDIA): by the hardware's functions alone, an e below 2^-126 becoming 0. Those of the language scale around
    such numbers, for a third more instructions.
    """
    if FLUSH:
        power = x * -1.4426950408889634
        e = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [power], dtype=tl.float32, is_pure=True, pack=1
        )
        inverse = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + e], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        e = tl.exp(-x)
        inverse = 1.0 / (1.0 + e)
    return e, inverse


@triton.jit
def loss_and_slope(marked, scale, LOSS: tl.constexpr, FLUSH: tl.constexpr):
    """Return (sum of the loss, scale times dloss/dlogit) of a tile of marked logits (points, rows).

    With t = +1 for positives and -1 for the rest, u = -t z:

        bce             softplus(u) = max(u, 0) + log1p(e^-|u|)     slope  -t sigmoid(u)
        squared_hinge   max(0, 1 + u)^2                             slope  -2 t max(0, 1 + u)

    A logit of NOTHING has neither. The logarithms of a point are that of one product, below 2^64 for 64 rows:
    sum log1p(e) = log1p(prod (1 + e) - 1).
    """
    sign = marked << 31  # of a positive: flips z, and the slope back
    u = ((marked & -2) ^ sign).to(tl.float32, bitcast=True)
    if LOSS == "bce":
        e, inverse = exp_and_inverse(tl.abs(u), FLUSH)
        slope = tl.where(u >= 0, inverse, e * inverse)
        if marked.shape[1] > 64:
            total = tl.sum(tl.maximum(u, 0.0) + log1p(e))
        else:
            total = tl.sum(tl.maximum(u, 0.0)) + tl.sum(log1p(tl.reduce(e, 1, grow)))
    else:
        margin = tl.maximum(1.0 + u, 0.0, propagate_nan=tl.PropagateNan.ALL)
        slope = 2.0 * margin
        total = tl.sum(margin * margin)
    slope = (slope.to(tl.int32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)
    return total, slope * scale


@triton.jit
def load_rates(rates_ptr, rows, mask, RATED: tl.constexpr):
    """Return the rates of rows where mask; where there are none (not RATED), ones that no instruction makes."""
    if RATED:
        rates = tl.load(rates_ptr + rows, mask=mask, other=0.0)
    else:
        rates = tl.full(rows.shape, 1.0, tl.float32)
    return rates


@triton.jit
def apply_rule(weight, grad, first, second, rates, numbers_ptr, RULE: tl.constexpr, RATED: tl.constexpr):
    """Return (weight, first, second) after one update of float32 tiles; the numbers are those of `numbers_kernel`.

    sgd       w -= lr (g + decay w)
    momentum  m = momentum m + (g + decay w);  w -= lr m
    adamw     w *= 1 - lr decay;  m += (1 - b1) (g - m);  v = b2 v + (1 - b2) g^2
              w -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)

    RATED: lr is lr * rates (rows of the tile) throughout.
    """
    lr = tl.load(numbers_ptr)
    decay = tl.load(numbers_ptr + 1)
    if RULE == "adamw":
        if RATED:
            decay = 1.0 - (1.0 - decay) * rates[:, None]
        weight = weight * decay
        first = first + tl.load(numbers_ptr + 2) * (grad - first)
        second = second * tl.load(numbers_ptr + 3) + tl.load(numbers_ptr + 4) * grad * grad
        root = tl.sqrt(second) * tl.load(numbers_ptr + 5) + tl.load(numbers_ptr + 6)
        lr = tl.load(numbers_ptr + 7)
        if RATED:
            lr = lr * rates[:, None]
        weight = weight - lr * first / root
    else:
        grad = grad + decay * weight
        if RULE == "momentum":
            first = tl.load(numbers_ptr + 2) * first + grad
            grad = first
        if RATED:
            grad = grad * rates[:, None]
        weight = weight - lr * grad
    return weight, first, second


@triton.jit
def store_tile(
    pointers,
    values,
    mask,
    first_row,
    ROWS: tl.constexpr,
    first_column,
    COLUMNS: tl.constexpr,
    per_row,
    stream,
    step,
    seed,
):
    """Write a float32 tile (ROWS, COLUMNS) into its storage, rounded stochastically where that is bfloat16."""
    if pointers.dtype.element_ty == tl.bfloat16:
        bits = bits16(first_row, ROWS, first_column, COLUMNS, per_row, stream, step, seed)
        tl.store(pointers, to_bfloat16(values, bits), mask=mask)
    else:
        tl.store(pointers, values.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def update_tile(
    weight_ptr,
    first_ptr,
    second_ptr,
    offsets,
    mask,
    weight,
    grad,
    rates,
    numbers_ptr,
    first_row,
    ROWS: tl.constexpr,
    first_column,
    COLUMNS: tl.constexpr,
    per_row,
    layer,
    step,
    seed,
    RULE: tl.constexpr,
    RATED: tl.constexpr,
):
    """Update a tile (ROWS, COLUMNS) of weights and state in place.

    weight and grad are float32 tiles, rates (ROWS,) of `load_rates`; offsets lead from the three pointers to the
    elements. RULE ``grad`` writes the gradient to first_ptr instead.
    """
    if RULE == "grad":
        tl.store(first_ptr + offsets, grad.to(first_ptr.dtype.element_ty), mask=mask)
    else:
        first = weight
        second = weight
        if RULE != "sgd":
            first = tl.load(first_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        if RULE == "adamw":
            second = tl.load(second_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        weight, first, second = apply_rule(weight, grad, first, second, rates, numbers_ptr, RULE, RATED)
        stream = 4 * int64(layer)
        store_tile(
            weight_ptr + offsets, weight, mask, first_row, ROWS, first_column, COLUMNS, per_row, stream, step, seed
        )
        if RULE != "sgd":
            store_tile(
                first_ptr + offsets,
                first,
                mask,
                first_row,
                ROWS,
                first_column,
                COLUMNS,
                per_row,
                stream + 1,
                step,
                seed,
            )
        if RULE == "adamw":
            store_tile(
                second_ptr + offsets,
                second,
                mask,
                first_row,
                ROWS,
                first_column,
                COLUMNS,
                per_row,
                stream + 2,
                step,
                seed,
            )


@triton.jit
def store_elements(pointers, values, mask, row, column, per_row, stream, step, seed):
    """Write float32 values of any shape into their storage, elements (row, column) of it, as `store_tile`."""
    if pointers.dtype.element_ty == tl.bfloat16:
        bits = bits16_at(row, column, per_row, stream, step, seed)
        tl.store(pointers, to_bfloat16(values, bits), mask=mask)
    else:
        tl.store(pointers, values.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def update_bias(
    bias_ptr,
    first_ptr,
    second_ptr,
    rows,
    mask,
    grad,
    numbers_ptr,
    first_row,
    group_size,
    layer,
    step,
    seed,
    RULE: tl.constexpr,
):
    """Update the biases of these rows (int64, local) in place; a bias (G, S) has one row of bits for every group.

    Its rows have no rates (see `haste.ops._step`).
    """
    if RULE == "grad":
        tl.store(first_ptr + rows, grad.to(first_ptr.dtype.element_ty), mask=mask)
    else:
        bias = tl.load(bias_ptr + rows, mask=mask, other=0.0).to(tl.float32)
        first = bias
        second = bias
        if RULE != "sgd":
            first = tl.load(first_ptr + rows, mask=mask, other=0.0).to(tl.float32)
        if RULE == "adamw":
            second = tl.load(second_ptr + rows, mask=mask, other=0.0).to(tl.float32)
        bias, first, second = apply_rule(bias, grad, first, second, bias, numbers_ptr, RULE, False)
        tl.store(bias_ptr + rows, bias, mask=mask)
        group = (first_row + rows) // group_size
        column = rows % group_size
        per_row = (group_size + 7) // 8
        stream = 4 * int64(layer)
        if RULE != "sgd":
            store_elements(first_ptr + rows, first, mask, group, column, per_row, stream + 1, step, seed)
        if RULE == "adamw":
            store_elements(second_ptr + rows, second, mask, group, column, per_row, stream + 2, step, seed)
