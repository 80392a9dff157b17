"""The workload of a run's settings."""

import json
from dataclasses import replace
from pathlib import Path

from haste.config import Config, expand_path
from haste.estimate._encoders import MODELS, Bag, Encoder, Given, Transformer
from haste.estimate.workload import Workload

# Part of a model's name on the hub; what holds another comes before it.
_HUB = ("distilroberta", "distilbert", "minilm-l6", "roberta-large", "roberta-base", "bert-base")
_SIZES = (  # what a model's config.json calls them
    ("num_hidden_layers", "n_layers"),
    ("hidden_size", "dim"),
    ("intermediate_size", "hidden_dim"),
    ("vocab_size",),
)


def workload_of(
    config: Config,
    *,
    num_labels: int,
    num_inputs: int,
    labels_per_document: float = 5.0,
    terms_per_document: float = 100.0,
    checkpointing: bool = False,
) -> Workload:
    """Return what `haste train` would train with these settings.

    Args:
        config: keys data.max_tokens, encoder, output, rewire.interval, rewire.regrow, auxiliary.clusters, optim.
        num_labels: labels with a training document.
        num_inputs: terms of the vocabulary, or columns of given features.
        labels_per_document, terms_per_document: means.
        checkpointing: of a transformer, beside encoder.checkpointing.

    Raises:
        ValueError: a fan_in above the features that labels read, or a transformer of unknown size.
    """
    settings, output, update = config.encoder, config.output, config.optim.output
    encoder = _encoder(config, num_inputs, terms_per_document, checkpointing)
    width = settings.features or (encoder.width if isinstance(encoder, Transformer) else num_inputs)
    read = output.intermediate or width
    inputs = read // 2 if output.private_features == "slice" else read
    fan_in = output.fan_in or inputs
    rewired = config.rewire.interval > 0 and fan_in < inputs
    return Workload(
        num_labels=num_labels,
        in_features=width,
        fan_in=fan_in,
        group_size=output.group_size,
        head_ratio=output.head_ratio,
        private_features=output.private_features,
        intermediate=output.intermediate,
        clusters=config.auxiliary.clusters,
        dtype=output.dtype,
        rule="adamw" if update.name == "adamw" else "momentum" if update.momentum else "sgd",
        rates=update.rarity > 0 or update.sparsity > 0,
        fused=update.fused,
        regrow=config.rewire.regrow if rewired else "none",
        batch_size=config.optim.batch_size,
        positives=labels_per_document,
        encoder=encoder,
    )


def _encoder(config: Config, num_inputs: int, terms: float, checkpointing: bool) -> Encoder:
    settings, update = config.encoder, config.optim.encoder
    element = 2 if settings.dtype == "bfloat16" else 4
    moments = 0 if update.name == "sgd" else 4 if update.state_dtype == "bfloat16" else 8
    state = moments + (2 if update.name == "kahan_adamw" and element == 2 else 0)
    if settings.kind == "transformer":
        return replace(
            _transformer(settings.name or ""),
            tokens=config.data.max_tokens,
            checkpointing=checkpointing or settings.checkpointing,
            element=element,
            autocast=settings.autocast,
            state=state,
            lora=settings.lora,
        )
    widths = tuple(size for size in (settings.hidden, settings.features) if size)
    if settings.kind == "bag":
        return Bag(num_inputs=num_inputs, widths=widths, terms=terms, element=element, state=state)
    return Given(widths=(num_inputs, *widths), element=element, state=state)


def _transformer(name: str) -> Transformer:
    """A transformer by the sizes in its folder, or by what its name holds."""
    found = [known for known in _HUB if known in name.lower()]
    description = None if "${" in name and found else Path(expand_path(name, "encoder.name")) / "config.json"
    if description is not None and description.is_file():
        sizes = json.loads(description.read_text(encoding="utf-8"))
        try:
            layers, width, inner, vocabulary = [sizes[next(key for key in keys if key in sizes)] for keys in _SIZES]
        except StopIteration:
            needed = ", ".join(keys[0] for keys in _SIZES)
            raise ValueError(f"{description}: must have {needed}, from which memory is estimated") from None
        positions = sizes.get("max_position_embeddings", 0)
        heads = sizes.get("num_attention_heads", sizes.get("n_heads", 12))
        return Transformer(
            kind=name,
            layers=layers,
            width=width,
            inner=inner,
            vocabulary=vocabulary,
            positions=positions,
            heads=heads,
        )
    if not found:
        raise ValueError(
            f"encoder.name ({name}) must be a folder, or of a known size: one of {', '.join(MODELS)} in its name"
        )
    return MODELS[found[0]]
