"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import yaml

from haste.config import Config

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def test_python_blocks_run():
    found = blocks("python")
    assert found
    for code in found:
        names = {}
        exec(compile(code, "README.md", "exec"), names)
        assert names["labels"].shape == (8, 5)


def test_settings_blocks_are_settings():
    found = blocks("yaml")
    assert found
    for text in found:
        Config.from_dict(yaml.safe_load(text))


def test_shipped_settings_are_valid_and_named_after_their_runs():
    files = sorted((ROOT / "configs").glob("*.yaml"))
    assert files
    for file in files:
        config = Config.from_dict(yaml.safe_load(file.read_text(encoding="utf-8")))
        assert config.run.dir == f"runs/{file.stem}"


def test_haste_of_eurlex57k_is_as_sparse_as_it_says():
    config = Config.from_dict(yaml.safe_load((ROOT / "configs/eurlex57k.yaml").read_text(encoding="utf-8")))
    assert 1 - config.output.fan_in / config.encoder.features >= 0.83
    assert config.output.head_ratio <= 0.1
    assert config.output.grouping == "semantic"
