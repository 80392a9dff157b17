"""The shipped settings: valid, each value with its source, and trainable on small data."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from haste.config import Config
from haste.data.dataset import load_dataset
from haste.train.given_data import check_present
from haste.train.loop import Loop
from haste.train.trainer import train

FOLDER = Path(__file__).parents[1] / "configs"
PAPERS = sorted((FOLDER / "papers").glob("*.yaml"))
SHIPPED = [*sorted(FOLDER.glob("*.yaml")), *PAPERS]
# Settings that are ours by nature: where things lie, and which kind of encoder `name` is.
OURS = {"data.path", "data.origin", "run.dir", "encoder.kind"}
LISTED = {
    "haste": [
        "amazon-670k",
        "amazontitles-670k",
        "amazon-3m",
        "lf-paper2keywords-8.6m",
        "lf-amazontitles-131k",
        "lf-wikiseealso-320k",
        "lf-amazontitles-1.3m",
    ],
    "spartex": ["wiki10-31k", "lf-amazontitles-131k", "lf-wikiseealso-320k", "wiki-500k", "amazon-670k", "amazon-3m"],
    "elmo": [
        "lf-amazontitles-131k",
        "lf-wikiseealso-320k",
        "wiki-500k",
        "amazon-670k",
        "amazontitles-670k",
        "lf-amazontitles-1.3m",
        "amazon-3m",
        "lf-paper2keywords-8.6m",
    ],
    "renee": ["amazon-670k", "amazontitles-670k", "amazon-3m", "lf-amazontitles-131k", "lf-wikiseealso-320k"],
    "bottleneck": ["amazon-670k"],
    "block-sparse": ["amazon-670k"],
    "rigl": ["amazon-670k"],
    "static": ["amazon-670k"],
}


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def values_with_comments(path: Path) -> Iterator[tuple[str, str]]:
    """Dotted key and comment of every line that sets a value."""
    sections: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        depth = len(line) - len(line.lstrip())
        sections = [(d, name) for d, name in sections if d < depth]
        key, _, rest = line.strip().partition(":")
        if not rest.strip():
            sections.append((depth, key))
        else:
            yield ".".join([*(name for _, name in sections), key]), rest.partition("  # ")[2]


def test_every_data_set_and_system_of_the_papers_has_its_file() -> None:
    assert {path.stem for path in PAPERS} == {f"{name}-{system}" for system, names in LISTED.items() for name in names}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_settings_are_valid(path: Path) -> None:
    config = Config.from_dict(read(path))
    assert config.data.path.startswith("${HASTE_DATA}/")
    assert config.run.dir.endswith(path.stem)


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_every_value_has_a_source(path: Path) -> None:
    lines = list(values_with_comments(path))
    assert len(lines) > 30
    assert [key for key, comment in lines if not comment and key not in OURS] == []


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_missing_data_is_described(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTE_DATA", str(tmp_path))
    config = Config.from_dict(read(path))
    expected = config.data.expected
    assert None not in (expected.train, expected.test, expected.labels)
    with pytest.raises(ValueError, match=rf"there is no data; it is .*{expected.train:,} .*{expected.labels:,} labels"):
        check_present(config)


def test_one_data_set_is_expected_alike_in_all_files() -> None:
    seen: dict[str, Any] = {}
    for path in PAPERS:
        data = read(path)["data"]
        assert seen.setdefault(data["path"], data["expected"]) == data["expected"], path


def with_texts(data: Path, folder: Path) -> Path:
    """The same data, its labels with texts."""
    shutil.copytree(data, folder)
    rows = ({"label": f"label {n}", "text": f"word{3 * n} word{3 * n + 1}"} for n in range(30))
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def shrunk(path: Path, data: Path, folder: Path) -> Config:
    """The settings of a file on small data: what says how large something is, is smaller, the rest as it is."""
    values = read(path)
    output = values["output"]
    if "label_texts" in values:
        data = with_texts(data, folder / "described")
    values["data"] = {"path": str(data)}
    values["encoder"] |= {"kind": "bag", "name": None, "features": 64, "dropout": 0.2}
    wide = output.get("intermediate", 0)
    output |= {"fan_in": min(output["fan_in"], 16), "group_size": min(output["group_size"], 4)}
    output["intermediate"] = min(wide, 80) // 16 * 16
    if values.get("auxiliary"):
        values["auxiliary"] |= {"clusters": 6, "end": 0.5}
    values["rewire"]["interval"] = min(values["rewire"]["interval"], 2)
    values["optim"] |= {"epochs": 1, "batch_size": 48, "warmup_steps": 2}
    values["optim"]["encoder"]["lr"] = 0.02
    values["run"] = {"dir": str(folder / "run"), "threads": 1, "device": "cpu"}
    return Config.from_dict(values)


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_every_system_trains_on_small_data(path: Path, tiny_data: Path, tmp_path: Path) -> None:
    config = shrunk(path, tiny_data, tmp_path)
    dataset = load_dataset(config.data, seed=0, log=lambda text: None, label_texts=config.label_texts.read)
    loop = Loop(config, dataset, torch.device("cpu"))
    loop.initialize(dataset)
    statistics = [loop.step(step) for step in range(loop.total_steps)]
    assert 0 < loop.window_loss() < 200
    assert any(statistics) == (config.rewire.interval > 0)


@pytest.mark.parametrize("system", LISTED)
def test_a_run_of_every_system_ends_with_a_model(system: str, tiny_data: Path, tmp_path: Path) -> None:
    config = shrunk(FOLDER / f"papers/amazon-670k-{system}.yaml", tiny_data, tmp_path)
    run = train(config, log=lambda text: None)
    assert (run / "metrics.json").is_file()
    assert (run / "model/config.json").is_file()
