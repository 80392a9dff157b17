"""Counter-based random bits: Philox4x32-10, stochastic rounding, uniform numbers.

Every random number is a function of (seed, step, layer, stream, row, column), never of chunks, threads or ranks:

    key     = seed (64 bits)
    counter = (c0, c1, c2, c3): c0, c1 = low and high word of the block number, c2 = 4 * layer + stream, c3 = step

Philox is of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

import math

import torch
from torch import Tensor

WEIGHT, FIRST_MOMENT, SECOND_MOMENT, STRUCTURE = range(4)  # streams
_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


def philox(blocks: Tensor, *, seed: int, step: int, layer: int = 0, stream: int = WEIGHT) -> Tensor:
    """Return four random 32-bit words for each block: Philox4x32-10.

    Args:
        blocks: block numbers, any shape, int64, >= 0.
        seed: the key, taken modulo 2^64.
        step: counter word c3, taken modulo 2^32.
        layer, stream: counter word c2 = 4 * layer + stream.

    Returns:
        int64 tensor of shape (*blocks.shape, 4), values in [0, 2^32).
    """
    # Products of two 32-bit numbers fill 64 bits: int64 wraps, and a masked arithmetic shift recovers the high word.
    c0, c1 = blocks & _MASK, (blocks >> 32) & _MASK
    c2, c3 = torch.full_like(c0, (4 * layer + stream) & _MASK), torch.full_like(c0, step & _MASK)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0 = ((p1 >> 32) & _MASK).bitwise_xor_(c1).bitwise_xor_(k0)
        c2 = ((p0 >> 32) & _MASK).bitwise_xor_(c3).bitwise_xor_(k1)
        c1, c3 = p1.bitwise_and_(_MASK), p0.bitwise_and_(_MASK)
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1)


def signed(seed: int) -> int:
    """Return the seed modulo 2^64 as the int64 that operators take."""
    return (seed + 2**63) % 2**64 - 2**63


def _row_blocks(first_row: int, rows: int, per_row: int, device: torch.device) -> Tensor:
    return torch.arange(first_row * per_row, (first_row + rows) * per_row, dtype=torch.int64, device=device)


def bits16(
    first_row: int,
    rows: int,
    columns: int,
    *,
    seed: int,
    step: int,
    layer: int,
    stream: int,
    device: torch.device,
) -> Tensor:
    """Return 16 random bits for each element of rows [first_row, first_row + rows): int32 (rows, columns).

    Element (row, f) takes the 16 bits of word ``(f % 8) // 2`` of block ``row * ceil(columns / 8) + f // 8``, the low
    half for even f, so that one Philox call serves 8 elements.
    """
    per_row = -(-columns // 8)
    words = philox(_row_blocks(first_row, rows, per_row, device), seed=seed, step=step, layer=layer, stream=stream)
    halves = words.to(torch.int32).view(torch.int16)  # little-endian: the low half of every word first
    return halves.view(rows, per_row * 8)[:, :columns].to(torch.int32).bitwise_and_(0xFFFF)


def uniform(
    first_row: int,
    rows: int,
    columns: int,
    *,
    seed: int,
    step: int,
    layer: int,
    stream: int,
    device: torch.device,
) -> Tensor:
    """Return uniform numbers in (0, 1), odd multiples of 2^-24, all exact: float32 (rows, columns).

    Element (row, f) takes word ``f % 4`` of block ``row * ceil(columns / 4) + f // 4``.
    """
    words = words32(first_row, rows, columns, seed=seed, step=step, layer=layer, stream=stream, device=device)
    return (words >> 9).to(torch.float32).mul_(2.0**-23).add_(2.0**-24)


def words32(
    first_row: int,
    rows: int,
    columns: int,
    *,
    seed: int,
    step: int,
    layer: int,
    stream: int,
    device: torch.device,
) -> Tensor:
    """Return one random 32-bit word for each element, int64 (rows, columns), laid out as in `uniform`."""
    per_row = -(-columns // 4)
    words = philox(_row_blocks(first_row, rows, per_row, device), seed=seed, step=step, layer=layer, stream=stream)
    return words.view(rows, per_row * 4)[:, :columns]


def normal(
    first_row: int,
    rows: int,
    columns: int,
    *,
    seed: int,
    step: int,
    layer: int,
    stream: int,
    device: torch.device,
) -> Tensor:
    """Return standard normal numbers, float32 (rows, columns): Box-Muller on two uniform numbers an element."""
    u = uniform(first_row, rows, 2 * columns, seed=seed, step=step, layer=layer, stream=stream, device=device)
    radius, angle = u[:, :columns].log().mul_(-2).sqrt_(), u[:, columns:] * (2 * math.pi)
    return radius.mul_(angle.cos_())


def round_stochastically(values: Tensor, bits: Tensor) -> Tensor:
    """Round float32 to bfloat16, up with probability equal to the discarded fraction of a unit in the last place.

    Adding 16 uniform bits below the kept mantissa and truncating is unbiased for both signs, exact for representable
    values. Infinities and NaN take the ordinary conversion, for which adding bits could carry into the sign.

    Args:
        values: float32, any shape.
        bits: int32 of the same shape, in [0, 2^16).

    Returns:
        bfloat16 tensor of the same shape.
    """
    raised = values.contiguous().view(torch.int32) + bits
    rounded = raised.bitwise_and_(-0x10000).view(torch.float32).to(torch.bfloat16)
    return torch.where(values.isfinite(), rounded, values.to(torch.bfloat16))
