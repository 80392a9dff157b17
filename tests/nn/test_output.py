import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from haste import optim
from haste.nn import FanInLinear, HeadTail
from layer_cases import dense_loss, dense_weight, leaf, operands

ORDER = torch.randperm(101, generator=torch.Generator().manual_seed(5))
HEADS = [0, 16, 21, 101]
PRIVATE = ["none", "slice", "projection"]


def _output(num_head_labels: int = 16, **settings: Any) -> HeadTail:
    settings = {"label_order": ORDER, "fan_in": 11, "group_size": 8, **settings}
    output = HeadTail(36, 101, num_head_labels=num_head_labels, **settings)
    generator = torch.Generator().manual_seed(7)
    for layer in output.layers():
        layer.bias.data.view(-1)[: layer.num_labels] = torch.randn(layer.num_labels, generator=generator)
    return output


def _batch(seed: int = 1) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    x = operands(seed=seed)
    return x.features[:, :36], x.positives


def _logits_by_hand(output: HeadTail, features: Tensor) -> Tensor:
    """Return logits by label, one layer at a time from dense matrices."""
    tail, head = features.chunk(2, dim=1) if output.private_features == "slice" else (features, features)
    if output.private_features == "projection":
        head, tail = output.head_projection(features), output.tail_projection(features)
    rows = []
    for layer, x in ((output.head, head), (output.tail, tail)):
        if layer is not None:
            rows.append(x @ dense_weight(layer).t() + layer.bias.flatten()[: layer.num_labels])
    logits = torch.empty(len(features), output.num_labels)
    logits[:, output.label_order] = torch.cat(rows, dim=1)
    return logits


@pytest.mark.parametrize("private_features", PRIVATE)
@pytest.mark.parametrize("num_head_labels", HEADS)
def test_logits_loss_and_topk_are_those_of_dense_layers(num_head_labels: int, private_features: str) -> None:
    output = _output(num_head_labels, private_features=private_features)
    assert (output.head is None) == (num_head_labels == 0)
    assert (output.tail is None) == (num_head_labels == 101)
    features, positives = _batch()
    inputs = leaf(features), leaf(features)
    expected = _logits_by_hand(output, inputs[0])
    torch.testing.assert_close(output(features), expected, rtol=1e-4, atol=1e-5)

    losses = dense_loss(expected, positives), output.loss(inputs[1], positives)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    torch.testing.assert_close(output.loss(features, positives, "mean") * 13, losses[0], rtol=1e-5, atol=0)
    for value in losses:
        value.backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-5)

    scores, labels = output.topk(features, 9)
    ranked = expected.detach().sort(dim=1, descending=True, stable=True)
    assert torch.equal(labels, ranked.indices[:, :9])
    torch.testing.assert_close(scores, ranked.values[:, :9], rtol=1e-4, atol=1e-5)


def test_topk_breaks_ties_by_label_across_head_and_tail() -> None:
    output = _output()
    for layer in output.layers():
        layer.weight.data.sign_()
        layer.bias.data.zero_()
    features = _batch()[0].sign()
    excluded = torch.rand(13, 101, generator=torch.Generator().manual_seed(1)) < 0.3
    excluded[3] = True
    excluded[3, [4, 90]] = False
    offsets = torch.nn.functional.pad(excluded.sum(1).cumsum(0), (1, 0))
    scores, labels = output.topk(features, 12, exclude=(offsets, excluded.nonzero()[:, 1]))
    dense = output(features).detach().masked_fill(excluded, -torch.inf)
    for row in range(13):
        ranked = sorted((-score, label) for label, score in enumerate(dense[row].tolist()) if score > -torch.inf)[:12]
        filled = [label for _, label in ranked] + [-1] * (12 - len(ranked))
        assert labels[row].tolist() == filled
        assert scores[row].tolist() == [-s for s, _ in ranked] + [-torch.inf] * (12 - len(ranked))
    assert set(labels[3].tolist()) == {4, 90, -1}


def test_topk_of_more_than_all_labels() -> None:
    _, labels = _output().topk(_batch()[0], 120)
    assert (labels[:, 101:] == -1).all()
    assert labels[:, :101].sort(dim=1).values.tolist() == [list(range(101))] * 13


def test_projections_follow_the_seed() -> None:
    first = _output(private_features="projection", seed=1)
    torch.manual_seed(99)
    again, other = (_output(private_features="projection", seed=seed) for seed in (1, 2))
    for name in ("head_projection", "tail_projection"):
        assert torch.equal(getattr(first, name).weight, getattr(again, name).weight)
        assert not torch.equal(getattr(first, name).weight, getattr(other, name).weight)
        assert getattr(first, name).weight.abs().max() <= 36**-0.5
    assert not torch.equal(first.head_projection.weight, first.tail_projection.weight)


def test_head_and_tail_draw_different_numbers() -> None:
    output = HeadTail(40, 64, num_head_labels=32, fan_in=20, group_size=16)
    assert output.head.layer != output.tail.layer
    assert output.head.weight.haste_role.layer == 0
    assert output.tail.weight.haste_role.layer == 1


def test_dropout_is_shared_where_features_are() -> None:
    features = torch.ones(50, 36)
    shared = _output(dropout=0.5)
    head, tail = shared.split_features(features)
    assert torch.equal(head, tail)
    assert set(head.unique().tolist()) == {0.0, 2.0}
    for private in ("slice", "projection"):
        output = _output(dropout=0.5, private_features=private)
        head, tail = output.split_features(features)
        assert not torch.equal(head == 0, tail == 0)
        assert (head == 0).any()
        head, tail = output.eval().split_features(features)
        assert not (head == 0).any()


def test_slices_are_the_released_halves() -> None:
    head, tail = _output(private_features="slice").split_features(torch.arange(36.0).expand(2, 36))
    assert tail[0].tolist() == list(range(18))
    assert head[0].tolist() == list(range(18, 36))


def test_parameters_are_split_between_update_and_encoder() -> None:
    output = _output(private_features="projection")
    parts = [*output.layer_parameters(), *output.projection_parameters()]
    assert {id(p) for p in parts} == {id(p) for p in output.parameters()}
    assert len(parts) == 8
    assert not list(_output().projection_parameters())


def test_bias_starts_at_the_frequencies_of_the_labels() -> None:
    output, counts = _output(), np.arange(101)
    output.initialize_bias(counts, 300)
    bias = output(torch.zeros(1, 36))[0].detach()
    np.testing.assert_allclose(bias, np.log((counts + 0.5) / (300 - counts + 0.5)), rtol=1e-5)
    with pytest.raises(ValueError, match=r"counts \(102 values\) must hold num_labels = 101 values"):
        output.initialize_bias(np.arange(102), 300)


# Label order


def test_relabelling_permutes_the_columns() -> None:
    given = ORDER.clone()
    output, features = _output(label_order=given), _batch()[0]
    before = output(features)[:, ORDER]
    order = torch.randperm(101, generator=torch.Generator().manual_seed(8))
    output.set_label_order(order)
    assert torch.equal(output(features)[:, order], before)
    assert torch.equal(output.row_of_label[order], torch.arange(101))
    assert torch.equal(given, ORDER)


@pytest.mark.parametrize(
    "order", [torch.arange(100), torch.arange(1, 102), torch.arange(101) - 1, torch.zeros(101, dtype=torch.int64)]
)
def test_label_order_must_be_a_permutation(order: Tensor) -> None:
    message = "label_order must be a permutation of the 101 labels"
    output = _output()
    with pytest.raises(ValueError, match=message):
        output.set_label_order(order)
    assert torch.equal(output.label_order, ORDER)
    if len(order) == 101:
        with pytest.raises(ValueError, match=message):
            _output(label_order=order)


@pytest.mark.parametrize("private_features", PRIVATE)
@pytest.mark.parametrize("num_head_labels", HEADS)
def test_state_dict_through_safetensors(num_head_labels: int, private_features: str, tmp_path: Path) -> None:
    settings = {"private_features": private_features, "dtype": torch.bfloat16}
    output = _output(num_head_labels, seed=1, **settings)
    save_file(output.state_dict(), tmp_path / "output.safetensors")
    other = _output(num_head_labels, seed=2, label_order=None, **settings)
    with torch.device("meta"):
        third = _output(num_head_labels, seed=3, label_order=None, **settings)
    features = _batch()[0]
    for loaded in (other, third.to_empty(device="cpu")):
        loaded.load_state_dict(load_file(tmp_path / "output.safetensors"))
        assert torch.equal(loaded(features), output(features))
        assert torch.equal(loaded.topk(features, 3)[1], output.topk(features, 3)[1])


def test_a_saved_order_that_is_no_permutation_is_refused() -> None:
    output = _output()
    state = output.state_dict() | {"label_order": torch.zeros(101, dtype=torch.int64)}
    with pytest.raises(ValueError, match="label_order must be a permutation"):
        _output().load_state_dict(state)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_train_as_the_original(copied: Any) -> None:
    output = _output(dtype=torch.bfloat16)
    other = copied(output)
    features, positives = _batch()
    for one in (output, other):
        update = optim.SGD(one.layer_parameters(), lr=0.05, momentum=0.5, weight_decay=0.5, seed=4)
        for _ in range(3):
            one.step(features, positives, update)
    for name, tensor in output.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    other.load_state_dict(output.state_dict())  # the hook came along


# Rewiring


def test_only_the_tail_is_rewired_on_its_part_of_the_batch() -> None:
    output = _output(private_features="slice")
    features, (offsets, labels) = _batch()
    tail = copy.deepcopy(output.tail)
    head_before = output.head.weight.detach().clone()
    stats = output.rewire(0.4, regrow="gradient", batch=(features, (offsets, labels)), seed=2, step=5)
    rows = output.row_of_label[labels]
    points = torch.repeat_interleave(torch.arange(13), offsets.diff())[rows >= 16]
    tail_offsets = torch.nn.functional.pad(torch.bincount(points, minlength=13).cumsum(0), (1, 0))
    expected = tail.rewire(
        0.4, regrow="gradient", batch=(features[:, :18], (tail_offsets, rows[rows >= 16] - 16)), seed=2, step=5
    )
    assert stats == expected
    assert torch.equal(output.tail.indices, tail.indices)
    assert torch.equal(output.tail.weight, tail.weight)
    assert torch.equal(output.head.weight, head_before)


def test_there_must_be_a_sparse_tail_to_rewire() -> None:
    with pytest.raises(ValueError, match=r"num_head_labels \(101\) must be below num_labels to rewire a tail"):
        _output(101).rewire(0.5, step=1)
    with pytest.raises(ValueError, match=r"fan_in \(36\) must be below in_features to rewire; this layer is dense"):
        _output(16, fan_in=36).rewire(0.5, step=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_head_labels": 102}, r"num_head_labels \(102\) must lie between 0 and num_labels \(101\)"),
        ({"num_head_labels": -1}, r"num_head_labels \(-1\) must lie between 0 and"),
        ({"private_features": "half"}, r"private_features \(half\) must be one of none, slice, projection"),
        (
            {"in_features": 37, "private_features": "slice"},
            r"in_features \(37\) must be even for private_features: slice",
        ),
        ({"fan_in": 37}, r"fan_in \(37\) must not exceed in_features \(36\)"),
        ({"fan_in": 19, "private_features": "slice"}, r"fan_in \(19\) must not exceed in_features \(18\)"),
    ],
)
def test_settings_that_do_not_fit(settings: dict, message: str) -> None:
    arguments = {"in_features": 36, "num_labels": 101, "num_head_labels": 16, "fan_in": 11, "group_size": 8}
    with pytest.raises(ValueError, match=message):
        HeadTail(**(arguments | settings))


def test_layers_are_fan_in_linears() -> None:
    output = _output(16)
    assert [type(layer) for layer in output.layers()] == [FanInLinear, FanInLinear]
    assert output.head.indices is None
    assert output.tail.fan_in == 11


def _by_label(output: HeadTail) -> tuple[Tensor, Tensor]:
    """Return copies of weights (L, 36), zero where there is no link, and biases (L,)."""
    weights = torch.cat([dense_weight(layer) for layer in output.layers()])
    biases = torch.cat([layer.bias.detach().flatten()[: layer.num_labels] for layer in output.layers()])
    return weights[output.row_of_label], biases[output.row_of_label]


@pytest.mark.parametrize("num_head_labels", HEADS)
def test_rates_are_given_by_label(num_head_labels: int) -> None:
    rates, results = torch.linspace(0.0, 5.0, 101), []
    features, positives = _batch()
    start = _by_label(_output(num_head_labels))
    for rated in (False, True):
        output = _output(num_head_labels)
        update = optim.SGD(output.layer_parameters(), lr=0.1)
        if rated:
            output.set_rates(update, rates)
        output.step(features, positives, update)
        results.append(_by_label(output))
    (plain, plain_bias), (found, found_bias) = results
    torch.testing.assert_close(found, start[0] + rates[:, None] * (plain - start[0]), rtol=1e-4, atol=2e-6)
    assert torch.equal(found_bias, plain_bias)
    assert not torch.equal(plain_bias, start[1])
    with pytest.raises(ValueError, match=r"rates \(100,\) must hold num_labels = 101 values"):
        output.set_rates(update, rates[:100])
