"""Model folders: JSON, npz and safetensors that a stranger's copy of can be opened safely.

config.json  encoder.safetensors  output.safetensors  labels.jsonl  vectorizer.json  vectorizer.npz  README.md

A model of given features has no vectorizer; one with a transformer has tokenizer.json and transformer.json instead.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from haste import topology
from haste.config import Config
from haste.data.dataset import Labels
from haste.data.prepare import Vectorizer
from haste.data.source import Kind
from haste.data.text import TfIdf
from haste.data.tokens import Tokenizer
from haste.nn import Model, Transformer, build_encoder, build_model
from haste.train.device import resolve_device
from haste.train.files import write_json, write_text

FORMAT = 1
ARCHITECTURE = "transformer.json"
_KEYS = {"format", "inputs", "num_inputs", "num_labels", "num_points", "config"}


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model with all that turns text into terms and rows into label names.

    vectorizer: of text; None for given features.
    num_points: documents it was trained on.
    inputs: what it reads: text, or given features, sparse or dense.
    """

    model: Model
    config: Config
    labels: Labels
    vectorizer: Vectorizer | None
    num_points: int
    inputs: Kind = "text"

    @property
    def num_inputs(self) -> int:
        """Terms or tokens of the vocabulary, or columns of given features."""
        return self.model.encoder.num_inputs


def save_model(
    folder: Path, trained: TrainedModel, metrics: Mapping[str, Any], *, extra: Mapping[str, Any] | None = None
) -> None:
    """Write a model folder, replacing an older one only when the new one is complete.

    Args:
        folder: where to.
        trained: what to write.
        metrics: split -> metric -> percent, for the model card.
        extra: name -> content of JSON files beside the model's own.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    description = {
        "format": FORMAT,
        "inputs": trained.inputs,
        "num_inputs": trained.num_inputs,
        "num_labels": trained.labels.num_labels,
        "num_points": trained.num_points,
        "config": trained.config.to_dict(),
    }
    write_json(temporary / "config.json", description)
    for name in ("encoder", "output"):
        file = temporary / f"{name}.safetensors"
        save_file(_state(getattr(trained.model, name)), file)
        shutil.copymode(temporary / "config.json", file)  # safetensors makes it readable by its owner alone
    trained.labels.save(temporary / "labels.jsonl")
    if trained.vectorizer is not None:
        trained.vectorizer.save(temporary)
    if isinstance(trained.model.encoder, Transformer):
        write_json(temporary / ARCHITECTURE, trained.model.encoder.architecture())
    for name, value in (extra or {}).items():
        write_json(temporary / name, value)
    write_text(temporary / "README.md", _model_card(trained, metrics))
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(temporary, folder)


def load_model(folder: Path, device: str = "auto") -> TrainedModel:
    """Read a model folder; nothing in it is executed, and no size in it is believed before it is checked.

    Args:
        folder: model folder.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        ValueError: a file is missing or damaged, a key unknown, or sizes disagree.
    """
    description = _read_description(folder / "config.json")
    config = Config.from_dict(description["config"])
    with_texts = config.label_texts.read  # then labels without a document have rows too
    labels = Labels.load(folder / "labels.jsonl", description["num_labels"] if with_texts else None)
    inputs, num_inputs = description["inputs"], description["num_inputs"]
    vectorizer: Vectorizer | None = None
    architecture = None
    if config.encoder.kind == "transformer":
        vectorizer, architecture = Tokenizer.load(folder), _read_architecture(folder / ARCHITECTURE)
    elif inputs == "text":
        vectorizer = TfIdf.load(folder)
    terms = num_inputs if vectorizer is None else vectorizer.num_terms
    for name, found in (("num_labels", labels.num_labels), ("num_inputs", terms)):
        if description[name] != found:
            raise ValueError(f"{folder / 'config.json'}: {name} ({description[name]}) must be {found}")
    with torch.device("meta"):
        model = build_model(
            config,
            num_inputs=num_inputs,
            num_labels=labels.num_labels,
            dense_inputs=inputs == "dense",
            architecture=architecture,
        )
    files = {name: folder / f"{name}.safetensors" for name in ("encoder", "output")}
    for name, file in files.items():
        _check_shapes(file, getattr(model, name))
    model.to_empty(device="cpu")
    if architecture is not None:  # it has buffers that are in no file
        model.encoder = build_encoder(config, num_inputs, architecture)
    for name, file in files.items():
        getattr(model, name).load_state_dict(load_file(file))
    for layer in model.output.layers():
        if layer.indices is not None:
            topology.check_indices(layer.indices, layer.in_features, duplicates=layer.duplicates)
    model.to(resolve_device(device)).eval()
    return TrainedModel(
        model=model,
        config=config,
        labels=labels,
        vectorizer=vectorizer,
        num_points=description["num_points"],
        inputs=inputs,
    )


def read_extra(file: Path) -> dict[str, Any] | None:
    """A JSON object that `save_model` wrote beside the model's own files; None where there is none.

    Raises:
        ValueError: it is not a JSON object.
    """
    if not file.exists():
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}); is this a model folder?") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: must be JSON; {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file}: must be a JSON object, found {type(value).__name__}")
    return value


def _read_description(file: Path) -> dict[str, Any]:
    description = read_extra(file)
    if description is None:
        raise ValueError(f"{file}: cannot be read (no such file); is this a model folder?")
    if description.keys() != _KEYS:
        raise ValueError(f"{file}: keys ({sorted(description)}) must be {sorted(_KEYS)}")
    if description["format"] != FORMAT:
        found = description["format"]
        raise ValueError(f"{file}: format ({found}) must be {FORMAT}; read it with the haste that wrote it")
    for name in ("num_inputs", "num_labels", "num_points"):
        if type(description[name]) is not int or description[name] < 1:
            raise ValueError(f"{file}: {name} ({description[name]}) must be a positive integer")
    if description["inputs"] not in get_args(Kind):
        raise ValueError(f"{file}: inputs ({description['inputs']}) must be one of {', '.join(get_args(Kind))}")
    return description


def _read_architecture(file: Path) -> dict[str, Any]:
    architecture = read_extra(file)
    if architecture is None or not isinstance(architecture.get("model_type"), str):
        raise ValueError(f"{file}: must be there and name a model_type; the file is damaged, get it again")
    return architecture


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def _check_shapes(file: Path, module: nn.Module) -> None:
    """Raise unless the file's header lists exactly the module's tensors; reads nothing else of it."""
    expected = {name: (_DTYPES[tensor.dtype], list(tensor.shape)) for name, tensor in module.state_dict().items()}
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            found = {name: (item.get_dtype(), item.get_shape()) for name, item in slices.items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: damaged or missing; {error}") from None
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(f"{file}: {name} ({found.get(name)}) must be {expected.get(name)}")


def _model_card(trained: TrainedModel, metrics: Mapping[str, Any]) -> str:
    config, labels = trained.config, trained.labels
    columns = ("P@1", "P@3", "P@5", "nDCG@5", "PSP@5")
    table = ["| split | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for split, values in metrics.items():
        table.append(f"| {split} | " + " | ".join(f"{values[column]:.2f}" for column in columns) + " |")
    width = trained.model.encoder.out_features
    output = "every label reads all features"
    if trained.model.output.tail is not None and trained.model.output.tail.indices is not None:
        output = (
            f"the {config.output.head_ratio:.0%} most frequent labels dense; the others read\n"
            f"  {config.output.fan_in} features each, shared by groups of {config.output.group_size}"
        )
    encoder, inputs = str(config.encoder.kind), _INPUTS[trained.inputs]
    if isinstance(trained.vectorizer, Tokenizer):
        encoder = f"{encoder} ({config.encoder.name}, {config.encoder.pooling} pooling)"
        inputs = f"tokens, {trained.vectorizer.max_tokens} of a text"
    scores = "probabilities" if config.output.loss == "bce" else "scores, not probabilities"
    return f"""---
library_name: haste
pipeline_tag: text-classification
tags: [extreme-classification, multi-label, sparse]
---
# Multi-label {"text " if trained.inputs == "text" else ""}classifier

{labels.num_labels:,} labels, trained with `haste` on {trained.num_points:,} documents.

- encoder: {encoder}, {trained.num_inputs:,} {inputs}, {width} features
- output layer: {output}
- loss: {config.output.loss}, so its outputs are {scores}

{chr(10).join(table)}

```
haste predict PATH_OF_THIS_FOLDER {'--text "some text"' if trained.inputs == "text" else "--input FILE"}
```

The folder holds JSON, npz and safetensors only; opening it runs no code.
"""


_INPUTS = {"text": "terms", "sparse": "columns of given sparse rows", "dense": "given numbers a document"}
_DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
