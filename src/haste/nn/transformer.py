"""Transformers: any encoder of the package `transformers`, its outputs pooled to one row a document."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from haste.config import Config, Encoder, expand_path
from haste.nn.encoders import Documents
from haste.nn.lora import add_adapters, check_lora, merge_adapters
from haste.optim._rule import Role

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

POOLINGS = ("cls", "mean", "max")
_MOST_LAYERS = 1000  # of a description; the sizes of its tensors are checked against their file
_ELSEWHERE = {  # keys that would make transformers look for another model
    "auto_map",
    "backbone",
    "backbone_config",
    "quantization_config",
    "use_pretrained_backbone",
    "use_timm_backbone",
}
_ALL_TO_ALL = ("albert", "bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")  # layers' attention
_NOT_KEPT = ("_name_or_path", "auto_map", "dtype", "torch_dtype")  # of an architecture: where it was, and code


class Transformer(nn.Module):
    """A transformer, its last hidden states pooled over the tokens of a document, perhaps projected.

        h = pool_t model(ids, mask)_t;    cls: t = 0, mean: over the mask in float32, max: over the mask
        h = W h + b                       where ``features`` is another width than the model's

    Args:
        model: of `transformers`; its pooler, which nothing here reads, is dropped.
        num_inputs: tokens of the vocabulary.
        features: width of the result; 0 = the model's.
        pooling: cls, mean or max.
        lora: rank of the adapters (LoRA) that are trained in place of the model's weights; 0 = all weights are.
        autocast: compute the model in bfloat16 from float32 weights (mixed precision); norms and sums stay float32.
        seed: of the initial values of adapters and of the projection, N(0, 1 / width).

    Biases and norms (parameters of one dimension) have no weight decay with the optimizers of `haste.optim`.

    Raises:
        ValueError: a pooling that there is not, more tokens than the model has embeddings for, or no package `peft`
            for adapters.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        num_inputs: int,
        features: int = 0,
        pooling: str = "mean",
        *,
        lora: int = 0,
        autocast: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling ({pooling}) must be one of {', '.join(POOLINGS)}")
        known = model.config.vocab_size
        if num_inputs > known:
            raise ValueError(
                f"num_inputs ({num_inputs:,} tokens) must not exceed the {known:,} that the model has embeddings for; "
                "give the tokenizer that it was trained with"
            )
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        self._free = _masks_are_free(model)
        if lora:
            add_adapters(model, lora, seed=seed)
        self.lora, self.autocast = lora, autocast
        width = model.config.hidden_size
        self.model, self.pooling, self.num_inputs = model, pooling, num_inputs
        self.out_features = features or width
        self.projection = None
        if self.out_features != width:
            self.projection = nn.Linear(width, self.out_features)
            with torch.no_grad():
                self.projection.weight.normal_(0, width**-0.5, generator=torch.Generator().manual_seed(seed))
                self.projection.bias.zero_()
        for parameter in self.parameters():
            if parameter.dim() < 2:
                parameter.haste_role = Role(decayed=False)  # type: ignore[attr-defined]

    def forward(self, batch: Documents) -> Tensor:
        """Encode (ids (B, T), mask (B, T)), int64, padded behind: (B, features) in the dtype of the weights.

        Without pads the mask may be left out, (ids,): attention then has none, and may be a faster kernel.

        Raises:
            ValueError: documents that are not tokens.
        """
        if isinstance(batch, Tensor) or len(batch) > 2:
            raise ValueError("documents must be tokens (ids, mask) for a transformer; encode texts with its tokenizer")
        ids, mask = batch if len(batch) == 2 else (batch[0], None)
        with torch.autocast(ids.device.type, torch.bfloat16) if self.autocast else contextlib.nullcontext():
            states = self.model(input_ids=ids, attention_mask=self._shown(ids, mask)).last_hidden_state
        if self.autocast:
            states = states.float()  # of a model that ends with another layer than a norm
        if self.pooling == "cls":
            h = states[:, 0]
        elif self.pooling == "mean":
            weights = torch.ones_like(ids, dtype=torch.float32) if mask is None else mask.float()
            h = torch.einsum("bth,bt->bh", states.float(), weights / weights.sum(dim=1, keepdim=True).clamp(min=1))
            h = h.to(states.dtype)
        else:
            h = (states if mask is None else states.masked_fill(mask[:, :, None] == 0, -torch.inf)).amax(dim=1)
        return h if self.projection is None else self.projection(h)

    def _shown(self, ids: Tensor, mask: Tensor | None) -> Tensor | None:
        """The mask as the model gets it: none where nothing is masked, else the shape for which no step waits."""
        compiled = self.model._compiled_call_impl is not None
        if compiled or not self._free:  # where it is compiled nobody looks at (B, T), and one graph does for all
            return torch.ones_like(ids) if mask is None else mask
        return None if mask is None else mask[:, None, None, :].bool()

    def cast(self, dtype: torch.dtype) -> None:
        """Give the parameters a dtype; buffers, such as the frequencies of rotary positions, keep theirs."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)

    def merge(self) -> None:
        """Add adapters to the weights they belong to, in place: a transformer without any, of the same features."""
        if self.lora:
            merge_adapters(self.model)
            self.lora = 0

    def architecture(self) -> dict[str, Any]:
        """Sizes and kind of the model as plain values, from which `build_transformer` makes it again."""
        values = json.loads(self.model.config.to_json_string(use_diff=False))
        return {name: value for name, value in values.items() if name not in _NOT_KEPT}


def build_transformer(config: Config, num_inputs: int, architecture: dict[str, Any] | None = None) -> Transformer:
    """Return the transformer of a configuration, float32: pretrained, or of an architecture with random weights.

    Adapters (encoder.lora) are of a pretrained one alone: those of a trained model are in its weights.

    Args:
        config: keys encoder, run.seed.
        num_inputs: tokens of the vocabulary.
        architecture: what `Transformer.architecture` returned; None = load encoder.name.

    Raises:
        ValueError: a model that cannot be loaded, or has no weights in safetensors.
    """
    settings = config.encoder
    options: dict[str, Any] = {"trust_remote_code": False, "dtype": torch.float32}
    if settings.attention != "auto":
        options["attn_implementation"] = settings.attention
    if architecture is not None:
        return _of_architecture(settings, num_inputs, architecture, options)
    with torch.random.fork_rng(devices=[]), _quiet(), _clear(settings.name):
        from transformers import AutoModel

        torch.manual_seed(config.run.seed)  # of weights that the files lack
        model = AutoModel.from_pretrained(_place(settings.name), use_safetensors=True, **options)
    if settings.checkpointing:
        checkpoint_layers(model)
    if settings.compile:
        model.compile()
    return Transformer(
        model,
        num_inputs,
        settings.features,
        settings.pooling,
        lora=settings.lora,
        autocast=settings.autocast,
        seed=config.run.seed,
    )


def _of_architecture(
    settings: Encoder, num_inputs: int, architecture: dict[str, Any], options: dict[str, Any]
) -> Transformer:
    """A transformer of a stranger's description perhaps: for predictions, so without what only training needs."""
    if options.get("attn_implementation") == "flash_attention_2":  # a package that training had
        del options["attn_implementation"]
    with torch.random.fork_rng(devices=[]), _quiet():
        from transformers import AutoModel

        try:
            model = AutoModel.from_config(_config_of(architecture), **options)
            return Transformer(model, num_inputs, settings.features, settings.pooling, autocast=settings.autocast)
        except Exception as error:  # noqa: BLE001, whatever transformers makes of a damaged description
            kind = architecture.get("model_type")
            raise ValueError(f"the encoder's architecture (model_type {kind}) cannot be made; {_line(error)}") from None


@torch.no_grad()
def _masks_are_free(model: PreTrainedModel) -> bool:
    """Whether no mask at all and masks of (B, 1, 1, T) mean what they say, and cost no look at their values.

    Of masks (B, T) `transformers` asks whether all is set, for which a GPU has to be waited for in every step. From
    version 5 on it hands the other shape to attention as it is: right for models all of whose layers look at all
    tokens, with attention of PyTorch's own. Older versions refuse it, so it is tried.
    """
    if model.config.model_type not in _ALL_TO_ALL or model.config._attn_implementation != "sdpa":
        return False
    ids = torch.arange(6, device=model.device).view(2, 3) % model.config.vocab_size
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]], device=model.device)
    was_training = model.training
    model.eval()
    try:  # forward, for calling a compiled model would compile it
        expected = model.forward(input_ids=ids, attention_mask=mask).last_hidden_state
        found = model.forward(input_ids=ids, attention_mask=mask[:, None, None, :].bool()).last_hidden_state
        return torch.allclose(found[mask > 0], expected[mask > 0], rtol=1e-2, atol=1e-2)
    except Exception:  # noqa: BLE001, what a model says of a shape that it does not know
        return False
    finally:
        model.train(was_training)


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Let a model of `transformers` keep one activation a layer and compute the others again."""
    kwargs = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(kwargs)
    else:  # before 5.23
        model.gradient_checkpointing_enable(kwargs)


def check_transformer(config: Config) -> int:
    """Look at what encoder.name describes, without its weights; returns the width of the features.

    Raises:
        ValueError: there is no such model or no package `transformers`, the model has a decoder, data.max_tokens
            is more than it has positions for, or encoder.lora is too high or lacks the package `peft`.
    """
    settings = config.encoder
    described = _described(settings.name)
    if described.is_encoder_decoder:
        raise ValueError(f"encoder.name ({settings.name}) must be an encoder; it has a decoder too")
    if settings.lora:
        check_lora(settings.lora, described.hidden_size)
    with _quiet(), _clear(settings.name), torch.device("meta"):
        from transformers import AutoModel

        model = AutoModel.from_config(described, trust_remote_code=False)
    positions = _positions(model)
    if positions is not None and config.data.max_tokens > positions:
        raise ValueError(
            f"data.max_tokens ({config.data.max_tokens}) must not exceed {positions}, the positions that "
            f"{settings.name} knows; lower data.max_tokens"
        )
    return int(settings.features or described.hidden_size)


def transformer_width(name: str) -> int:
    """Return the width of the hidden states of encoder.name, from its description alone.

    Raises:
        ValueError: there is no such model, or no package `transformers`.
    """
    return int(_described(name).hidden_size)


def _described(name: str | None) -> PretrainedConfig:
    with _quiet(), _clear(name):
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(_place(name), trust_remote_code=False)


def _positions(model: nn.Module) -> int | None:
    """Tokens that a model with an embedding for every position reads; None where positions are relative."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - unused
    return None


def _config_of(architecture: dict[str, Any]) -> PretrainedConfig:
    """The description, without what would fetch code or weights from elsewhere.

    Raises:
        ValueError: it asks for such, for a model that is not known, or for too many layers.
    """
    from transformers import AutoConfig

    kind = architecture.get("model_type")
    described = type(AutoConfig.for_model(kind)).from_dict(_without_code(architecture))
    if described.num_hidden_layers > _MOST_LAYERS:
        raise ValueError(f"num_hidden_layers ({described.num_hidden_layers:,}) must not exceed {_MOST_LAYERS}")
    return described


def _without_code(value: Any) -> Any:
    """A description without names of kernels, which may be those of a hub.

    Raises:
        ValueError: it names a part that is a model of its own.
    """
    if isinstance(value, list):
        return [_without_code(item) for item in value]
    if not isinstance(value, dict):
        return value
    for key in _ELSEWHERE & value.keys():
        if value[key]:
            raise ValueError(f"{key} must not be set: a model folder is read without looking elsewhere")
    return {key: _without_code(item) for key, item in value.items() if "_implementation" not in key}


def _place(name: str | None) -> str:
    return expand_path(name or "", "encoder.name")


@contextlib.contextmanager
def _clear(name: str | None) -> Iterator[None]:
    """Say what `transformers` cannot do in one line that names the setting."""
    try:
        yield
    except ImportError as error:
        if error.name == "transformers":
            message = "encoder.kind (transformer) needs the package transformers; pip install 'haste-xmc[text]'"
            raise ValueError(message) from None
        raise ValueError(f"encoder.name ({name}) cannot be loaded: {_line(error)}") from None
    except (OSError, KeyError, RuntimeError) as error:
        must = "must be the folder of a model with safetensors, or a model of the Hugging Face hub"
        raise ValueError(f"encoder.name ({name}) {must}; {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep `transformers` from writing bars and notes of its own."""
    try:
        from transformers.utils import logging
    except ImportError:  # said by who needs it
        yield
        return
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
