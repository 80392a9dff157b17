"""Nothing may depend on how many groups one chunk holds, beyond the order of float32 sums."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from haste import ops
from haste.ops import _chunks
from haste.ops import _rewire as links
from layer_cases import LAYOUTS, Operands, leaf, operands

BUDGETS = (1, 700, 2500, 1 << 21)  # elements: one group a chunk, a few, all


def _chunk_counts(x: Operands, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counts = []
    for budget in BUDGETS:
        monkeypatch.setitem(_chunks._CACHE, "cpu", budget)
        size = _chunks.groups_per_chunk(x.weight, len(x.features), x.indices)
        counts.append(-(-len(x.weight) // size))
    return counts


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_budgets_give_different_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = _chunk_counts(operands(name), monkeypatch)
    assert counts[0] == len(operands(name).weight)
    assert counts[-1] == 1
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) >= 3


@pytest.mark.parametrize("loss", ["bce", "squared_hinge"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_forward_and_gradients(name: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[list[Tensor]] = []
    x = operands(name)
    for budget in BUDGETS:
        monkeypatch.setitem(_chunks._CACHE, "cpu", budget)
        inputs = leaf(x.features), leaf(x.weight), leaf(x.bias)
        value = ops.loss(*inputs, x.indices, x.positives, num_labels=x.num_labels, loss=loss)
        logits = ops.fan_in(*inputs, x.indices, x.num_labels)
        by_loss = torch.autograd.grad(value, inputs)
        by_logits = torch.autograd.grad(logits.square().sum(), inputs)
        scores = ops.unpack_keys(ops.topk(*x.layer, num_labels=x.num_labels, k=7))
        results.append([value.detach(), logits.detach(), *by_loss, *by_logits, *scores])
    for other in results[1:]:
        for found, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-5)


def _exact_operands(name: str, seed: int) -> Operands:
    """Numbers of so few bits that every float32 sum of squared_hinge is exact, in any order."""
    x, generator = operands(name, seed=seed), torch.Generator().manual_seed(seed)
    features = torch.randint(-2, 3, x.features.shape, generator=generator).float()
    weight = torch.randint(-8, 9, x.weight.shape, generator=generator) / 8
    weight.view(-1, weight.shape[-1])[x.num_labels :] = 0
    bias = torch.zeros_like(x.bias)
    return replace(x, features=features, weight=weight, bias=bias)


@pytest.mark.parametrize("name", LAYOUTS)
def test_rounding_is_bitwise_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = _exact_operands(name, seed=3)
    results: list[list[Tensor]] = []
    for budget in BUDGETS:
        monkeypatch.setitem(_chunks._CACHE, "cpu", budget)
        weight, bias = x.weight.bfloat16(), x.bias.clone()
        states = [[torch.zeros_like(t, dtype=torch.bfloat16)] for t in (weight, bias)]
        settings: dict[str, Any] = {"lr": torch.tensor(2.0**-8), "rule": "sgd", "hyper": [0.5, 0.25], "seed": 5}
        settings |= {"weight_state": states[0], "bias_state": states[1], "loss": "squared_hinge"}
        features = leaf(x.features)
        value = ops.step(
            features, weight, bias, x.indices, x.positives, num_labels=x.num_labels, step=torch.tensor(1), **settings
        )
        value.backward()
        results.append([value.detach(), features.grad, weight, bias, *states[0], *states[1]])
    assert not torch.equal(results[0][4], torch.zeros_like(results[0][4]))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_regrowth_and_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    x = _exact_operands("gathered", seed=4)
    assert x.indices is not None
    results: list[list[Tensor]] = []
    for elements in (1, 3000, 1 << 21):
        monkeypatch.setitem(links._ELEMENTS, "cpu", elements)
        scores = ops.link_scores(x.weight, x.num_labels)
        at_random = ops.regrow_random(x.indices, 37, 9, seed=6, step=2, layer=1, first_group=5)
        by_gradient = ops.regrow_gradient(*x.layer, x.positives, num_labels=x.num_labels, most=9, loss="squared_hinge")
        results.append([scores, at_random, by_gradient])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_a_run_that_begins_at_a_later_group_draws_the_same_links() -> None:
    x = operands()
    assert x.indices is not None
    whole = ops.regrow_random(x.indices, 37, 9, seed=6, step=2)
    part = ops.regrow_random(x.indices[4:], 37, 9, seed=6, step=2, first_group=4)
    assert torch.equal(whole[4:], part)
