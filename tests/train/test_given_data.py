from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from haste.cli import main
from haste.config import Config
from haste.train.trainer import train

ORIGIN = {"origin": "Amazon-670K of the Extreme Classification Repository", "expected": {"train": 490_449, "labels": 7}}


def test_missing_data_says_where_it_comes_from_and_what_it_holds(
    tiny_settings: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny_settings(data={"path": str(tmp_path / "nowhere"), **ORIGIN})
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(settings))
    assert main(["train", str(file)]) != 0
    assert capsys.readouterr().err == (
        f"haste: error: {tmp_path / 'nowhere'}: there is no data; it is Amazon-670K of the Extreme Classification "
        "Repository; expected: 490,449 training documents (N), 7 labels (L), 32 features that labels read (H); "
        "put it there, or set data.path\n"
    )
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_and_an_unset_variable_are_missing_data(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: there is no data; it is Amazon-670K"):
        train(tiny_config(data={"path": str(tmp_path / "empty"), **ORIGIN}))
    monkeypatch.delenv("HASTE_NOT_SET", raising=False)
    with pytest.raises(ValueError, match=r"export HASTE_NOT_SET=\.\.\. first; it is Amazon-670K .* 490,449 training"):
        train(tiny_config(data={"path": "${HASTE_NOT_SET}/x", **ORIGIN}))


def test_other_counts_than_expected_are_said(tiny_config: Callable[..., Config], tiny_data: Path) -> None:
    lines: list[str] = []
    expected = {"train": 240, "test": 39, "labels": 31}
    data = {"path": str(tiny_data), "origin": "made here", "expected": expected, "propensity": {"a": 0.6, "b": 2.6}}
    train(tiny_config(data=data, optim={"epochs": 1}), log=lines.append)
    said = [line for line in lines if "data.expected" in line]
    assert said == ["data.expected.test (39) is not what was found (40): is this the data set that is meant?"]
    assert any("(a 0.6, b 2.6)" in line for line in lines)


def test_an_encoder_that_is_not_trained_is_refused_before_documents_are_read(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    lines: list[str] = []
    config = tiny_config(encoder={"kind": "transformer", "name": "/nowhere"}, optim={"encoder": {"lr": 1e-4}})
    with pytest.raises(ValueError, match=r"encoder.name \(/nowhere\) must be the folder of a model"):
        train(config, log=lines.append)
    assert lines == []
    assert not (tmp_path / "run").exists()
