import json
from pathlib import Path

import pytest

from haste.cli import demo, main
from haste.config import Config
from haste.data import demo as demo_data


def test_the_settings_are_a_configuration() -> None:
    for changes in ({}, demo.DENSE):
        values = {name: {**section, **changes.get(name, {})} for name, section in demo.SETTINGS.items()}
        values["data"] = {**values["data"], "path": "x"}
        config = Config.from_dict(values)
    assert config.output.fan_in == config.encoder.features


def test_demo_trains_compares_and_answers(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_data, "write_demo_data", lambda folder, log: tiny_data)
    small = {
        "encoder": {"features": 32, "dropout": 0.2},
        "output": {"fan_in": 8, "group_size": 4, "head_ratio": 0.2},
        "optim": {"epochs": 6, "batch_size": 32, "warmup_steps": 3, "encoder": {"lr": 0.05}},
    }
    monkeypatch.setattr(demo, "SETTINGS", {**demo.SETTINGS, **small})
    monkeypatch.setattr(demo, "DENSE", {"output": {"fan_in": 32}, "rewire": {"interval": 0}})
    folder = tmp_path / "demo"
    for arguments in (["--compare"], []):  # the second run replaces the first
        assert main(["demo", "--folder", str(folder), *arguments]) == 0
        shown = capsys.readouterr().out
        table = {line.split("  ")[0]: line.split() for line in shown.splitlines() if "MiB" in line or "most" in line}
        expected = {"most frequent labels", "HASTE", "dense"} if arguments else {"most frequent labels", "HASTE"}
        assert table.keys() == expected
        saved = json.loads((folder / "haste" / "metrics.json").read_text())["test"]
        assert table["HASTE"][1] == f"{saved['P@1']:.2f}"
        assert saved["P@1"] > 2 * float(table["most frequent labels"][3])
        for text in demo.TEXTS:
            assert f"{text}\n    label " in shown
    dense = json.loads((folder / "dense" / "run.json").read_text())["model"]["output"]["bytes"]
    sparse = json.loads((folder / "haste" / "run.json").read_text())["model"]["output"]["bytes"]
    assert sparse < dense
