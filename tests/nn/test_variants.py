"""Variants of the sparse layer: whole blocks of inputs, repeated inputs, and what new links take over."""

import pytest
import torch

from haste import optim, topology
from haste.nn import FanInLinear
from layer_cases import dense_loss, leaf, random_positives

H, L, F = 48, 101, 16


def _batch(seed: int = 0) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(13, H, generator=generator), random_positives(13, L, generator)


def _dense(layer: FanInLinear) -> torch.Tensor:
    """Weights as a matrix; those of a repeated input are added up."""
    rows = layer.weight.data.view(-1, layer.fan_in)
    columns = layer.indices.long().repeat_interleave(layer.group_size, dim=0)
    return torch.zeros(len(rows), H).scatter_add_(1, columns, rows)[:L]


def _assert_trains_as_dense(layer: FanInLinear) -> None:
    features, positives = _batch()
    ours, theirs = leaf(features), leaf(features)
    loss = layer.loss(ours, positives)
    loss.backward()
    reference = dense_loss(theirs @ _dense(layer).t() + layer.bias.data.flatten()[:L], positives)
    torch.testing.assert_close(loss.detach(), reference.detach(), rtol=1e-5, atol=0)
    reference.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    step = leaf(features)
    weight = layer.weight.data - 0.01 * layer.weight.grad
    layer.zero_grad()
    update = optim.SGD(layer.parameters(), lr=0.01)
    layer.step(step, positives, update).backward()
    torch.testing.assert_close(layer.weight.data, weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(step.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def _blocks(layer: FanInLinear) -> torch.Tensor:
    """The block of every slot; asserts that blocks are whole and aligned."""
    units = layer.indices.view(len(layer.indices), -1, layer.block).long()
    assert torch.equal(units, units[..., :1] + torch.arange(layer.block))
    assert not (units[..., 0] % layer.block).any()
    return units[..., 0] // layer.block


@pytest.mark.parametrize("scope", ["group", "global"])
@pytest.mark.parametrize("group_size", [1, 8, 16])
def test_blocks_are_pruned_and_regrown_whole(group_size: int, scope: str) -> None:
    layer = FanInLinear(H, L, F, group_size, block=4)
    _assert_trains_as_dense(layer)
    update = optim.SGD(layer.parameters(), lr=0.01, momentum=0.9)
    before = _blocks(layer)
    scores = layer.weight.data.abs().sum(1).view(len(before), -1, 4).sum(2)  # of whole groups as of their means
    stats = layer.rewire(0.25, update, scope=scope, step=1)
    after = _blocks(layer)
    assert stats["fraction"] == pytest.approx(0.25, abs=0.02)
    for group, (old, new) in enumerate(zip(before.tolist(), after.tolist(), strict=True)):
        gone = set(old) - set(new)
        assert len(set(new)) == len(new) == F // 4
        if scope == "group":
            assert gone == {old[int(scores[group].argmin())]}
    _assert_trains_as_dense(layer)


@pytest.mark.parametrize("group_size", [1, 8])
def test_repeated_inputs_add_up(group_size: int) -> None:
    layer = FanInLinear(H, L, F, group_size, duplicates=True, seed=3)
    distinct = [len(set(row)) for row in layer.indices.tolist()]
    # F draws of H leave H (1 - (1 - 1 / H)^F) distinct inputs on average: 13.7 of 16.
    assert min(distinct) < F
    assert sum(distinct) / len(distinct) == pytest.approx(H * (1 - (1 - 1 / H) ** F), abs=0.9)
    _assert_trains_as_dense(layer)
    stats = layer.rewire(1.0, step=1)
    assert stats["fraction"] == 1.0  # there is no shortage of inputs where they may repeat
    assert not layer.weight.data.any()
    topology.check_indices(layer.indices, H, duplicates=True)
    with pytest.raises(ValueError, match="must be sorted and without duplicates"):
        topology.check_indices(layer.indices, H)


def test_repeated_inputs_are_drawn_uniformly() -> None:
    rows = topology.draw_indices(10, 4000, 5, seed=1, duplicates=True)
    assert (torch.bincount(rows.flatten().long(), minlength=10) - 2000).abs().max() < 200
    part = topology.draw_indices(10, 7, 5, seed=1, duplicates=True, first_group=3)
    assert torch.equal(part, rows[3:10])


def test_gradient_regrowth_needs_single_distinct_inputs() -> None:
    for settings in ({"block": 4}, {"duplicates": True}):
        with pytest.raises(ValueError, match=r"regrow \(gradient\) must be random for a layer with block"):
            FanInLinear(H, L, F, 8, **settings).rewire(0.3, regrow="gradient", batch=_batch(), step=1)


@pytest.mark.parametrize("state", ["mean", "zero", "keep"])
def test_what_the_optimizer_knows_of_new_links(state: str) -> None:
    layer = FanInLinear(H, L, F, 8)
    update = optim.AdamW(layer.parameters(), lr=0.01)
    for seed in range(3):
        layer.step(*_batch(seed), update)
    moments = {name: update.state[layer.weight][name] for name in ("exp_avg", "exp_avg_sq")}
    before = {name: moment.clone() for name, moment in moments.items()}
    layer.rewire(0.4, update, state=state, step=1)
    fresh = layer.regrown[:, None, :].expand_as(layer.weight)
    assert not layer.weight.data[fresh].any()
    first, second = (moment[fresh] for moment in moments.values())
    if state == "keep":
        assert first.abs().sum() > 0
        for name, moment in moments.items():  # nothing is lost, only sorted along
            assert torch.equal(moment.sort(dim=2).values, before[name].sort(dim=2).values)
    else:
        assert not first.any()
        assert bool(second.any()) == (state == "mean")
    with pytest.raises(ValueError, match=r"state \(forget\) must be one of mean, zero, keep"):
        layer.rewire(0.4, state="forget", step=2)
