import pytest
import torch

from haste import ops
from haste.ops import reference
from layer_cases import LOSSES, SIZES, operands

SPARSE = [name for name in SIZES if "dense" not in name]


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SIZES)
def test_link_scores_are_the_references(name: str, weight_dtype: torch.dtype) -> None:
    x = operands(name, weight_dtype=weight_dtype)
    weight = x.weight.clone()
    scores = ops.link_scores(x.weight, x.num_labels)
    assert torch.equal(x.weight, weight)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, reference.link_scores(x.weight, x.num_labels), rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", SPARSE)
def test_gradient_regrowth_is_the_references(name: str, loss: str) -> None:
    x = operands(name)
    assert x.indices is not None
    most = x.features.shape[1] - x.indices.shape[1]
    arguments = (*x.layer, *x.positives, x.num_labels, loss)
    found = ops.regrow_gradient(*x.layer, x.positives, num_labels=x.num_labels, most=most, loss=loss)
    assert torch.equal(found, reference.regrow_gradient(*x.to(torch.float64).layer, *arguments[4:], most))
    fewer = ops.regrow_gradient(*x.layer, x.positives, num_labels=x.num_labels, most=min(3, most), loss=loss)
    assert torch.equal(fewer, found[:, : min(3, most)])


def test_inputs_without_gradient_are_taken_in_order() -> None:
    x = operands()
    x.features.zero_()
    assert x.indices is not None
    found = ops.regrow_gradient(*x.layer, x.positives, num_labels=x.num_labels, most=26)
    for held, new in zip(x.indices.tolist(), found.tolist(), strict=True):
        assert new == sorted(set(range(37)) - set(held))


@pytest.mark.parametrize("most", [1, 5, 26])
def test_random_regrowth_takes_what_is_not_held(most: int) -> None:
    x = operands()
    assert x.indices is not None
    found = ops.regrow_random(x.indices, 37, most, seed=3, step=10)
    assert found.shape == (13, most)
    for held, new in zip(x.indices.tolist(), found.tolist(), strict=True):
        assert len(set(new)) == most
        assert set(new) <= set(range(37)) - set(held)


def test_random_regrowth_is_uniform() -> None:
    indices = torch.arange(4).expand(20_000, 4).to(torch.int16).contiguous()
    found = ops.regrow_random(indices, 20, 2, seed=3, step=10)
    counts = torch.bincount(found.flatten(), minlength=20)
    assert not counts[:4].any()
    expected = found.numel() / 16
    assert ((counts[4:] - expected).abs() < 5 * expected**0.5).all()
    first = torch.bincount(found[:, 0], minlength=20)[4:]
    assert ((first - expected / 2).abs() < 5 * (expected / 2) ** 0.5).all()


@pytest.mark.parametrize("change", [{"seed": 4}, {"step": 11}, {"layer": 1}])
def test_random_regrowth_follows_its_coordinates(change: dict) -> None:
    x = operands()
    assert x.indices is not None
    where = {"seed": 3, "step": 10, "layer": 0}
    found = ops.regrow_random(x.indices, 37, 5, **where)
    assert torch.equal(ops.regrow_random(x.indices, 37, 5, **where), found)
    assert not torch.equal(ops.regrow_random(x.indices, 37, 5, **(where | change)), found)


def test_random_regrowth_takes_any_64_bit_seed() -> None:
    x = operands()
    assert x.indices is not None
    found = ops.regrow_random(x.indices, 37, 5, seed=2**64 - 1, step=1)
    assert torch.equal(found, ops.regrow_random(x.indices, 37, 5, seed=-1, step=1))
