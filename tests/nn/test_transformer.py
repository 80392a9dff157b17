"""The transformer encoder: pooling, padding, projection, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import ModernBertConfig, ModernBertModel

from haste.config import Config
from haste.nn import Bag, Features, Transformer, build_encoder, build_model, check_encoder
from transformer_cases import LENGTHS, batch, make, make_config


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_every_document_is_pooled_over_its_own_tokens(tiny_bert: Path, pooling: str) -> None:
    encoder = make(tiny_bert, pooling=pooling)
    ids, mask = batch()
    found = encoder((ids, mask))
    assert found.shape == (3, encoder.out_features)
    for row, length in enumerate(LENGTHS):
        states = encoder.model(ids[row : row + 1, :length]).last_hidden_state[0]
        expected = {"cls": states[0], "mean": states.mean(dim=0), "max": states.amax(dim=0)}[pooling]
        torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_pads_change_nothing(tiny_bert: Path, attention: str) -> None:
    encoder = make(tiny_bert, attention=attention)
    torch.testing.assert_close(encoder(batch(extra=0)), _padded(encoder, 9), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_without_pads_no_mask_is_needed(tiny_bert: Path, pooling: str) -> None:
    encoder, ids = make(tiny_bert, pooling=pooling), batch()[0][:1]
    torch.testing.assert_close(encoder((ids,)), encoder((ids, torch.ones_like(ids))))


class Asked(TorchDispatchMode):
    """Notes operations for which the host would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal.default", "_unique2")
        if any(name in str(func) for name in waits):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(transformers.__version__ < "5", reason="masks of these versions are looked at on the host")
@pytest.mark.parametrize("changes", [{}, {"checkpointing": True}, {"autocast": True}, {"pooling": "max"}])
def test_no_step_waits_for_a_device(tiny_bert: Path, changes: dict[str, Any]) -> None:
    encoder, (ids, mask) = make(tiny_bert, **changes).train(), batch()
    for documents in ((ids, mask), (ids,)):
        with Asked() as asked:
            encoder(documents).square().sum().backward()
        assert asked.names == []
    with Asked() as asked:
        encoder.model(input_ids=ids, attention_mask=mask)
    assert asked.names != []  # what a mask of two dimensions costs


def _modernbert(folder: Path, attention: str) -> Transformer:
    """Layers of it look at 8 tokens on either side alone."""
    config = ModernBertConfig(
        vocab_size=123,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        local_attention=16,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    ModernBertModel(config).save_pretrained(folder)
    return make(folder, attention=attention)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_pads_change_nothing_where_layers_look_at_a_window(tmp_path: Path, attention: str) -> None:
    encoder = _modernbert(tmp_path, attention)
    ids = torch.randint(5, 123, (1, 40), generator=torch.Generator().manual_seed(2))
    expected, mask = encoder((ids,)), torch.nn.functional.pad(torch.ones_like(ids), (0, 9))
    found = encoder((torch.nn.functional.pad(ids, (0, 9)), mask))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    everywhere = encoder.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.mean(dim=1)
    torch.testing.assert_close(expected, everywhere, rtol=1e-4, atol=1e-5)


def _padded(encoder: Transformer, extra: int) -> Tensor:
    ids, mask = (torch.nn.functional.pad(part, (0, extra)) for part in batch())
    return encoder((ids, mask))


def test_a_width_of_its_own_is_a_projection(tiny_bert: Path) -> None:
    encoder, plain = make(tiny_bert, features=48), make(tiny_bert)
    assert (encoder.out_features, plain.out_features) == (48, 32)
    assert plain.projection is None
    assert make(tiny_bert, features=32).projection is None
    expected = plain(batch()) @ encoder.projection.weight.T + encoder.projection.bias
    torch.testing.assert_close(encoder(batch()), expected)
    again = make(tiny_bert, features=48)
    assert all(torch.equal(x, y) for x, y in zip(encoder.parameters(), again.parameters(), strict=True))


def test_checkpointing_gives_the_same_gradients(tiny_bert: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        encoder = make(tiny_bert, checkpointing=checkpointing).train()
        assert any(getattr(x, "gradient_checkpointing", False) for x in encoder.modules()) == checkpointing
        torch.manual_seed(3)
        encoder(batch()).square().sum().backward()
        gradients.append({name: x.grad for name, x in encoder.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("changes", [{}, {"checkpointing": True}, {"features": 48, "pooling": "max"}, {"lora": 2}])
def test_mixed_precision_rounds_products_alone(tiny_bert: Path, changes: dict[str, Any]) -> None:
    found = []
    for autocast in (False, True):
        encoder = make(tiny_bert, autocast=autocast, **changes)
        for parameter in encoder.parameters():  # adapters start from zero
            if not parameter.any():
                parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        assert {x.dtype for x in encoder.parameters()} == {torch.float32}
        features = encoder(batch())
        assert features.dtype == torch.float32
        features.square().sum().backward()
        gradients = [x.grad.flatten() for x in encoder.parameters() if x.grad is not None]
        found.append([features.detach(), torch.cat(gradients)])
    for exact, mixed in zip(*found, strict=True):
        assert not torch.equal(exact, mixed)
        assert (mixed - exact).norm() <= 0.02 * exact.norm()


def test_every_parameter_is_used_and_norms_do_not_decay(tiny_bert: Path) -> None:
    encoder = make(tiny_bert)
    encoder(batch()).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert getattr(parameter, "haste_role", None) is None or not parameter.haste_role.decayed
        assert hasattr(parameter, "haste_role") == (parameter.dim() == 1), name


def test_an_architecture_is_made_again_without_its_folder(tiny_bert: Path) -> None:
    encoder = make(tiny_bert, dtype="bfloat16", optim={"name": "kahan_adamw", "lr": 1e-4})
    architecture = encoder.architecture()
    assert str(tiny_bert) not in str(architecture)
    config = make_config(Path("/nowhere"), dtype="bfloat16", optim={"name": "kahan_adamw", "lr": 1e-4})
    again = build_encoder(config, 123, architecture).eval()
    again.load_state_dict(encoder.state_dict())
    assert {x.dtype for x in again.parameters()} == {torch.bfloat16}
    assert torch.equal(again(batch()), encoder(batch()))


def test_a_compiled_model_keeps_its_names(tiny_bert: Path) -> None:
    encoder, plain = make(tiny_bert, compile=True), make(tiny_bert)
    assert encoder.state_dict().keys() == plain.state_dict().keys()
    assert encoder.model._compiled_call_impl is not None


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_features(tiny_bert: Path) -> None:
    encoder, plain = make(tiny_bert, compile=True), make(tiny_bert)
    for extra in (0, 3):
        torch.testing.assert_close(encoder(batch(extra)), plain(batch(extra)), rtol=1e-4, atol=1e-5)


def test_documents_of_another_kind_are_refused(tiny_bert: Path) -> None:
    with pytest.raises(ValueError, match=r"documents must be tokens \(ids, mask\) for a transformer"):
        make(tiny_bert)(torch.zeros(2, 5))
    for encoder in (Bag(200, 8), Features(200, 8)):
        with pytest.raises(ValueError, match=r"use encoder.kind: transformer"):
            encoder(batch())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"max_tokens": 65}}, r"data.max_tokens \(65\) must not exceed 64, the positions that"),
        ({"output": {"fan_in": 33}}, r"output.fan_in \(33\) must not exceed the 32 features that labels read"),
        ({"encoder": {"name": "/nowhere"}}, r"encoder.name \(/nowhere\) must be the folder of a model with safetenso"),
        ({"encoder": {"name": "${NO_SUCH}"}}, r"encoder.name \(\$\{NO_SUCH\}\) must only use variables that are set"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_weights_are_read(
    tiny_bert: Path, changes: dict[str, Any], message: str
) -> None:
    values = make_config(tiny_bert).to_dict()
    for section, change in changes.items():
        values[section] |= change
    with pytest.raises(ValueError, match=message):
        check_encoder(Config.from_dict(values))


def test_a_decoder_is_refused(tmp_path: Path) -> None:
    from transformers import T5Config

    T5Config(d_model=16, num_layers=1, vocab_size=50).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must be an encoder; it has a decoder too"):
        check_encoder(make_config(tmp_path))


def test_weights_must_be_safetensors(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_bert / "config.json").read_bytes())
    torch.save(make(tiny_bert).model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"must be the folder of a model with safetensors"):
        make(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tiny_bert: Path) -> None:
    with pytest.raises(ValueError, match=r"num_inputs \(124 tokens\) must not exceed the 123 that the model has"):
        build_model(make_config(tiny_bert), num_inputs=124, num_labels=20)
