"""What docs/integrations.md shows runs as it stands there, one block after the other."""

import re
from pathlib import Path
from typing import Any

import pytest

from integration_cases import TinyModel, documents, pad

PAGE = Path(__file__).parents[2] / "docs/integrations.md"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = TinyModel()
    names: dict[str, Any] = {"model": model, "documents": documents(), "pad": pad}
    for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        exec(compile(code, PAGE.name, "exec"), names)
        if "batch" in names and "features" not in names:
            names["features"] = model(**names["batch"])
    assert names["offsets"].tolist() == [0, 2, 2, 3]
    assert names["labels"].tolist() == [4, 0, 7]
    assert names["trainer"].state.global_step == 10
    (callback,) = [c for c in names["trainer"].callback_handler.callbacks if type(c).__name__ == "RewireCallback"]
    assert [found["step"] for found in callback.history] == [5]
    assert model.output.tail is not None
    assert model.output.tail.regrown is not None
    assert model.output.tail.regrown.any()


def test_every_example_is_named() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in ("plain_pytorch", "huggingface_trainer", "lightning_module", "texts"):
        assert f"examples/{name}.py" in text
