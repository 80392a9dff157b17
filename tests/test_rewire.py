import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from haste import optim
from haste.nn import FanInLinear
from haste.ops import _rewire as links
from haste.ops import reference
from haste.rewire import Schedule
from haste.topology import check_indices
from layer_cases import batch_of, linear, padding

SPARSE = ["gathered", "csr", "groups-of-16", "groups-of-64", "one-label", "one-input"]
Links = dict[tuple[int, int], Tensor]


def _by_link(layer: FanInLinear, tensor: Tensor) -> Links:
    """Return the numbers (S,) of every link (group, input)."""
    return {
        (k, i): tensor[k, :, f].detach().clone()
        for k, row in enumerate(layer.indices.tolist())
        for f, i in enumerate(row)
    }


def _held(layer: FanInLinear) -> list[set[int]]:
    return [set(row) for row in layer.indices.tolist()]


def _weakest(layer: FanInLinear, count: int) -> list[set[int]]:
    """Return the ``count`` inputs of every group with the lowest mean |weight|."""
    scores = reference.link_scores(layer.weight, layer.num_labels)
    order = scores.argsort(dim=1, stable=True)[:, :count]
    return [set(row) for row in layer.indices.gather(1, order).tolist()]


def _train(layer: FanInLinear, optimizer: torch.optim.Optimizer, name: str, steps: int = 3) -> None:
    for seed in range(steps):
        features, positives = batch_of(name, seed)
        optimizer.zero_grad()
        layer.loss(features, positives).backward()
        optimizer.step()
    optimizer.zero_grad()


OPTIMIZERS: dict[str, Any] = {
    "none": None,
    "sgd": lambda p: optim.SGD(p, lr=0.01, momentum=0.9),
    "sgd-bf16": lambda p: optim.SGD(p, lr=0.01, momentum=0.9, state_dtype=torch.bfloat16),
    "adamw": lambda p: optim.AdamW(p, lr=0.01),
    "torch-sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "torch-adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
}
_FIRST = {"momentum_buffer", "exp_avg"}
_SECOND = {"exp_avg_sq", "max_exp_avg_sq"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("regrow", ["random", "gradient"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", SPARSE)
def test_survivors_keep_everything(name: str, optimizer: str, regrow: str, dtype: torch.dtype) -> None:
    layer = linear(name, dtype=dtype)
    update = None if optimizer == "none" else OPTIMIZERS[optimizer](layer.parameters())
    if update is not None:
        _train(layer, update, name)
    state = {} if update is None else {n: t for n, t in update.state[layer.weight].items() if n != "step"}
    assert update is None or state
    before = {n: _by_link(layer, t) for n, t in state.items()} | {"weight": _by_link(layer, layer.weight)}
    held = _held(layer)
    in_features, fan_in = layer.in_features, layer.fan_in
    count = min(int(0.4 * fan_in), in_features - fan_in)
    pruned = _weakest(layer, count)

    stats = layer.rewire(0.4, update, regrow=regrow, batch=batch_of(name), seed=3, step=7)

    check_indices(layer.indices, in_features)
    assert stats["fraction"] == pytest.approx(count / fan_in)
    fresh = [
        {i for i, new in zip(row, flags, strict=True) if new}
        for row, flags in zip(layer.indices.tolist(), layer.regrown.tolist(), strict=True)
    ]
    for now, then, gone, new in zip(_held(layer), held, pruned, fresh, strict=True):
        assert now == (then - gone) | new
        assert not new & then
        assert len(new) == count
    tensors = {n: _by_link(layer, t) for n, t in state.items()} | {"weight": _by_link(layer, layer.weight)}
    for which, by_link in tensors.items():
        for group in range(layer.num_groups):
            survivors = [i for i in held[group] if i not in pruned[group]]
            kept = torch.stack([before[which][group, i].float() for i in survivors])
            for i in survivors:
                assert torch.equal(by_link[group, i], before[which][group, i]), (which, group, i)
            for i in fresh[group]:
                expected = kept.mean(0) if which in _SECOND else torch.zeros(layer.group_size)
                assert which in _SECOND or which in _FIRST or which == "weight"
                torch.testing.assert_close(
                    by_link[group, i].float(), expected.to(dtype=torch.float32), rtol=4e-3, atol=0
                )
    assert not padding(layer).any()


@pytest.mark.parametrize("name", ["gathered", "csr"])
def test_a_pending_gradient_moves_along(name: str) -> None:
    layer, (features, positives) = linear(name), batch_of(name)
    layer.loss(features, positives).backward()
    before = _by_link(layer, layer.weight.grad)
    layer.rewire(0.5, seed=1, step=1)
    for link, grad in _by_link(layer, layer.weight.grad).items():
        assert torch.equal(grad, before.get(link, torch.zeros_like(grad)))


@pytest.mark.parametrize(
    ("fraction", "in_features", "fan_in", "expected"),
    [(0.0, 30, 10, 0), (0.1, 30, 10, 1), (0.55, 30, 10, 5), (1.0, 30, 10, 10), (0.9, 12, 10, 2), (1.0, 11, 10, 1)],
)
def test_how_many_links_a_group_replaces(fraction: float, in_features: int, fan_in: int, expected: int) -> None:
    layer = FanInLinear(in_features, 26, fan_in, 4)
    held = _held(layer)
    stats = layer.rewire(fraction, seed=1, step=1)
    assert [len(now - then) for now, then in zip(_held(layer), held, strict=True)] == [expected] * 7
    assert stats["fraction"] == pytest.approx(expected / fan_in)


def test_nothing_happens_without_a_fraction() -> None:
    layer = linear()
    before = copy.deepcopy(layer.state_dict())
    assert layer.rewire(0.0, step=1)["fraction"] == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


def test_replacing_every_link_takes_only_inputs_not_held() -> None:
    layer = FanInLinear(30, 26, 10, 4)
    held = _held(layer)
    update = optim.AdamW(layer.parameters(), lr=0.1)
    update.arguments(layer.weight)
    update.state[layer.weight]["exp_avg_sq"].fill_(2.0)
    layer.rewire(1.0, update, seed=1, step=1)
    assert not any(now & then for now, then in zip(_held(layer), held, strict=True))
    assert not update.state[layer.weight]["exp_avg_sq"].any()  # no survivors to take the mean of
    assert not layer.weight.any()


def test_threshold_prunes_what_is_below_it() -> None:
    layer = linear()
    scores = reference.link_scores(layer.weight, layer.num_labels)
    threshold = scores.flatten().kthvalue(40).values.item()
    below = (scores < threshold).sum(1)
    held = _held(layer)
    stats = layer.rewire(0.9, threshold=threshold, seed=1, step=1)
    assert [len(now - then) for now, then in zip(_held(layer), held, strict=True)] == below.tolist()
    assert below.sum() == 39
    assert stats["fraction"] == pytest.approx(39 / scores.numel())


def test_global_scope_prunes_the_lowest_of_all_groups() -> None:
    layer = linear()
    layer.weight.data[2] *= 1e-4  # a rare group, which the released rule wipes out
    layer.weight.data[5] *= 100
    scores = reference.link_scores(layer.weight, layer.num_labels)
    count = int(0.3 * scores.numel())
    cut = scores.flatten().sort().values[count]
    expected = (scores < cut).sum(1).tolist()
    held = _held(layer)
    stats = layer.rewire(0.3, scope="global", seed=1, step=1)
    assert [len(now - then) for now, then in zip(_held(layer), held, strict=True)] == expected
    assert expected[2] == 11
    assert expected[5] == 0
    assert not _held(layer)[2] & held[2]
    assert stats["fraction"] == pytest.approx(count / scores.numel())


def test_global_scope_replaces_no_more_than_there_are_inputs() -> None:
    layer = FanInLinear(13, 101, 11, 8)
    layer.weight.data[2] *= 1e-4
    held = _held(layer)
    stats = layer.rewire(0.3, scope="global", seed=1, step=1)
    replaced = [len(now - then) for now, then in zip(_held(layer), held, strict=True)]
    assert replaced[2] == 2
    assert max(replaced) == 2
    assert stats["fraction"] == pytest.approx(sum(replaced) / (13 * 11))


@pytest.mark.parametrize("loss", ["bce", "squared_hinge"])
@pytest.mark.parametrize("name", SPARSE)
def test_gradient_regrowth_takes_the_largest(name: str, loss: str) -> None:
    layer, (features, positives) = linear(name, loss=loss), batch_of(name)
    held = _held(layer)
    count = min(int(0.6 * layer.fan_in), layer.in_features - layer.fan_in)
    operands = (features.double(), layer.weight.double(), layer.bias.double(), layer.indices)
    expected = reference.regrow_gradient(*operands, *positives, layer.num_labels, loss, count)
    layer.rewire(0.6, regrow="gradient", batch=(features, positives), seed=1, step=1)
    for now, then, best in zip(_held(layer), held, expected.tolist(), strict=True):
        assert now - then == set(best)


@pytest.mark.parametrize("regrow", ["random", "gradient"])
@pytest.mark.parametrize("init", ["zero", "uniform"])
def test_runs_of_groups_do_not_matter(regrow: str, init: str, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for elements in (1, 20_000, 1 << 21):
        monkeypatch.setitem(links._ELEMENTS, "cpu", elements)
        layer = linear(dtype=torch.bfloat16)
        update = optim.AdamW(layer.parameters(), lr=0.01)
        _train(layer, update, "gathered")
        layer.rewire(0.4, update, regrow=regrow, init=init, batch=batch_of(), seed=2, step=9)
        states.append([*layer.state_dict().values(), *update.state[layer.weight].values()])
    for other in states[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, states[0], strict=True))


def test_new_links_are_uniform_when_asked() -> None:
    layer = FanInLinear(200, 403, 64, 8)
    update = optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    update.arguments(layer.weight)
    update.state[layer.weight]["momentum_buffer"].fill_(1.0)
    layer.rewire(0.5, update, init="uniform", seed=1, step=4)
    fresh = layer.regrown[:, None, :].expand_as(layer.weight)
    new = layer.weight.data[fresh].view(layer.num_groups, -1)[:-1].flatten().double()
    assert not update.state[layer.weight]["momentum_buffer"][fresh].any()
    assert new.abs().max() <= 1 / 8
    assert abs(new.mean().item()) < 4 / 8 / math.sqrt(3 * new.numel())
    assert new.square().mean().item() == pytest.approx(1 / 64 / 3, rel=4 / math.sqrt(new.numel()))
    assert not padding(layer).any()


def test_random_regrowth_follows_seed_and_step() -> None:
    found = []
    for seed, step in ((1, 1), (1, 1), (2, 1), (1, 2)):
        layer = linear()
        layer.rewire(0.5, seed=seed, step=step)
        found.append(layer.indices)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[3])


def test_many_rewirings_reach_every_input() -> None:
    layer = FanInLinear(37, 40, 5, 8)
    seen = set().union(*_held(layer))
    for step in range(1, 40):
        layer.weight.data.normal_()
        stats = layer.rewire(0.5, seed=1, step=step)
        check_indices(layer.indices, 37)
        seen |= set().union(*_held(layer))
    assert seen == set(range(37))
    used = set().union(*_held(layer))
    assert stats["inputs_used"] == len(used)
    assert stats["inputs_unused"] == 37 - len(used)


def test_statistics_count_the_survivors_of_the_last_regrowth() -> None:
    layer = linear()
    assert layer.rewire(0.4, seed=1, step=1)["survivors"] == 1.0  # nothing had been regrown
    fresh = layer.regrown.clone()
    assert fresh.sum() == 13 * 4
    # Of the four new links of every group, all of weight zero, two get weights that will stay.
    where = fresh.nonzero().view(13, 4, 2)[:, :2].reshape(-1, 2)
    layer.weight.data[where[:, 0], :, where[:, 1]] = 9.0
    layer.weight.data.view(-1, 11)[layer.num_labels :] = 0
    stats = layer.rewire(0.2, seed=1, step=2)  # the other two go
    assert stats["survivors"] == 0.5
    assert layer.rewire(0.2, seed=1, step=3)["survivors"] == 0.0  # the two new ones, still zero, go again


def test_training_goes_on_where_it_was() -> None:
    layer, (features, positives) = linear(), batch_of()
    update = optim.AdamW(layer.parameters(), lr=0.02)
    for step in range(1, 31):
        loss = layer.step(features, positives, update).item()
        if step == 1:
            first = loss
        if step % 10 == 0:
            before = layer.loss(features, positives).item()
            layer.rewire(0.2, update, regrow="gradient", batch=(features, positives), seed=0, step=step)
            assert layer.loss(features, positives).item() < 1.5 * before
    assert loss < 0.5 * first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 1.1}, r"fraction \(1.1\) must be between 0 and 1"),
        ({"fraction": -0.1}, r"fraction \(-0.1\) must be between 0 and 1"),
        ({"regrow": "best"}, r"regrow \(best\) must be one of random, gradient"),
        ({"scope": "layer"}, r"scope \(layer\) must be one of group, global"),
        ({"init": "normal"}, r"init \(normal\) must be one of zero, uniform"),
        ({"threshold": -1.0}, r"threshold \(-1.0\) must not be negative"),
        ({"regrow": "gradient"}, r"regrow \(gradient\) needs batch=\(features, positives\); pass one, or use regrow="),
        (
            {"regrow": "gradient", "batch": (torch.zeros(2, 37), (torch.tensor([0, 1, 1]), torch.tensor([101])))},
            r"positives label \(101\) must be in \[0, 101\)",
        ),
    ],
)
def test_settings_that_do_not_fit(settings: dict, message: str) -> None:
    layer = linear()
    before = layer.indices.clone()
    with pytest.raises(ValueError, match=message):
        layer.rewire(**({"fraction": 0.5, "step": 1} | settings))
    assert torch.equal(layer.indices, before)
    layer.state_dict()  # still usable


def test_a_dense_layer_cannot_be_rewired() -> None:
    with pytest.raises(ValueError, match=r"fan_in \(37\) must be below in_features to rewire; this layer is dense"):
        linear("dense").rewire(0.5, step=1)


def test_an_optimizer_of_other_parameters() -> None:
    layer, other = linear(), linear()
    with pytest.raises(ValueError, match="optimizer must hold the weight of this layer; pass the one that trains it"):
        layer.rewire(0.5, torch.optim.AdamW(other.parameters()), step=1)


# Schedule


def _schedule(**settings: Any) -> Schedule:
    return Schedule(**({"interval": 10, "fraction": 0.4, "end": 0.5, "total_steps": 100} | settings))


def test_the_fraction_falls_by_a_cosine() -> None:
    due = {step: _schedule().fraction_at(step) for step in range(101)}
    expected = {step: 0.2 * (1 + math.cos(math.pi * step / 50)) for step in (10, 20, 30, 40)}
    assert {step: fraction for step, fraction in due.items() if fraction} == pytest.approx(expected)


def test_the_fraction_may_stay_constant() -> None:
    due = {step: _schedule(schedule="constant").fraction_at(step) for step in range(101)}
    assert {step: fraction for step, fraction in due.items() if fraction} == dict.fromkeys((10, 20, 30, 40), 0.4)


def test_interval_0_never_rewires() -> None:
    assert not any(_schedule(interval=0).fraction_at(step) for step in range(101))


def test_a_threshold_falls_as_the_fraction_does() -> None:
    schedule = _schedule(fraction=0.0, threshold=0.02)
    steps = [t for t in range(1, 200) if schedule.due(t)]
    assert steps == [t for t in range(1, 200) if _schedule(fraction=0.3).due(t)]
    fractions = [_schedule(fraction=0.3).fraction_at(t) for t in steps]
    assert [schedule.threshold_at(t) for t in steps] == pytest.approx([f * 0.02 / 0.3 for f in fractions])
    assert _schedule(threshold=0.02, schedule="constant").threshold_at(steps[-1]) == 0.02
    assert _schedule().threshold_at(steps[0]) is None
    assert not any(_schedule(fraction=0.0).due(t) for t in range(200))
