"""What docs/formats.md shows of each format is read, and taken for what it says there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from haste.config import Data
from haste.data.check import check
from haste.data.formats import detect

PAGE = (Path(__file__).parents[1] / "docs/formats.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
SHOWN = [name for name, text in SECTIONS.items() if "Taken for:" in text]


def test_every_format_has_a_section() -> None:
    formats = Data.__annotations__["format"].__args__
    assert set(SECTIONS) - {"New documents"} == set(formats) - {"auto"}
    assert set(SHOWN) == set(formats) - {"auto", "haste"}


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_is_taken_for_what_the_page_says(name: str, tmp_path: Path) -> None:
    files = re.findall(r"^`(\S+)`\n```\w*\n(.*?)^```", SECTIONS[name], re.DOTALL | re.MULTILINE)
    for file, text in files:
        (tmp_path / file).write_text(text)
    for code in re.findall(r"^```python\n(.*?)^```", SECTIONS[name], re.DOTALL | re.MULTILINE):
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    source = detect(Data(path=str(tmp_path)))
    found = re.search(r"^Taken for: `(.*)`$", SECTIONS[name], re.MULTILINE)
    assert found is not None
    assert f"{source.format}: {source.reason}" == found[1]
    report = check(source)
    assert report.problems.total == 0
    assert report.splits["train"].documents >= 2
    assert report.splits["train"].pairs >= 3
