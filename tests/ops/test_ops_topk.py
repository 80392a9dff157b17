from dataclasses import replace

import pytest
import torch
from torch import Tensor

from haste import ops
from haste.ops import _chunks, reference
from layer_cases import LAYOUTS, SIZES, Operands, operands


def _integer_scores(name: str, seed: int = 0) -> Operands:
    """Operands with scores that are small integers: exact in any order of sums, and full of ties."""
    x = operands(name, seed=seed)
    weight, features = x.weight.sign(), x.features.sign()
    return replace(x, weight=weight, features=features, bias=torch.zeros_like(x.bias))


def _sorted_dense(scores: Tensor, k: int) -> list[list[tuple[float, int]]]:
    """Rank by (score descending, label ascending) with Python's sort; fill up with (-inf, -1)."""
    rows = []
    for row in scores.tolist():
        ranked = sorted((-score, label) for label, score in enumerate(row) if score > -torch.inf)[:k]
        rows.append([(-s, label) for s, label in ranked] + [(-torch.inf, -1)] * (k - len(ranked)))
    return rows


def _pairs(keys: Tensor) -> list[list[tuple[float, int]]]:
    scores, labels = ops.unpack_keys(keys)
    return [list(zip(s, c, strict=True)) for s, c in zip(scores.tolist(), labels.tolist(), strict=True)]


@pytest.mark.parametrize("budget", [1, 2500, 1 << 21])
@pytest.mark.parametrize("k", [1, 5, 150])
@pytest.mark.parametrize("name", SIZES)
def test_ties_go_to_the_lower_label(name: str, k: int, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_chunks._CACHE, "cpu", budget)
    x = _integer_scores(name)
    scores = reference.fan_in(*x.layer, x.num_labels)
    assert _pairs(ops.topk(*x.layer, num_labels=x.num_labels, k=k)) == _sorted_dense(scores, k)


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_scores_equal(name: str) -> None:
    x = operands(name)
    x = replace(x, weight=torch.zeros_like(x.weight), bias=torch.full_like(x.bias, -3.0))
    pairs = _pairs(ops.topk(*x.layer, num_labels=x.num_labels, k=4))
    assert pairs == [[(-3.0, 0), (-3.0, 1), (-3.0, 2), (-3.0, 3)]] * len(x.features)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SIZES)
def test_scores_are_the_references(name: str, weight_dtype: torch.dtype) -> None:
    x = operands(name, weight_dtype=weight_dtype)
    rest = (x.num_labels, 5, None, None)
    scores, labels = ops.unpack_keys(ops.topk(*x.layer, num_labels=x.num_labels, k=5))
    expected, truth = ops.unpack_keys(reference.topk(*x.to(torch.float64).layer, None, *rest))
    assert torch.equal(labels, truth)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_excluded_labels_never_come_back(name: str) -> None:
    x = _integer_scores(name)
    scores = reference.fan_in(*x.layer, x.num_labels)
    excluded = torch.rand(scores.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    excluded[1], excluded[2], excluded[2, 57] = False, True, False  # none; all but one
    scores[excluded] = -torch.inf
    offsets = torch.nn.functional.pad(excluded.sum(1).cumsum(0), (1, 0))
    keys = ops.topk(*x.layer, num_labels=x.num_labels, k=6, exclude=(offsets, excluded.nonzero()[:, 1]))
    pairs = _pairs(keys)
    assert pairs == _sorted_dense(scores, 6)
    assert [label for _, label in pairs[2]] == [57, -1, -1, -1, -1, -1]


def test_padded_rows_never_come_back() -> None:
    x = operands()
    low = replace(x, bias=torch.full_like(x.bias, -1e4))
    low.bias.view(-1)[x.num_labels :] = 1e4
    _, labels = ops.unpack_keys(ops.topk(*low.layer, num_labels=x.num_labels, k=104))
    assert labels.max() == x.num_labels - 1
    assert (labels == -1).sum() == 3 * len(x.features)


def test_row_labels_name_the_rows() -> None:
    x = _integer_scores("gathered")
    order = torch.randperm(x.num_labels, generator=torch.Generator().manual_seed(1))
    scores = torch.empty(len(x.features), x.num_labels)
    scores[:, order] = reference.fan_in(*x.layer, x.num_labels)
    keys = ops.topk(*x.layer, num_labels=x.num_labels, k=9, row_labels=order)
    assert _pairs(keys) == _sorted_dense(scores, 9)


@pytest.mark.parametrize("name", LAYOUTS)
def test_nan_raises(name: str) -> None:
    x = operands(name)
    x.weight[3, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="scores must not be NaN; the features or the weights of this layer are not"):
        ops.topk(*x.layer, num_labels=x.num_labels, k=5)


@pytest.mark.parametrize("k", [0, -1])
def test_k_must_be_positive(k: int) -> None:
    x = operands()
    with pytest.raises(ValueError, match=rf"k \({k}\) must be at least 1"):
        ops.topk(*x.layer, num_labels=x.num_labels, k=k)


def test_keys_order_as_score_then_label() -> None:
    tiny = torch.finfo(torch.float32).tiny
    scores = torch.tensor([-torch.inf, -3e38, -1.0, -tiny, 0.0, tiny, 1e-3, 1.0, 3e38, torch.inf])
    keys = ops.pack_keys(scores[:, None], torch.tensor([2**31 - 1, 7, 0])).view(-1)
    assert torch.equal(keys.sort().values, keys)
    assert keys.unique().numel() == keys.numel()


def test_keys_unpack_to_what_was_packed() -> None:
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 1e3
    labels = torch.arange(50) * (2**31 // 51)
    found = ops.unpack_keys(ops.pack_keys(scores, labels))
    assert torch.equal(found[0], scores)
    assert torch.equal(found[1], labels)


def test_both_zeros_are_one_score() -> None:
    keys = ops.pack_keys(torch.tensor([0.0, -0.0]), torch.tensor([5, 5]))
    assert keys[0] == keys[1]
