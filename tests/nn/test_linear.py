import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from haste import optim
from haste.nn import FanInLinear
from haste.ops import reference
from haste.topology import check_indices
from layer_cases import LAYOUTS, LOSSES, SIZES, batch_of, dense_loss, dense_weight, leaf, linear, padding

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("name", SIZES)
def test_logits_are_those_of_a_masked_linear(name: str) -> None:
    layer, (features, _) = linear(name), batch_of(name)
    bias = layer.bias.flatten()[: layer.num_labels]
    torch.testing.assert_close(layer(features), torch.nn.functional.linear(features, dense_weight(layer), bias))


@pytest.mark.parametrize("fan_in", [None, 12])
def test_dense_layer_is_nn_linear(fan_in: int | None) -> None:
    layer, other = FanInLinear(12, 30, fan_in, 8), torch.nn.Linear(12, 30)
    assert layer.indices is None
    other.weight.data = layer.weight.data.flatten(0, 1)[:30].clone()
    other.bias.data = layer.bias.data.normal_().flatten()[:30].clone()
    x = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))
    features = leaf(x), leaf(x)
    logits = layer(features[0]), other(features[1])
    torch.testing.assert_close(*logits)
    for z in logits:
        z.square().sum().backward()
    torch.testing.assert_close(features[0].grad, features[1].grad)
    torch.testing.assert_close(layer.weight.grad.flatten(0, 1)[:30], other.weight.grad)
    torch.testing.assert_close(layer.bias.grad.flatten()[:30], other.bias.grad)


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_that_repeat_their_inputs_are_a_group(loss: str) -> None:
    shared, single = linear(loss=loss), linear("csr", loss=loss)
    rows = shared.num_labels
    single.indices.copy_(shared.indices.repeat_interleave(8, dim=0)[:rows])
    single.weight.data.copy_(shared.weight.data.flatten(0, 1)[:rows, None])
    single.bias.data.copy_(shared.bias.data.flatten()[:rows, None])
    features, positives = batch_of()
    inputs = leaf(features), leaf(features)
    updates = [optim.SGD(layer.parameters(), lr=0.01, momentum=0.5, weight_decay=0.1) for layer in (shared, single)]
    for _ in range(3):
        losses = [
            layer.step(x, positives, update) for layer, x, update in zip((shared, single), inputs, updates, strict=True)
        ]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
        for value in losses:
            value.backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(single.weight[:, 0], shared.weight.flatten(0, 1)[:rows], rtol=1e-5, atol=1e-5)
    assert torch.equal(shared.topk(features, 4)[1], single.topk(features, 4)[1])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_reductions(name: str, loss: str) -> None:
    layer, (features, positives) = linear(name, loss=loss), batch_of(name)
    expected = dense_loss(layer(features), positives, loss)
    torch.testing.assert_close(layer.loss(features, positives), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(layer.loss(features, positives, "mean"), expected / len(features), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match=r"reduction \(max\) must be sum or mean"):
        layer.loss(features, positives, "max")


@pytest.mark.parametrize("name", LAYOUTS)
def test_topk_is_a_sort_of_the_logits(name: str) -> None:
    layer, (features, _) = linear(name), batch_of(name)
    scores, labels = layer.topk(features, 5)
    expected = layer(features).detach().sort(dim=1, descending=True, stable=True)
    assert torch.equal(labels, expected.indices[:, :5])
    torch.testing.assert_close(scores, expected.values[:, :5])
    assert not scores.requires_grad


def test_topk_excludes_and_fills_up() -> None:
    layer, (features, _) = linear(), batch_of()
    offsets = torch.arange(14) * 100
    kept = 17
    labels = torch.cat([torch.arange(kept), torch.arange(kept + 1, 101)]).repeat(13)
    scores, found = layer.topk(features, 3, exclude=(offsets, labels))
    assert found.tolist() == [[kept, -1, -1]] * 13
    assert (scores[:, 1:] == -torch.inf).all()
    torch.testing.assert_close(scores[:, 0], layer(features)[:, kept].detach())
    with pytest.raises(ValueError, match=r"label \(101\) must be in \[0, 101\)"):
        layer.topk(features, 3, exclude=(offsets, labels + 1))


# Initial values


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SIZES)
def test_initial_values(name: str, dtype: torch.dtype) -> None:
    _, in_features, num_labels, fan_in, group_size = SIZES[name]
    layer = FanInLinear(in_features, num_labels, fan_in, group_size, dtype=dtype, seed=3)
    groups = -(-num_labels // group_size)
    assert layer.num_groups == groups
    assert layer.weight.shape == (groups, group_size, fan_in)
    assert layer.weight.dtype == dtype
    assert layer.bias.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not layer.bias.any()
    assert not padding(layer).any()
    assert layer.weight.flatten(0, 1)[:num_labels].ne(0).all()
    assert layer.sparsity == pytest.approx(1 - fan_in / in_features)
    if fan_in < in_features:
        check_indices(layer.indices, in_features)
        assert layer.indices.shape == (groups, fan_in)
        assert not layer.regrown.any()
        assert layer.weight.abs().max() <= fan_in**-0.5


def test_initial_distributions() -> None:
    sparse = FanInLinear(400, 600, 100, 32).weight.data.flatten(0, 1)[:600].flatten().double()
    n = sparse.numel()
    assert abs(sparse.mean().item()) < 4 * 0.1 / (3 * n) ** 0.5
    assert sparse.square().mean().item() == pytest.approx(0.01 / 3, rel=4 / n**0.5)
    dense = FanInLinear(100, 600).weight.data.flatten(0, 1)[:600].flatten().double() / 0.02
    n = dense.numel()
    assert abs(dense.mean().item()) < 4 / n**0.5
    assert dense.square().mean().item() == pytest.approx(1, rel=4 * (2 / n) ** 0.5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_initial_values_follow_seed_and_layer_alone(name: str) -> None:
    _, in_features, num_labels, fan_in, group_size = SIZES[name]

    def make(labels: int = num_labels, **settings: int) -> FanInLinear:
        return FanInLinear(in_features, labels, fan_in, group_size, **settings)

    first, again, wider = make(), make(), make(num_labels + 3 * group_size)
    whole = num_labels // group_size  # groups without padding
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.weight[:whole], wider.weight[:whole])
    for other in (make(seed=1), make(layer=1)):
        assert not torch.equal(first.weight, other.weight)
        if first.indices is not None:
            assert not torch.equal(first.indices, other.indices)
    if first.indices is not None:
        assert torch.equal(first.indices, again.indices)
        assert torch.equal(first.indices, wider.indices[: len(first.indices)])


def test_blocks_of_inputs() -> None:
    layer = FanInLinear(64, 30, 16, 8, block=8)
    blocks = layer.indices.long().view(4, 2, 8)
    assert (blocks[:, :, 0] % 8 == 0).all()
    assert torch.equal(blocks - blocks[:, :, :1], torch.arange(8).expand_as(blocks))
    assert (blocks[:, 0, 0] < blocks[:, 1, 0]).all()


def test_bias_starts_at_the_label_frequencies() -> None:
    counts = np.arange(101) % 40
    layer = linear()
    layer.initialize_bias(counts, 200)
    bias = layer.bias.data.flatten()
    np.testing.assert_allclose(bias[:101], np.log((counts + 0.5) / (200 - counts + 0.5)), rtol=1e-6)
    assert not bias[101:].any()
    hinge = linear(loss="squared_hinge")
    hinge.initialize_bias(counts, 200)
    assert (hinge.bias.data.flatten()[:101] == -1).all()
    assert not padding(hinge).any()
    with pytest.raises(ValueError, match=r"counts \(100 values\) must hold num_labels = 101 values"):
        layer.initialize_bias(counts[:-1], 200)
    with pytest.raises(ValueError, match=r"counts \(0 to 39\) must lie between 0 and num_points \(30\)"):
        layer.initialize_bias(counts, 30)


# Copies


def _assert_same(layer: FanInLinear, other: FanInLinear) -> None:
    assert layer.state_dict().keys() == other.state_dict().keys()
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
        assert tensor.dtype == other.state_dict()[name].dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_state_dict_through_safetensors(name: str, assign: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    layer, other = linear(name, seed=1, layer=3, dtype=dtype), linear(name, seed=2, layer=3, dtype=dtype)
    if layer.indices is not None:
        layer.rewire(0.3, seed=1, step=1)
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"), assign=assign)
    _assert_same(layer, other)
    assert other.weight.haste_role == layer.weight.haste_role
    assert other.bias.haste_role == layer.bias.haste_role


def _through_meta(layer: FanInLinear) -> FanInLinear:
    with torch.device("meta"):
        other = linear(layer=3)
    other.to_empty(device="cpu").load_state_dict(layer.state_dict())
    return other


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), _through_meta],
    ids=["deepcopy", "pickle", "meta"],
)
def test_copies_train_as_the_original(copied: object) -> None:
    layer = linear(layer=3)
    other = copied(layer)
    _assert_same(layer, other)
    features, positives = batch_of()
    for one in (layer, other):
        assert not one.bias.haste_role.decayed
        update = optim.SGD(one.parameters(), lr=0.1, momentum=0.5, weight_decay=0.5, seed=4)
        for _ in range(3):
            one.step(features, positives, update)
    _assert_same(layer, other)


def test_converting_keeps_roles_and_trains() -> None:
    layer = linear(layer=3).to(torch.bfloat16)
    assert layer.weight.dtype == layer.bias.dtype == torch.bfloat16
    assert layer.weight.haste_role.layer == layer.bias.haste_role.layer == 3
    assert not layer.bias.haste_role.decayed
    features, positives = batch_of()
    update = optim.AdamW(layer.parameters(), lr=0.01, weight_decay=0.1)
    losses = [layer.step(features, positives, update).item() for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    assert not padding(layer).any()


def test_a_layer_describes_itself() -> None:
    assert "in_features=37, num_labels=101, fan_in=11, group_size=8" in repr(linear())


# Misuse


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        ((384, 10, 512), {}, ValueError, r"fan_in \(512\) must not exceed in_features \(384\); lower fan_in or widen"),
        ((384, 10, 0), {}, ValueError, r"fan_in \(0\) must be at least 1"),
        ((0, 10), {}, ValueError, r"in_features \(0\) must be at least 1"),
        ((4, 0), {}, ValueError, r"num_labels \(0\) must be at least 1"),
        ((4, 10, 2, 0), {}, ValueError, r"group_size \(0\) must be at least 1"),
        ((4, 2**31), {}, ValueError, r"num_labels \(2147483648\) must be below 2\^31"),
        ((4, 10, 2), {"dtype": torch.float16}, TypeError, r"dtype \(torch.float16\) must be one of torch.float32"),
        ((4, 10, 2), {"loss": "softmax"}, ValueError, r"loss \(softmax\) must be one of bce, squared_hinge"),
        ((32, 10, 12), {"block": 8}, ValueError, r"block \(8\) must divide in_features \(32\) and fan_in \(12\)"),
        ((32, 10, 12), {"block": 0}, ValueError, r"block \(0\) must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit(arguments: tuple, settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FanInLinear(*arguments, **settings)


@pytest.mark.parametrize("width", [36, 38])
def test_features_of_another_width(width: int) -> None:
    layer, (_, positives) = linear(), batch_of()
    features = torch.zeros(13, width)
    update = optim.SGD(layer.parameters(), lr=0.1)
    calls = (
        lambda: layer(features),
        lambda: layer.loss(features, positives),
        lambda: layer.step(features, positives, update),
        lambda: layer.topk(features, 3),
        lambda: layer.rewire(0.5, step=1, regrow="gradient", batch=(features, positives)),
    )
    for call in calls:
        with pytest.raises(
            ValueError, match=rf"features \(13, {width}\) must have shape \(batch, 37\), in_features of"
        ):
            call()
    layer.state_dict()  # still usable


def test_a_loss_from_before_a_step_cannot_be_differentiated_any_more() -> None:
    layer, (features, positives) = linear(), batch_of()
    value = layer.loss(features, positives)
    layer.step(features, positives, optim.SGD(layer.parameters(), lr=0.1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_the_dense_form_of_a_layer_is_the_references() -> None:
    layer, (features, _) = linear(), batch_of()
    expected = reference.fan_in(features, layer.weight, layer.bias, layer.indices, layer.num_labels)
    assert layer(features).shape == (13, 101)
    torch.testing.assert_close(layer(features), expected)
