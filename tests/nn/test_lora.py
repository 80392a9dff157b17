"""Adapters of a transformer: what trains, what merging leaves, what is refused."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from haste.estimate import workload_of
from haste.nn import Transformer, build_model, check_encoder
from haste.optim import KahanAdamW
from transformer_cases import batch, make, make_config

KAHAN = {"name": "kahan_adamw", "lr": 1e-4}


def trained(folder: Path, steps: int = 3, **encoder: object) -> tuple[Transformer, dict[str, Tensor]]:
    """A transformer with adapters after a few steps, and its parameters before them."""
    model = build_model(make_config(folder, lora=4, **encoder), num_inputs=123, num_labels=20)
    transformer = model.encoder.train()
    assert isinstance(transformer, Transformer)
    before = {name: x.detach().clone() for name, x in transformer.named_parameters()}
    update = KahanAdamW(model.encoder_parameters(), lr=0.01)
    for _ in range(steps):
        transformer(batch()).square().sum().backward()
        update.step()
        update.zero_grad()
    return transformer.eval(), before


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_adapters_and_the_projection_train(tiny_bert: Path, checkpointing: bool) -> None:
    transformer, before = trained(tiny_bert, features=48, checkpointing=checkpointing)
    changed = {name for name, x in transformer.named_parameters() if not torch.equal(x, before[name])}
    new = {name for name in before if ".lora_A." in name or ".lora_B." in name}
    assert len(new) == 2 * 2 * 6  # of 2 layers: query, key, value, attention's output and two of the inner width
    assert changed == {*new, "projection.weight", "projection.bias"}


def test_adapters_change_nothing_before_training_and_depend_on_the_seed_alone(tiny_bert: Path) -> None:
    transformer, plain = make(tiny_bert, lora=4), make(tiny_bert)
    torch.testing.assert_close(transformer(batch()), plain(batch()))
    again = make(tiny_bert, lora=4).state_dict()
    assert all(torch.equal(x, again[name]) for name, x in transformer.state_dict().items())


def test_checkpointing_gives_adapters_the_same_gradients(tiny_bert: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        transformer = make(tiny_bert, lora=4, checkpointing=checkpointing).train()
        torch.manual_seed(3)
        transformer(batch()).square().sum().backward()
        gradients.append({name: x.grad for name, x in transformer.named_parameters() if x.requires_grad})
    assert any(gradient.any() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_merged_weights_give_the_same_features(tiny_bert: Path, dtype: str, tolerance: float) -> None:
    transformer, _ = trained(tiny_bert, dtype=dtype, optim=KAHAN)
    plain = make(tiny_bert, dtype=dtype, optim=KAHAN)
    expected = transformer(batch())
    assert (expected - plain(batch())).abs().max() > 0.1
    transformer.merge()
    torch.testing.assert_close(transformer(batch()), expected, rtol=tolerance, atol=tolerance)
    state = transformer.state_dict()
    assert {name: x.dtype for name, x in state.items()} == {name: x.dtype for name, x in plain.state_dict().items()}
    plain.load_state_dict(state)
    assert torch.equal(plain(batch()), transformer(batch()))
    assert all(x.requires_grad for x in transformer.parameters())


def test_the_estimate_counts_adapters_as_what_trains(tiny_bert: Path) -> None:
    transformer = make(tiny_bert, lora=4)
    counted, full = (
        workload_of(make_config(tiny_bert, lora=rank), num_labels=20, num_inputs=123).encoder for rank in (4, 0)
    )
    trained = sum(x.numel() for x in transformer.parameters() if x.requires_grad)
    assert counted.gradients(1) == 4 * trained
    assert counted.held()["encoder optimizer"] == 8 * trained
    assert counted.held()["encoder weights"] == full.held()["encoder weights"] + 4 * trained
    assert counted.flop(8) < full.flop(8)
    assert counted.traffic(8) < full.traffic(8)


@pytest.mark.slow
def test_compiled_adapters_train_and_merge(tiny_bert: Path) -> None:
    transformer, before = trained(tiny_bert, steps=1, compile=True)
    assert any(not torch.equal(x, before[name]) for name, x in transformer.named_parameters())
    transformer.merge()
    plain = make(tiny_bert)
    plain.load_state_dict(transformer.state_dict())
    torch.testing.assert_close(transformer(batch()), plain(batch()), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_adapted_is_refused_before_weights_are_read(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"encoder.lora \(33\) must not exceed 32, the width of the transformer"):
        check_encoder(make_config(tiny_bert, lora=33))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"encoder.lora \(4\) needs the package peft; pip install 'haste-xmc\[lora\]'"):
        check_encoder(make_config(tiny_bert, lora=4))
    check_encoder(make_config(tiny_bert))
