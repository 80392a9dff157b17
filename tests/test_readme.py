"""What the README shows runs as it stands there."""

import csv
import json
import re
import runpy
import shlex
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

from haste.cli import main
from haste.config import Config
from haste.data.demo import write_demo_data
from haste.data.formats import read_jsonl

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in TEXT.split("\n## ")[1:]}
OWN = SECTIONS["Your own data"]


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_layer_runs() -> None:
    (code,) = blocks("python", SECTIONS["The layer in your own PyTorch code"])
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["labels"].shape == (8, 5)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Real texts and labels: functions of the standard library, what they say they do and what they call."""
    root = Path(sysconfig.get_path("stdlib"))
    names = ("http", "json", "logging")
    folder = write_demo_data(tmp_path_factory.mktemp("code"), folders={name: root / name for name in names})
    return [
        {"text": record.text, "labels": "|".join(record.labels)}
        for split in ("train", "test", "dev")
        for record in read_jsonl(folder / f"{split}.jsonl.gz")
    ]


@pytest.fixture
def own(documents: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in with mine.csv and new.csv, and nothing kept of other runs."""
    for variable in ("HOME", "HASTE_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.chdir(tmp_path)
    for name, columns, rows in (("mine", ["text", "labels"], documents), ("new", ["text"], documents[:20])):
        with open(f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    return tmp_path


def test_a_new_users_commands(own: Path, documents: list[dict[str, str]], capsys: pytest.CaptureFixture[str]) -> None:
    commands = [shlex.split(line, comments=True) for line in blocks("bash", OWN)[0].splitlines()]
    assert [command[1] for command in commands] == ["data", "train", "evaluate", "predict", "predict"]
    shown = []
    for command in commands:
        assert command[0] == "haste"
        assert main(command[1:]) == 0
        shown.append(capsys.readouterr())
    checked, trained, _, asked, _ = shown
    assert "No problems." in checked.out
    assert re.search(r"^documents +" + f"{len(documents):,}$", checked.out, re.MULTILINE)
    assert "preset auto: " in trained.err
    assert re.search(r"^optim.epochs \d+: ", trained.err, re.MULTILINE)
    known = {label for row in documents for label in row["labels"].split("|")}
    lines = [line.split(maxsplit=1) for line in asked.out.splitlines()]
    assert len(lines) == 3
    assert all(0 < float(probability) < 1 and label in known for probability, label in lines)
    predicted = [json.loads(line) for line in Path("predictions.jsonl").read_text().splitlines()]
    hits = sum(
        row["labels"][0]["label"] in document["labels"].split("|")
        for row, document in zip(predicted, documents[:20], strict=True)
    )
    assert hits >= 12  # documents that it was trained on


def test_a_new_users_python(own: Path, documents: list[dict[str, str]], capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python", OWN)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["labels"].shape == names["probabilities"].shape == (1, 3)
    best, _ = names["model"].predict_topk([row["text"] for row in documents[:20]], k=1)
    hits = sum(label in row["labels"].split("|") for label, row in zip(best[:, 0], documents[:20], strict=True))
    assert hits >= 12
    assert main(["predict", "mine-model", "--text", "no sound at all"]) == 0


def test_the_example_runs(own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["own_csv.py", "mine.csv", "--ask", "parse the text of a json file"])
    runpy.run_path(str(ROOT / "examples/own_csv.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert re.search(r"the best label is right for \d+ of \d+ documents", shown)
    assert len(re.findall(r"^ +[01]\.\d{4}  \w", shown, re.MULTILINE)) == 5


def test_settings_blocks_are_settings() -> None:
    found = blocks("yaml")
    assert found
    for text in found:
        Config.from_dict(yaml.safe_load(text))


def test_shipped_settings_are_valid_and_named_after_their_runs() -> None:
    files = sorted((ROOT / "configs").glob("*.yaml"))
    assert files
    for file in files:
        config = Config.from_dict(yaml.safe_load(file.read_text(encoding="utf-8")))
        assert config.run.dir == f"runs/{file.stem}"


def test_haste_of_eurlex57k_is_as_sparse_as_it_says() -> None:
    config = Config.from_dict(yaml.safe_load((ROOT / "configs/eurlex57k.yaml").read_text(encoding="utf-8")))
    assert 1 - config.output.fan_in / config.encoder.features >= 0.83
    assert config.output.head_ratio <= 0.1
    assert config.output.grouping == "semantic"
