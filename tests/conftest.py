import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests are small; before torch is imported

import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # the GPU kernels, on the CPU; read when they are first imported

from haste.config import Config
from haste.ops._chunks import Workspace

with torch.device("meta"):
    torch.empty(0)  # torch notes which functions obey a device context here, before a test replaces one of them


def _poison(tensor: Tensor) -> Tensor:
    if type(tensor) is Tensor:
        tensor.fill_(torch.nan if tensor.is_floating_point() else True if tensor.dtype == torch.bool else 99)
    return tensor


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what haste takes without a value with NaN, so that reading before writing shows."""

    def poisoning(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocated(*args: Any, **kwargs: Any) -> Tensor:
            tensor = allocate(*args, **kwargs)
            caller = sys._getframe(1).f_globals.get("__name__", "")
            return _poison(tensor) if caller.startswith("haste.") else tensor

        return allocated

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty"), (Workspace, "take")):
        monkeypatch.setattr(owner, name, poisoning(getattr(owner, name)))


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Data sets that the tests make are kept in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HASTE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def _document(number: int, generator: random.Random, num_labels: int) -> dict[str, Any]:
    labels = generator.sample(range(num_labels), generator.randint(1, 3))
    words = [f"word{3 * label + generator.randrange(3)}" for label in labels for _ in range(3)]
    words += [f"word{generator.randrange(3 * num_labels)}" for _ in range(4)]
    generator.shuffle(words)
    return {"id": f"document-{number}", "text": " ".join(words), "labels": [f"label {x}" for x in labels]}


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 240/40/40 documents with 30 labels that follow from their words; read only."""
    folder = tmp_path_factory.mktemp("tiny")
    generator = random.Random(0)
    for split, size in (("train", 240), ("dev", 40), ("test", 40)):
        rows = [_document(number, generator, 30) for number in range(size)]
        if split == "test":
            rows[0]["labels"].append("label only here")
        rows[1]["labels"] = []
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def tiny_settings(tiny_data: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Settings of a run of a second on `tiny_data`, with changes such as optim={"epochs": 2}."""

    def settings(**changes: dict[str, Any]) -> dict[str, Any]:
        values: dict[str, dict[str, Any]] = {
            "data": {"path": str(tiny_data)},
            "encoder": {"features": 32, "dropout": 0.2},
            "output": {"fan_in": 8, "group_size": 4, "head_ratio": 0.2},
            "rewire": {"interval": 5, "fraction": 0.5},
            "optim": {"epochs": 4, "batch_size": 32, "warmup_steps": 3, "encoder": {"lr": 0.05}},
            "run": {"dir": str(tmp_path / "run"), "threads": 1, "device": "cpu"},
        }
        for section, change in changes.items():
            values[section] = {**values.get(section, {}), **change}
        return values

    return settings


@pytest.fixture
def tiny_config(tiny_settings: Callable[..., dict[str, Any]]) -> Callable[..., Config]:
    """The `tiny_settings` as a configuration."""
    return lambda **changes: Config.from_dict(tiny_settings(**changes))


@pytest.fixture(scope="session")
def tiny_bert(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BERT of random weights, 32 wide, and a tokenizer of the words of `tiny_data`; read only."""
    from transformer_cases import save_bert

    lines = (tiny_data / "train.jsonl").read_text().splitlines()
    return save_bert(tmp_path_factory.mktemp("bert"), [json.loads(line)["text"] for line in lines])
