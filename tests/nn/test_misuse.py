"""Every misuse of the fused step is one clear error, and changes nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from haste import ops, optim
from haste.nn import FanInLinear, HeadTail
from layer_cases import batch_of, linear


def _ready(name: str = "gathered") -> tuple[FanInLinear, optim.SGD]:
    layer = linear(name)
    return layer, optim.SGD(layer.parameters(), lr=0.1, momentum=0.5)


def _head_tail() -> tuple[HeadTail, optim.SGD]:
    output = HeadTail(37, 101, num_head_labels=16, fan_in=11, group_size=8)
    return output, optim.SGD(output.layer_parameters(), lr=0.1)


@pytest.mark.parametrize("which", ["weight", "bias"])
def test_a_gradient_that_would_be_lost(which: str) -> None:
    (layer, update), (features, positives) = _ready(), batch_of()
    getattr(layer, which).grad = torch.zeros_like(getattr(layer, which))
    with pytest.raises(RuntimeError, match=r"step must not meet a gradient in weight.grad.*call update.zero_grad\(\)"):
        layer.step(features, positives, update)
    update.zero_grad()
    layer.step(features, positives, update)


@pytest.mark.parametrize("disabled", [torch.no_grad, torch.inference_mode])
def test_gradients_disabled(disabled: type) -> None:
    (layer, update), (features, positives) = _ready(), batch_of()
    with disabled(), pytest.raises(RuntimeError, match="step must run with gradients enabled; use topk to predict"):
        layer.step(features, positives, update)


def test_inside_reentrant_checkpointing() -> None:
    (layer, update), (features, positives) = _ready(), batch_of()
    with pytest.raises(RuntimeError, match="step must run with gradients enabled"):
        checkpoint(lambda x: layer.step(x, positives, update), features.requires_grad_(), use_reentrant=True)


@pytest.mark.parametrize("ready", [_ready, _head_tail])
def test_inside_checkpointing(ready: object) -> None:
    (layer, update), (features, positives) = ready(), batch_of()

    def trained(x: torch.Tensor) -> torch.Tensor:
        # Something saved after the step makes the recomputation pass through it.
        return layer.step(x.sin(), positives, update).exp() * 2

    value = checkpoint(trained, features.requires_grad_(), use_reentrant=False)
    with pytest.raises(RuntimeError, match="step must not run inside a backward pass: activation checkpointing"):
        value.backward()


def test_checkpointing_the_encoder_alone() -> None:
    (layer, update), (features, positives) = _ready(), batch_of()
    encoder = nn.Linear(37, 37)
    hidden = checkpoint(lambda x: encoder(x).tanh(), features, use_reentrant=False)
    layer.step(hidden, positives, update).backward()
    assert encoder.weight.grad.abs().sum() > 0
    assert update.state[layer.weight]["step"] == 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("ready", [_ready, _head_tail])
def test_features_that_are_not_finite(ready: object, bad: float) -> None:
    (layer, update), (features, positives) = ready(), batch_of()
    layer.step(features, positives, update)
    before = [p.detach().clone() for p in layer.parameters()]
    features[4, 2] = bad
    with pytest.raises(ValueError, match=r"features \(row 4\) must be finite; nothing was updated"):
        layer.step(features, positives, update)
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    assert all(state["step"] == 1 for state in update.state.values())
    layer.state_dict()  # still usable
    layer.step(torch.ones(13, 37), positives, update)
    assert all(state["step"] == 2 for state in update.state.values())


@pytest.mark.parametrize("ready", [_ready, _head_tail])
def test_positives_that_do_not_fit_change_nothing(ready: object) -> None:
    (layer, update), (features, (offsets, labels)) = ready(), batch_of()
    before = [p.detach().clone() for p in layer.parameters()]
    labels[-1] = 101
    with pytest.raises(ValueError, match=r"positives label \(101\) must be in \[0, 101\); drop labels that the layer"):
        layer.step(features, (offsets, labels), update)
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    layer.state_dict()


def test_one_part_of_a_projection_that_is_not_finite_changes_neither_layer() -> None:
    output = HeadTail(37, 101, num_head_labels=16, fan_in=11, group_size=8, private_features="projection")
    update = optim.SGD(output.layer_parameters(), lr=0.1)
    output.tail_projection.weight.data.mul_(3e38)
    features, positives = batch_of()
    before = output.head.weight.detach().clone()
    with pytest.raises(ValueError, match="must be finite; nothing was updated"):
        output.step(features, positives, update)
    assert torch.equal(output.head.weight, before)


class _Interrupted(Exception):
    pass


@pytest.mark.parametrize("error", [_Interrupted, KeyboardInterrupt, RuntimeError])
def test_a_failure_half_way_makes_the_layer_unusable(error: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ops._chunks._CACHE, "cpu", 1)
    (layer, update), (features, positives) = _ready(), batch_of()
    module, tiles = ops.step.__globals__, []
    update_tile = module["update_tile"]

    def failing(*args: object, **kwargs: object) -> None:
        tiles.append(1)
        if len(tiles) == 5:
            raise error("out of luck")
        update_tile(*args, **kwargs)

    before = layer.weight.detach().clone()
    with monkeypatch.context() as patch:
        patch.setitem(module, "update_tile", failing)
        with pytest.raises(error):
            layer.step(features, positives, update)
    assert not torch.equal(layer.weight, before)  # some of it is updated
    message = (
        rf"this layer must not be used any more: a step or rewiring failed half-way \({error.__name__}.*last checkp"
    )
    for refused in (
        layer.state_dict,
        lambda: layer.step(features, positives, update),
        lambda: layer.rewire(0.1, step=1),
        nn.Sequential(layer).state_dict,
    ):
        with pytest.raises(RuntimeError, match=message):
            refused()


def test_a_rewiring_that_fails_half_way_makes_the_layer_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = _ready()
    monkeypatch.setattr("haste.ops._rewire.replace_links", lambda *_, **__: (_ for _ in ()).throw(_Interrupted()))
    with pytest.raises(_Interrupted):
        layer.rewire(0.5, step=1)
    with pytest.raises(RuntimeError, match="a step or rewiring failed half-way"):
        layer.state_dict()


def test_a_loaded_checkpoint_makes_the_layer_usable_again() -> None:
    (layer, update), (features, positives) = _ready(), batch_of()
    saved = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer._failure = "RuntimeError: out of luck"
    with pytest.raises(RuntimeError, match="must not be used any more"):
        layer.step(features, positives, update)
    layer.load_state_dict(saved)
    layer.step(features, positives, update)


def test_another_optimizer() -> None:
    layer, (features, positives) = linear(), batch_of()
    with pytest.raises(TypeError, match=r"update \(Adam\) must be haste.optim.SGD or haste.optim.AdamW; with any"):
        layer.step(features, positives, torch.optim.Adam(layer.parameters()))


def test_an_optimizer_of_other_parameters() -> None:
    (layer, _), (_, foreign), (features, positives) = _ready(), _ready(), batch_of()
    before = layer.weight.detach().clone()
    for update in (foreign, optim.SGD([layer.weight], lr=0.1)):
        with pytest.raises(
            ValueError, match=r"update must hold the parameters of the layer.*SGD\(layer.parameters\(\)"
        ):
            layer.step(features, positives, update)
    assert torch.equal(layer.weight, before)


def test_an_optimizer_of_the_head_alone_changes_neither_layer() -> None:
    (output, _), (features, positives) = _head_tail(), batch_of()
    before = output.head.weight.detach().clone()
    with pytest.raises(ValueError, match="update must hold the parameters of the layer"):
        output.step(features, positives, optim.SGD(output.head.parameters(), lr=0.1))
    assert torch.equal(output.head.weight, before)


_RANKS = """
import multiprocessing, sys, torch

def train(rank):
    from haste import nn, optim
    torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
    layer = nn.FanInLinear(8, 6, 4, 2)
    update = optim.SGD(layer.parameters(), lr=0.1)
    features, positives = torch.ones(2, 8), (torch.tensor([0, 1, 1]), torch.tensor([3]))
    layer.loss(features, positives).backward()
    update.zero_grad()
    try:
        layer.step(features, positives, update)
    except RuntimeError as error:
        open(f"{sys.argv[1]}.{rank}", "w").write(str(error))
    torch.distributed.destroy_process_group()

if __name__ == "__main__":
    ranks = [multiprocessing.get_context("fork").Process(target=train, args=(rank,)) for rank in range(2)]
    for rank in ranks: rank.start()
    for rank in ranks: rank.join()
    sys.exit(max(rank.exitcode for rank in ranks))
"""


def test_more_than_one_rank(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(_RANKS)
    command = [sys.executable, str(script), str(tmp_path / "rendezvous")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    message = "step must not run on 2 replicas: they would diverge; train with loss() there"
    assert [(tmp_path / f"rendezvous.{rank}").read_text() for rank in range(2)] == [message] * 2


def test_a_rewiring_must_say_its_step() -> None:
    """Without one, every call would draw the same candidates."""
    layer, (output, _) = _ready()[0], _head_tail()
    for rewire in (layer.rewire, output.rewire):
        with pytest.raises(TypeError, match="'step'"):
            rewire(0.5)
