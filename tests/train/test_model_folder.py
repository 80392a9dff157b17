import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from haste.config import Config
from haste.data.dataset import load_dataset
from haste.nn import build_model
from haste.train.model_folder import TrainedModel, load_model, save_model


@pytest.fixture
def make(tiny_config: Callable[..., Config], tmp_path: Path) -> Callable[..., tuple[Path, TrainedModel]]:
    """Save a fresh model with rows in a random order."""

    def made(**changes: dict[str, Any]) -> tuple[Path, TrainedModel]:
        config = tiny_config(**changes)
        dataset = load_dataset(config.data, seed=0, log=lambda text: None)
        labels, vectorizer = dataset.labels, dataset.vectorizer
        model = build_model(config, num_inputs=dataset.num_inputs, num_labels=labels.num_labels)
        generator = torch.Generator().manual_seed(1)
        model.output.set_label_order(torch.randperm(labels.num_labels, generator=generator))
        trained = TrainedModel(model=model, config=config, labels=labels, vectorizer=vectorizer, num_points=240)
        values = {"P@1": 1.0, "P@3": 2.0, "P@5": 3.0, "nDCG@5": 4.0, "PSP@5": 5.0}
        save_model(tmp_path / "model", trained, {"test": values})
        return tmp_path / "model", trained

    return made


def test_a_low_precision_encoder_survives_bitwise(make: Callable[..., tuple[Path, TrainedModel]]) -> None:
    folder, trained = make(encoder={"dtype": "bfloat16"}, optim={"encoder": {"name": "kahan_adamw"}})
    loaded = load_model(folder, device="cpu")
    assert loaded.model.encoder.embedding.dtype == torch.bfloat16
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    document = torch.tensor([0, 2]), torch.tensor([3, 5]), torch.tensor([0.5, 2.0])
    scores = [model.eval().topk(document, 3)[0] for model in (loaded.model, trained.model)]
    assert torch.equal(*scores)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"encoder": {"hidden": 16}, "output": {"dtype": "bfloat16", "private_features": "slice"}},
        {"output": {"private_features": "projection", "head_ratio": 0.0}},
        {"output": {"fan_in": 32}},
        {"output": {"intermediate": 24, "private_features": "projection"}},
        {"output": {"intermediate": 8, "activation": "none", "fan_in": 0}},
        {"output": {"duplicates": True}, "rewire": {"regrow": "random"}},
        {"output": {"block": 4}, "rewire": {"regrow": "random"}},
    ],
)
def test_a_model_survives_bitwise(make: Callable[..., tuple[Path, TrainedModel]], changes: dict[str, Any]) -> None:
    folder, trained = make(**changes)
    loaded = load_model(folder, device="cpu")
    assert loaded.config == trained.config
    assert loaded.labels.names == trained.labels.names
    assert loaded.num_points == 240
    expected, found = trained.model.state_dict(), loaded.model.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    features = torch.randn(5, 32)
    trained.model.eval()
    assert not loaded.model.training
    with torch.no_grad():
        assert torch.equal(loaded.model.output(features), trained.model.output(features))
    text = ["word1 word2 word2 nothing"]
    difference = loaded.vectorizer.transform(text) - trained.vectorizer.transform(text)
    assert abs(difference).sum() == 0


def test_a_saved_model_replaces_an_older_one(make: Callable[..., tuple[Path, TrainedModel]]) -> None:
    folder, _ = make()
    (folder / "stray").write_text("old")
    make(encoder={"features": 64})
    assert load_model(folder, device="cpu").config.encoder.features == 64
    assert not (folder / "stray").exists()
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith("model")] == ["model"]
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1
    card = (folder / "README.md").read_text()
    assert "| test | 1.00 |" in card
    assert "- encoder: bag, 90 terms, 64 features\n" in card
    assert "the others read\n  8 features each, shared by groups of 4\n" in card


def edit_json(file: Path, *keys: str, value: Any) -> None:
    content = json.loads(file.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["config", "encoder", "code"], "x", "unknown key encoder.code"),
        (["auto_map"], "x", r"config.json: keys .* must be"),
        (["format"], 2, r"config.json: format \(2\) must be 1"),
        (["num_labels"], 31, r"num_labels \(31\) must be 30"),
        (["inputs"], "images", r"inputs \(images\) must be one of text, sparse, dense"),
        (["inputs"], "dense", r"encoder.kind \(bag\) must be features for dense features"),
        (["num_labels"], "30", r"num_labels \(30\) must be a positive integer"),
        (["num_inputs"], 10**15, r"num_inputs \(1000000000000000\) must be 90"),
        (["config", "encoder", "features"], 10**12, r"encoder.safetensors: bias \(\('F32', \[32\]\)\) must be"),
        (["config", "encoder", "hidden"], 10**9, r"encoder.safetensors: "),
        (["config", "output", "group_size"], 10**12, r"output.safetensors: "),
        (["config", "output", "dtype"], "bfloat16", r"output.safetensors: \S+weight .*'F32'.* must be .*'BF16'"),
        (["config", "output", "private_features"], "projection", r"head_projection.bias \(None\) must be"),
    ],
)
def test_a_description_that_does_not_fit_is_refused_before_memory_is_taken(
    make: Callable[..., tuple[Path, TrainedModel]], keys: list[str], value: Any, message: str
) -> None:
    folder, _ = make()
    edit_json(folder / "config.json", *keys, value=value)
    with pytest.raises(ValueError, match=message):
        load_model(folder, device="cpu")


def test_damaged_and_missing_files_are_named(make: Callable[..., tuple[Path, TrainedModel]]) -> None:
    folder, _ = make()
    file = folder / "output.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-5])
    with pytest.raises(ValueError, match=r"output.safetensors: damaged or missing"):
        load_model(folder, device="cpu")
    file.unlink()
    with pytest.raises(ValueError, match=r"output.safetensors: damaged or missing"):
        load_model(folder, device="cpu")
    file.write_bytes(content)
    load_model(folder, device="cpu")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: must be JSON"):
        load_model(folder, device="cpu")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json: cannot be read .*is this a model folder"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(("name", "message"), [("tail.indices", "indices"), ("label_order", "label_order")])
def test_structure_that_would_read_outside_is_refused(
    make: Callable[..., tuple[Path, TrainedModel]], name: str, message: str
) -> None:
    folder, _ = make()
    file = folder / "output.safetensors"
    tensors = load_file(file)
    tensors[name].view(-1)[-1] = 1000
    save_file(tensors, file)
    with pytest.raises(ValueError, match=message):
        load_model(folder, device="cpu")
