import pytest
import torch
from torch import Tensor

from haste import ops
from haste.ops import reference

RULES = {
    "sgd": ([0.0, 0.0], 0),
    "sgd-decay": ([0.0, 0.3], 0),
    "sgd-momentum": ([0.7, 0.3], 1),
    "adamw": ([0.8, 0.95, 1e-3, 0.0], 2),
    "adamw-decay": ([0.8, 0.95, 1e-3, 0.3], 2),
}
SHAPES = [(), (7,), (13, 11), (5, 8, 11)]


def _draw(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _arguments(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, list[Tensor]]:
    state = [_draw(shape, dtype, seed=2 + i).abs() for i in range(RULES[name][1])]
    return _draw(shape, dtype, seed=0), _draw(shape, dtype, seed=1), state


def _settings(name: str, step: int = 3) -> dict:
    return {
        "lr": torch.tensor(0.05, dtype=torch.float64),
        "step": torch.tensor(step),
        "rule": name.partition("-")[0],
        "hyper": RULES[name][0],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", RULES)
def test_rules_are_the_references(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight, grad, state = _arguments(name, shape, dtype)
    wide = [t.double() for t in (weight, grad, *state)]
    rule, hyper = name.partition("-")[0], RULES[name][0]
    expected, expected_state = reference.apply_rule(rule, hyper, wide[0], wide[1], wide[2:], 0.05, 3)
    kept = grad.clone()
    ops.update(weight, grad, state, **_settings(name))
    assert torch.equal(grad, kept)
    for found, exact in zip((weight, *state), (expected, *expected_state), strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", RULES)
def test_tiles_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for elements in (1, 30, 1 << 18):
        monkeypatch.setitem(ops.update.__globals__, "_TILE", elements)  # the function hides its module
        weight, grad, state = _arguments(name, (5, 8, 11), torch.bfloat16)
        ops.update(weight, grad, state, seed=4, layer=2, first_row=16, **_settings(name))
        results.append((weight, *state))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_bits_follow_the_global_row() -> None:
    weight, grad, state = _arguments("adamw", (6, 11), torch.bfloat16)
    whole = [t.clone() for t in (weight, *state)]
    settings = {**_settings("adamw"), "seed": 4, "layer": 2}
    ops.update(whole[0], grad, whole[1:], first_row=100, **settings)
    for first, stop in ((0, 2), (2, 6)):
        rows = slice(first, stop)
        ops.update(weight[rows], grad[rows], [s[rows] for s in state], first_row=100 + first, **settings)
    assert all(torch.equal(a, b) for a, b in zip(whole, (weight, *state), strict=True))


@pytest.mark.parametrize("name", RULES)
def test_bfloat16_is_a_neighbour_of_the_float32_result(name: str) -> None:
    weight, grad, state = _arguments(name, (40, 50), torch.bfloat16)
    wide = [t.float() for t in (weight, *state)]
    ops.update(wide[0], grad.float(), wide[1:], **_settings(name))
    ops.update(weight, grad, state, seed=1, **_settings(name))
    for found, exact in zip((weight, *state), wide, strict=True):
        spacing = 2.0**-7 * exact.abs().clamp(min=2.0**-20)  # at least a unit in the last place of bfloat16
        assert ((found.float() - exact).abs() <= spacing).all()
        away = (found.float() - exact)[found.float() != exact]
        assert (away > 0).any()
        assert (away < 0).any()


@pytest.mark.parametrize("elements", [1, 22, 1 << 17])  # one row a tile, two, all three
@pytest.mark.parametrize("name", RULES)
def test_only_the_named_rows_are_touched(name: str, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ops.update.__globals__, "_TILE", elements)
    weight, grad, state = _arguments(name, (13, 11), torch.float32)
    before, rows = [t.clone() for t in (weight, *state)], torch.tensor([9, 0, 4])
    ops.update(weight, grad[rows], state, rows=rows, **_settings(name))
    others = torch.ones(13, dtype=torch.bool)
    others[rows] = False
    dense = [t.clone() for t in before]
    ops.update(dense[0], grad, dense[1:], **_settings(name))
    for found, old, full in zip((weight, *state), before, dense, strict=True):
        assert torch.equal(found[others], old[others])
        torch.testing.assert_close(found[rows], full[rows])


@pytest.mark.parametrize("elements", [22, 1 << 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", RULES)
def test_a_rate_is_a_learning_rate_of_the_row(
    name: str, dtype: torch.dtype, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ops.update.__globals__, "_TILE", elements)
    rates = torch.ones(13)
    rates[[2, 9]] = 4.0  # a power of two: no rounding tells the two apart
    results = []
    for settings in ({}, {"lr": torch.tensor(0.2, dtype=torch.float64)}, {"rates": rates}):
        weight, grad, state = _arguments(name, (13, 11), dtype)
        ops.update(weight, grad, state, seed=3, **{**_settings(name), **settings})
        results.append([weight, *state])
    plain, faster, found = results
    assert torch.equal(found[0], torch.where(rates[:, None] == 4, faster[0], plain[0]))
    assert not torch.equal(found[0], plain[0])
    assert all(torch.equal(a, b) for a, b in zip(found[1:], plain[1:], strict=True))
    if dtype == torch.float32:
        rows = torch.tensor([9, 0, 4])
        weight, grad, state = _arguments(name, (13, 11), dtype)
        ops.update(weight, grad[rows], state, rows=rows, rates=rates, **_settings(name))
        torch.testing.assert_close(weight[rows], found[0][rows])


def test_state_may_be_narrower_than_the_weight() -> None:
    results = []
    for dtype in (torch.float64, torch.float32):
        weight, grad, state = _arguments("adamw", (5, 11), torch.float64)
        state = [s.to(dtype) for s in state]
        ops.update(weight, grad.float(), state, **_settings("adamw"))
        rows = torch.tensor([2])
        ops.update(weight, grad[rows], state, rows=rows, **_settings("adamw"))
        assert all(s.dtype == dtype for s in state)
        results.append(weight)
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rule": "adam"}, ValueError, r"rule \(adam\) must be one of sgd, adamw"),
        ({"hyper": [0.1]}, ValueError, r"hyper \(1 numbers\) must hold 2 numbers for sgd"),
        ({"hyper": [0.9, 0.0]}, ValueError, r"state \(0 tensors\) must hold 1 tensors for sgd"),
        ({"state": [torch.zeros(4, 3)]}, ValueError, r"state \(1 tensors\) must hold 0 tensors for sgd"),
        ({"weight": torch.zeros(3, 4).t()}, ValueError, r"must be contiguous and of one shape; call .contiguous"),
        ({"hyper": [0.9, 0.0], "state": [torch.zeros(4)]}, ValueError, r"must be contiguous and of one shape"),
        ({"rates": torch.ones(3)}, ValueError, r"rates \(3,\) must be contiguous, one for each of the 4 rows"),
        ({"rates": torch.ones(8)[::2]}, ValueError, r"rates \(4,\) must be contiguous"),
        ({"rates": torch.ones(4).double()}, TypeError, r"rates \(torch.float64\) must be torch.float32; convert"),
        (
            {"weight": torch.zeros(4, 3, dtype=torch.bfloat16), "rows": torch.tensor([1])},
            TypeError,
            r"row-sparse updates need float32 weights and state, got bfloat16; use float32",
        ),
    ],
)
def test_arguments_that_do_not_fit(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"weight": torch.zeros(4, 3), "grad": torch.zeros(4, 3), "state": [], **_settings("sgd"), **change}
    with pytest.raises(error, match=message):
        ops.update(**arguments)
