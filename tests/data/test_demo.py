import asyncio
import email
import json
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from haste.config import Data
from haste.data import demo
from haste.data.dataset import load_dataset
from haste.data.demo import write_demo_data
from haste.data.formats import DataError, Record, read_jsonl

SHAPES = '''
"""A module."""
import base

@base.decorator(called_outside())
def areaOfHTTPCircle2(radius, unit=default_unit()):
    """Area of a circle.

        Indented.
    """
    print(radius, len(str(radius)))
    return base.math.square(radius)

class Shape:
    """A class."""

    async def draw_all(self, items):
        """Draws every one."""
        def inner(item):
            """Draws one."""
            return str(item)
        self.canvas.print(*[inner(item) for item in items])
        (lambda: len(items))()

    def no_docstring(self):
        print(len(self))

    def no_calls(self):
        """Does nothing."""

    def once(self):
        """Calls what no other function calls."""
        return unheard_of()

def odd():
    "Half a pair \\\\ud800 becomes a question mark."
    print(), square(1)
'''


def _tree(root: Path) -> Path:
    sources = {
        "shapes.py": SHAPES.replace("\\\\ud800", "\\ud800"),
        "deep/__init__.py": "def plus():\n    'Adds a lot.'\n    return " + "1 + " * 900 + "len('a')\n",
        "deep/copy.py": "def plus():\n    'Adds a lot.'\n    return 2 + len('b')\n",
        "deep/latin.py": "# -*- coding: latin-1 -*-\ndef café():\n    'Très bien.'\n    len('é')\n",
        "_private.py": "def hidden():\n    'Private.'\n    len(1)\n",
        "_more/open.py": "def hidden():\n    'Private too.'\n    len(1)\n",
        "tests/helpers.py": "def hidden():\n    'Test.'\n    len(1)\n",
        "deep/test_deep.py": "def hidden():\n    'Test.'\n    len(1)\n",
        "site-packages/other.py": "def hidden():\n    'Another package.'\n    len(1)\n",
        "broken.py": "def broken(:\n",
        "bytes.py": "\x00",
        "notes.txt": "def hidden():\n    'No Python.'\n    len(1)\n",
    }
    for name, content in sources.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("latin-1"))
    (root / "encoding.py").write_bytes(b"def hidden():\n    'caf\xe9'\n    len(1)\n")
    (root / "dangling.py").symlink_to(root / "nowhere.py")
    return root


def _written(tmp_path: Path) -> tuple[list[Record], list[str]]:
    lines: list[str] = []
    folder = write_demo_data(tmp_path / "data", folders={"tree": tmp_path / "tree"}, log=lines.append)
    assert folder == tmp_path / "data"
    return [record for path in sorted(folder.glob("*.jsonl.gz")) for record in read_jsonl(path)], lines


def test_documents_of_a_small_tree(tmp_path: Path) -> None:
    _tree(tmp_path / "tree")
    records, lines = _written(tmp_path)
    assert sorted(records, key=lambda record: record.id) == [
        Record("tree/deep/__init__.py:1", "plus\nAdds a lot.", ("len",)),
        Record("tree/deep/latin.py:2", "café\nTrès bien.", ("len",)),
        Record("tree/shapes.py:17", "draw all draw_all\nDraws every one.", ("len", "print", "str")),
        Record("tree/shapes.py:19", "inner\nDraws one.", ("str",)),
        Record("tree/shapes.py:35", "odd\nHalf a pair ? becomes a question mark.", ("print", "square")),
        Record(
            "tree/shapes.py:6",
            "area Of HTTP Circle 2 areaOfHTTPCircle2\nArea of a circle.\n\nIndented.",
            ("len", "print", "square", "str"),
        ),
    ]
    assert lines[0] == "reading 8 Python files of tree (4 tests or private left out)"
    assert lines[1] == (
        "10 functions, 9 with a docstring, 8 of them with a call, 7 distinct, 6 left when labels seen once are dropped"
    )
    assert lines[2] == (
        "4 files could not be read or parsed: tree/broken.py, tree/bytes.py, tree/dangling.py, tree/encoding.py"
    )
    counts = Counter(line.split(":")[0] for line in lines[3:])
    assert counts == {"train": 1, "dev": 1, "test": 1}
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert (manifest["documents"], manifest["labels"]) == (6, 4)
    assert list(manifest["skipped"]) == ["tree/broken.py", "tree/bytes.py", "tree/dangling.py", "tree/encoding.py"]
    assert manifest["skipped"]["tree/broken.py"].startswith("SyntaxError: ")


def test_written_again_only_when_something_changed(tmp_path: Path) -> None:
    tree = _tree(tmp_path / "tree")
    first, _ = _written(tmp_path)
    data = tmp_path / "data"
    digests = demo._digests(data)

    def rewritten() -> bool:
        records, lines = _written(tmp_path)
        assert records == first
        assert demo._digests(data) == digests
        assert len(lines) == 1 or lines[0].startswith("reading ")
        return len(lines) > 1

    assert not rewritten()
    assert _written(tmp_path)[1] == [f"{data} is up to date: 6 documents, 4 labels"]
    train = data / "train.jsonl.gz"
    train.write_bytes(train.read_bytes()[:-1])
    assert rewritten()
    train.unlink()
    assert rewritten()
    manifest = data / "manifest.json"
    good = manifest.read_text()
    for damaged in ("{", "[]", "{}", json.dumps({**json.loads(good), "documents": "6"})):
        manifest.write_text(damaged)
        assert rewritten()
        assert manifest.read_text() == good
    (tree / "new.py").write_text("x = 1\n")
    assert rewritten()
    assert not rewritten()


def test_a_split_that_became_empty_is_removed(tmp_path: Path) -> None:
    _tree(tmp_path / "tree")
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train", "dev", "test"):
        (data / f"{name}.jsonl.gz").write_bytes(b"left over")
    records, _ = _written(tmp_path)
    assert len(records) == 6


def test_same_text_is_in_one_split(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for i in range(40):
        body = f"    'Does {i % 20}.'\n    first()\n" + "    second()\n" * (i // 20)
        (tree / f"m{i}.py").write_text(f"def f():\n{body}")
    _written(tmp_path)
    splits = [{r.text for r in read_jsonl(path)} for path in sorted((tmp_path / "data").glob("*.jsonl.gz"))]
    assert len(splits) > 1
    assert sum(map(len, splits)) == len(set().union(*splits)) == 20


def test_dropping_a_document_can_make_other_labels_rare(tmp_path: Path) -> None:
    """Without `rare`, two documents are the same, and what both called is then called once."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for i, calls in enumerate(("both(), rare1()", "both(), rare2()")):
        (tree / f"twin{i}.py").write_text(f"def twin():\n    'Twin.'\n    {calls}\n")
    for i in range(3):
        (tree / f"m{i}.py").write_text(f"def m{i}():\n    'Other.'\n    kept()\n")
    records, _ = _written(tmp_path)
    assert sorted((record.text, record.labels) for record in records) == [
        (f"m {i} m{i}\nOther.", ("kept",)) for i in range(3)
    ]


def test_no_functions_at_all(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with pytest.raises(DataError, match=r"tree: no function with a docstring was found$"):
        _written(tmp_path)
    assert not (tmp_path / "data").exists()


def test_standard_library_packages_make_a_usable_data_set(tmp_path: Path) -> None:
    folders = {"asyncio": Path(asyncio.__file__).parent, "email": Path(email.__file__).parent}
    write_demo_data(tmp_path, folders=folders, log=lambda line: None)
    data = load_dataset(Data(path=str(tmp_path)), seed=0)
    assert data.test is not None
    assert len(data.train) > 150
    assert len(data.test) > 10
    assert {"isinstance", "len", "append"} <= set(data.labels.names[: data.labels.num_labels])


def test_packages_are_the_dependencies_of_haste() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())
    needed = {re.split(r"[<>=]", line)[0] for line in project["project"]["dependencies"]}
    assert set(demo._PACKAGES.values()) - needed == {"sympy", "networkx"}
    assert needed <= set(demo._PACKAGES.values())


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(demo._PACKAGES, "no_such_package", "no-such-package")
    lines: list[str] = []
    found = demo._installed(lines.append)
    assert lines == ["no_such_package is not installed as a folder of Python code; left out"]
    assert {"python", "torch", "numpy"} <= found.keys()
    assert all((path / "__init__.py").is_file() for name, path in found.items() if name != "python")
    assert (found["python"] / "json").is_dir()


@pytest.mark.slow
def test_the_code_on_this_machine(tmp_path: Path) -> None:
    write_demo_data(tmp_path, log=lambda line: None)
    data = load_dataset(Data(path=str(tmp_path)), seed=0)
    assert data.dev is not None
    assert data.test is not None
    total = len(data.train) + len(data.dev) + len(data.test)
    assert 12_000 < total < 30_000
    assert 5_000 < data.labels.num_labels < 12_000
    assert 0.07 < len(data.test) / total < 0.13
    assert data.labels.names[int(data.labels.counts.argmax())] in ("len", "isinstance")
