"""The layer between encoder and output layer: Spartex's intermediate layer and the dense bottleneck."""

import pytest
import torch

from haste import optim
from haste.nn import HeadTail
from layer_cases import dense_loss, leaf, operands


def _output(width: int, activation: str = "relu", **settings: object) -> HeadTail:
    settings = {"fan_in": 10, "group_size": 8, **settings}
    return HeadTail(37, 101, num_head_labels=16, intermediate=width, activation=activation, **settings)


def _read(output: HeadTail, features: torch.Tensor) -> torch.Tensor:
    h = features @ output.intermediate.weight.t() + output.intermediate.bias
    return h.relu() if output.activation == "relu" else h


@pytest.mark.parametrize("group_size", [1, 8])
@pytest.mark.parametrize(("width", "activation"), [(64, "relu"), (12, "none")])
def test_head_and_tail_read_the_intermediate_layer(width: int, activation: str, group_size: int) -> None:
    output = _output(width, activation, group_size=group_size)
    x = operands()
    expected = torch.cat([layer(_read(output, x.features)) for layer in output.layers()], dim=1)
    torch.testing.assert_close(output(x.features), expected)
    ours, theirs = leaf(x.features), leaf(x.features)
    loss = output.loss(ours, x.positives)
    loss.backward()
    logits = torch.cat([layer(_read(output, theirs)) for layer in output.layers()], dim=1)
    reference = dense_loss(logits, x.positives)
    torch.testing.assert_close(loss.detach(), reference.detach(), rtol=1e-5, atol=0)
    reference.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    best = logits.topk(3).values.detach()
    torch.testing.assert_close(output.topk(x.features, 3)[0], best, rtol=1e-5, atol=1e-5)


def test_a_bottleneck_is_dense_on_few_features() -> None:
    output = _output(12, "none", fan_in=0)
    assert output.tail.indices is None
    assert output.tail.in_features == output.head.in_features == 12


def test_a_fused_step_trains_the_intermediate_layer_through_backward() -> None:
    output, x = _output(64), operands()
    update = optim.SGD(output.layer_parameters(), lr=0.01)
    others = optim.AdamW(output.projection_parameters(), lr=0.01)
    assert {id(p) for p in output.projection_parameters()} == {id(p) for p in output.intermediate.parameters()}
    losses = []
    for _ in range(20):
        loss = output.step(x.features, x.positives, update)
        loss.backward()
        others.step()
        others.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    stats = output.rewire(0.3, update, regrow="gradient", batch=(x.features, x.positives), step=1)
    assert stats["fraction"] == pytest.approx(0.3)
    assert stats["inputs_used"] + stats["inputs_unused"] == 64


def test_dropout_acts_on_what_the_intermediate_layer_reads() -> None:
    output = _output(64, dropout=0.5)
    head, tail = output.split_features(torch.ones(40, 37))
    assert torch.equal(head, tail)
    assert len(head.unique(dim=0)) > 1
    output.eval()
    assert len(output.split_features(torch.ones(40, 37))[0].unique(dim=0)) == 1


def test_private_features_come_after_it() -> None:
    output = _output(64, private_features="slice")
    assert output.tail.in_features == 32
    with pytest.raises(ValueError, match=r"intermediate \(33\) must be even for private_features: slice"):
        _output(33, private_features="slice")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": -1}, r"intermediate \(-1\) must be at least 0"),
        ({"width": 8, "activation": "tanh"}, r"activation \(tanh\) must be one of relu, none"),
        ({"width": 8}, r"fan_in \(10\) must not exceed in_features \(8\)"),
    ],
)
def test_settings_that_do_not_fit(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _output(**settings)
