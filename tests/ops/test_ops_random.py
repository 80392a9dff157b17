import math

import pytest
import torch
from torch import Tensor

from haste.ops import _random as random
from haste.ops import reference

CPU = torch.device("cpu")
WHERE = {"seed": 0x123456789ABCDEF0, "step": 77, "layer": 3, "stream": random.SECOND_MOMENT}

# Random123's known answers of philox4x32-10: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    c, k = _words(counter), _words(key)
    assert reference.philox(c, k) == _words(expected)
    block = c[0] + (c[1] << 32)
    block -= (block >> 63) << 64  # the same 64 bits as int64
    layer, stream = divmod(c[2], 4)
    words = random.philox(torch.tensor([block]), seed=k[0] + (k[1] << 32), step=c[3], layer=layer, stream=stream)
    assert tuple(words[0].tolist()) == _words(expected)


def test_blocks_beyond_32_bits() -> None:
    first_row, columns = 2**29 + 3, 70  # 9 blocks a row: the rows begin at block 4.8 * 10^9
    bits = random.bits16(first_row, 2, columns, device=CPU, **WHERE)
    expected = [[reference.bits16(first_row + r, f, columns, **WHERE) for f in range(columns)] for r in range(2)]
    assert first_row * 9 > 2**32
    assert bits.tolist() == expected


@pytest.mark.parametrize("columns", [1, 2, 7, 8, 9, 16, 37])
@pytest.mark.parametrize("first_row", [0, 5])
def test_bit_layout(first_row: int, columns: int) -> None:
    bits = random.bits16(first_row, 3, columns, device=CPU, **WHERE)
    assert bits.dtype == torch.int32
    assert bits.tolist() == [
        [reference.bits16(first_row + r, f, columns, **WHERE) for f in range(columns)] for r in range(3)
    ]


def test_seeds_are_taken_modulo_2_to_the_64() -> None:
    for seed in (-1, 2**63, 2**64 - 1, 0, 2**63 - 1):
        assert -(2**63) <= random.signed(seed) < 2**63
        blocks = torch.arange(3)
        assert torch.equal(
            random.philox(blocks, seed=seed, step=1), random.philox(blocks, seed=random.signed(seed), step=1)
        )


@pytest.mark.parametrize("draw", [random.bits16, random.words32, random.uniform, random.normal])
def test_rows_do_not_depend_on_where_a_call_begins(draw: object) -> None:
    whole = draw(0, 9, 11, device=CPU, **WHERE)
    parts = [draw(first, rows, 11, device=CPU, **WHERE) for first, rows in ((0, 4), (4, 1), (5, 4))]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("change", [{"seed": 1}, {"step": 78}, {"layer": 2}, {"stream": random.STRUCTURE}])
def test_every_coordinate_matters(change: dict) -> None:
    assert not torch.equal(
        random.words32(0, 2, 8, device=CPU, **WHERE), random.words32(0, 2, 8, device=CPU, **{**WHERE, **change})
    )


def test_bits_are_uniform() -> None:
    bits = random.bits16(0, 1000, 100, device=CPU, **WHERE).double()
    standard_error = 2**16 / math.sqrt(12 * bits.numel())
    assert abs(bits.mean().item() - (2**16 - 1) / 2) < 4 * standard_error
    assert 0 <= bits.min() < 20
    assert 2**16 - 20 < bits.max() < 2**16


def test_uniform_stays_inside_the_open_interval() -> None:
    numbers = random.uniform(0, 1000, 100, device=CPU, **WHERE).double()
    assert 0 < numbers.min() < 1e-3
    assert 1 - 1e-3 < numbers.max() < 1
    assert abs(numbers.mean().item() - 0.5) < 4 / math.sqrt(12 * numbers.numel())
    odd = numbers * 2**24
    assert torch.equal(odd % 2, torch.ones_like(odd))


def test_uniform_of_the_extreme_words_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "words32", lambda *_, **__: torch.tensor([[0, 2**32 - 1]]))
    assert random.uniform(0, 1, 2, device=CPU, **WHERE).tolist() == [[2**-24, 1 - 2**-24]]


def test_normal_is_standard_normal() -> None:
    numbers = random.normal(0, 1000, 100, device=CPU, **WHERE).double()
    n = numbers.numel()
    assert abs(numbers.mean().item()) < 4 / math.sqrt(n)
    assert abs(numbers.square().mean().item() - 1) < 4 * math.sqrt(2 / n)
    assert abs(numbers.pow(4).mean().item() - 3) < 4 * math.sqrt(96 / n)


# Stochastic rounding


def _round_many(value: float, times: int) -> Tensor:
    bits = random.bits16(0, times // 64, 64, device=CPU, **WHERE)
    return random.round_stochastically(torch.full(bits.shape, value), bits).double()


@pytest.mark.parametrize("value", [1.001, -1.001, 0.3, -0.3, 3e-5, -7.77e10, 1e-40, 2.0**-126 * 1.3])
def test_rounding_is_unbiased(value: float) -> None:
    exact = torch.tensor(value).double().item()
    rounded = _round_many(value, 1 << 18)
    below, above = rounded.unique().tolist()  # the two neighbours, nothing else
    assert below < exact < above
    share = (exact - below) / (above - below)
    standard_error = (above - below) * math.sqrt(share * (1 - share) / rounded.numel())
    assert abs(rounded.mean().item() - exact) < 4 * standard_error


def test_rounding_probability_is_the_discarded_fraction_exactly() -> None:
    value = torch.tensor(1.0).view(torch.int32) + 0x4001  # 0x4001 / 2^16 of the way to the next bfloat16
    every = torch.arange(2**16, dtype=torch.int32)
    rounded = random.round_stochastically(value.view(torch.float32).expand(2**16), every)
    assert (rounded > 1).sum() == 0x4001


def test_representable_values_are_kept_whatever_the_bits() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    values = every[every.isfinite()]
    for bits in (0, 1, 2**15, 2**16 - 1):
        rounded = random.round_stochastically(values.float(), torch.full(values.shape, bits, dtype=torch.int32))
        assert torch.equal(rounded.view(torch.int16), values.view(torch.int16))


def test_infinities_and_nan_are_kept() -> None:
    patterns = torch.tensor([0x7F800000, -0x800000, 0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000], dtype=torch.int32)
    values = patterns.view(torch.float32)
    for bits in (0, 2**16 - 1):
        rounded = random.round_stochastically(values, torch.full(values.shape, bits, dtype=torch.int32))
        assert rounded[0] == torch.inf
        assert rounded[1] == -torch.inf
        assert rounded[2:].isnan().all()


def test_small_changes_move_a_weight_only_with_stochastic_rounding() -> None:
    step = 2.0**-12  # a sixteenth of what rounds to the nearest bfloat16 above 1
    nearest = torch.ones(64, dtype=torch.bfloat16)
    stochastic = nearest.clone()
    for count in range(64):
        nearest = (nearest.float() + step).bfloat16()
        bits = random.bits16(0, 1, 64, device=CPU, **{**WHERE, "step": count})[0]
        stochastic = random.round_stochastically(stochastic.float() + step, bits)
    assert torch.equal(nearest, torch.ones(64, dtype=torch.bfloat16))
    moved = stochastic.double() - 1
    # 64 steps of 2^-12, each up by 2^-7 with probability 2^-5: mean 2^-6, variance below 64 2^-5 2^-14.
    standard_error = math.sqrt(2 * 2**-14 / 64)
    assert abs(moved.mean().item() - 2**-6) < 4 * standard_error
