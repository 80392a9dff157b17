import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from format_cases import everything
from haste.config import Data
from haste.data.formats import DataError, detect, write
from haste.data.source import LabelRecord, Problem, Record, Source, raise_problem

BY_NAME = ("jsonl", "csv", "parquet")
TEXT_BY_NUMBER = ("lf", "raw", "npz")
SPARSE = ("bow", "split", "npz")


class Made(Source):
    """A data set in memory."""

    format = "made"
    reason = "made"
    path = Path("made")

    def __init__(
        self,
        kind: Any,
        documents: dict[str, list[Record]],
        labels: list[LabelRecord] = (),  # type: ignore[assignment]
        num_features: int | None = None,
        num_labels: int | None = None,
        pairs: dict[str, list[tuple[int, int]]] | None = None,
    ) -> None:
        self.kind = kind
        self.splits = tuple(documents)
        self.num_features = num_features
        self.num_labels = num_labels
        self._documents, self._labels, self._pairs = documents, list(labels), pairs or {}

    def files(self) -> dict[str, tuple[Path, ...]]:
        return {}

    def documents(self, split: str, problem: Problem = raise_problem) -> Iterator[Record]:
        return iter(self._documents[split])

    def labels(self, problem: Problem = raise_problem) -> Iterator[LabelRecord]:
        return iter(self._labels)

    def filter_pairs(self, split: str, problem: Problem = raise_problem) -> Iterator[tuple[int, int]]:
        return iter(self._pairs.get(split, []))


# Everything that UTF-8 holds; NUL stays out of the formats that refuse it.
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
texts = any_text.map(lambda text: text.replace("\0", ""))
odd = st.sampled_from([*"|;,\t\"'[]:# ", "\r\n", "\n", "\r", "\u2028", "\ufeff", "a", "1"])
odd_texts = st.lists(odd, max_size=8).map("".join)
text = st.one_of(texts, odd_texts)
name = text.filter(bool)
plain_name = text.map(str.strip).filter(lambda value: value and "\n" not in value and "\r" not in value)
splits = st.sampled_from([("train",), ("train", "test"), ("train", "dev", "test")])


@st.composite
def named(draw: st.DrawFn) -> Made:
    names = draw(st.lists(name, max_size=6, unique=True))
    labels = st.lists(st.sampled_from(names), max_size=4) if names else st.just([])
    documents = {
        split: [Record(draw(name), draw(text), tuple(draw(labels))) for _ in range(draw(st.integers(0, 5)))]
        for split in draw(splits)
    }
    described = [LabelRecord(label, draw(text)) for label in names[: draw(st.integers(0, len(names)))]]
    return Made("text", documents, described)


@st.composite
def numbered(draw: st.DrawFn, kind: str) -> Made:
    names = draw(st.lists(plain_name, min_size=1, max_size=6, unique=True))
    width = draw(st.integers(1, 8))
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)

    def record(number: int) -> Record:
        labels = tuple(sorted(draw(st.sets(st.integers(0, len(names) - 1)))))
        if kind == "text":
            return Record(str(number), draw(text), labels)
        if kind == "dense":
            values = draw(st.lists(finite, min_size=width, max_size=width))
            return Record(str(number), labels=labels, dense=np.array(values, np.float32))
        columns = sorted(draw(st.sets(st.integers(0, width - 1))))
        values = [draw(finite) for _ in columns]
        return Record(
            str(number), labels=labels, columns=np.array(columns, np.int64), values=np.array(values, np.float32)
        )

    documents = {split: [record(i) for i in range(1, draw(st.integers(0, 5)) + 1)] for split in draw(splits)}
    pairs = {
        split: [(row, draw(st.integers(0, len(names) - 1))) for row in range(len(rows)) if draw(st.booleans())]
        for split, rows in documents.items()
    }
    described = [LabelRecord(label) for label in names]
    return Made(kind, documents, described, None if kind == "text" else width, len(names), pairs)


def _written(format: str, source: Source, packed: str = "", **choice: Any) -> tuple[Source, Any]:
    """What is read from what was written, with all of it in memory."""
    folder = Path(tempfile.mkdtemp())
    try:
        paths = write(format, folder / "set", source, packed=packed)
        assert sorted(paths) == sorted((folder / "set").iterdir())
        read = detect(Data(path=str(folder / "set"), **choice))
        assert (read.format, read.splits) == (format, source.splits)
        return read, everything(read)
    finally:
        shutil.rmtree(folder)


def _values(record: Record) -> list[list[float]]:
    return [array.tolist() for array in (record.columns, record.values, record.dense) if array is not None]


FEW = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize("format", BY_NAME)
@FEW
@given(source=named(), packed=st.sampled_from(["", ".gz", ".zst"]))
def test_texts_with_named_labels_come_back(format: str, source: Made, packed: str) -> None:
    read, (documents, labels, _, problems) = _written(format, source, packed)
    assert problems == []
    assert read.num_labels is None
    assert documents == {split: list(source.documents(split)) for split in source.splits}
    assert labels == list(source.labels())


def _one_line(value: str) -> str:
    return value.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")


@pytest.mark.parametrize("format", TEXT_BY_NUMBER)
@FEW
@given(source=numbered("text"), packed=st.sampled_from(["", ".gz", ".zst"]))
def test_texts_with_numbered_labels_come_back(format: str, source: Made, packed: str) -> None:
    read, (documents, labels, pairs, problems) = _written(format, source, packed)
    assert problems == []
    assert read.num_labels == source.num_labels
    assert labels == list(source.labels())
    for split in source.splits:
        for record, before in zip(documents[split], source.documents(split), strict=True):
            assert record.text == (before.text if format == "lf" else _one_line(before.text))
            assert (record.id, record.labels) == (before.id, before.labels)
        assert pairs[split] == list(source.filter_pairs(split))


@pytest.mark.parametrize(("format", "kind"), [*((format, "sparse") for format in SPARSE), ("npz", "dense")])
@FEW
@given(data=st.data(), packed=st.sampled_from(["", ".gz", ".zst"]))
def test_features_come_back(format: str, kind: str, data: st.DataObject, packed: str) -> None:
    source = data.draw(numbered(kind))
    read, (documents, labels, pairs, problems) = _written(format, source, packed)
    assert problems == []
    assert (read.kind, read.num_features, read.num_labels) == (kind, source.num_features, source.num_labels)
    assert labels == list(source.labels())
    for split in source.splits:
        for record, before in zip(documents[split], source.documents(split), strict=True):
            assert _values(record) == _values(before)
            assert (record.id, record.labels) == (before.id, before.labels)
        assert pairs[split] == list(source.filter_pairs(split))


@pytest.mark.parametrize("format", [*BY_NAME, *TEXT_BY_NUMBER])
def test_labels_change_between_names_and_numbers(format: str) -> None:
    records = [Record("a", "one", ("b", "a", "b")), Record("b", "two", ()), Record("c", "three", ("c",))]
    by_name = Made("text", {"train": records}, [LabelRecord("c", "the c"), LabelRecord("z")])
    numbers = [Record("a", "one", (1, 0, 1)), Record("b", "two", ()), Record("c", "three", (2,))]
    by_number = Made("text", {"train": numbers}, [LabelRecord(label, "the") for label in "abcz"], num_labels=4)
    for source, order in ((by_name, ["c", "z", "a", "b"]), (by_number, ["a", "b", "c", "z"])):
        read, (documents, labels, _, problems) = _written(format, source)
        assert problems == []
        names = [label.name for label in labels]
        if format in TEXT_BY_NUMBER:
            assert names == order
            found = [tuple(names[label] for label in record.labels) for record in documents["train"]]
        else:
            assert names == (order if source is by_number else ["c", "z"])
            found = [record.labels for record in documents["train"]]
        repeated = format in (*BY_NAME, "lf")
        first = ("b", "a", "b") if repeated else tuple(sorted({"a", "b"}, key=order.index))
        assert found == [first, (), ("c",)]
        assert read.num_labels == (4 if format in TEXT_BY_NUMBER else None)


@pytest.mark.parametrize(("first", "expected"), [(999, "'|'"), (1000, "lists")])
def test_csv_is_read_as_it_was_written_where_several_labels_come_late(first: int, expected: str) -> None:
    records = [Record(str(i), "t", ("a", "b") if i == first else ("a",)) for i in range(first + 1)]
    read, (documents, _, _, _) = _written("csv", Made("text", {"train": records}))
    assert documents["train"] == records
    assert expected in read.reason


def test_names_of_files(tmp_path: Path) -> None:
    row = Record("1", "t", (0,), np.array([0]), np.ones(1, np.float32), np.ones(1, np.float32))
    splits = {"train": [row], "dev": [row], "test": [row]}
    expected = {
        ("jsonl", "text"): "dev.jsonl.gz labels.jsonl.gz test.jsonl.gz train.jsonl.gz",
        ("csv", "text"): "dev.csv.gz labels.jsonl.gz test.csv.gz train.csv.gz",
        ("parquet", "text"): "dev.parquet labels.jsonl.gz test.parquet train.parquet",
        ("lf", "text"): "dev.json.gz filter_labels_test.txt lbl.json.gz trn.json.gz tst.json.gz",
        ("bow", "sparse"): "Y.txt.gz dev.txt.gz filter_labels_test.txt test.txt.gz train.txt.gz",
        ("split", "sparse"): (
            "Y.txt.gz dev_X_Xf.txt.gz dev_X_Y.txt.gz filter_labels_test.txt trn_X_Xf.txt.gz trn_X_Y.txt.gz "
            "tst_X_Xf.txt.gz tst_X_Y.txt.gz"
        ),
        ("npz", "sparse"): (
            "X.dev.npz X.trn.npz X.tst.npz Y.dev.npz Y.trn.npz Y.tst.npz filter_labels_test.txt output-items.txt"
        ),
        ("npz", "dense"): (
            "X.dev.npy X.trn.npy X.tst.npy Y.dev.npz Y.trn.npz Y.tst.npz filter_labels_test.txt output-items.txt"
        ),
        ("npz", "text"): (
            "X.dev.txt.gz X.trn.txt.gz X.tst.txt.gz Y.dev.npz Y.trn.npz Y.tst.npz filter_labels_test.txt "
            "output-items.txt"
        ),
        ("raw", "text"): (
            "Y.txt.gz dev_X.txt.gz dev_X_Y.txt.gz filter_labels_test.txt trn_X.txt.gz trn_X_Y.txt.gz tst_X.txt.gz "
            "tst_X_Y.txt.gz"
        ),
    }
    for (format, kind), names in expected.items():
        folder = tmp_path / f"{format}-{kind}"
        source = Made(kind, splits, [LabelRecord("a")], 1, 1, {"test": [(0, 0)]})
        paths = write(format, folder, source, packed=".gz")
        assert " ".join(sorted(path.name for path in paths)) == names
        assert sorted(paths) == sorted(folder.iterdir())


def test_what_others_read(tmp_path: Path) -> None:
    from scipy.sparse import load_npz
    from sklearn.datasets import load_svmlight_file

    row = Record("1", "t", (0, 2), np.array([0, 3]), np.array([0.1, 2], np.float32))
    empty = Record("2", "", (1,), np.array([], np.int64), np.array([], np.float32))
    source = Made("sparse", {"train": [row, empty]}, [LabelRecord(name) for name in "abc"], 4, 3)
    write("npz", tmp_path / "npz", source)
    matrix = load_npz(tmp_path / "npz" / "X.trn.npz")
    assert matrix.format == "csr"
    assert matrix.has_canonical_format
    assert (matrix.toarray() == np.array([[0.1, 0, 0, 2], [0] * 4], np.float32)).all()
    assert load_npz(tmp_path / "npz" / "Y.trn.npz").toarray().tolist() == [[1, 0, 1], [0, 1, 0]]
    write("bow", tmp_path / "bow", source)
    assert (tmp_path / "bow" / "train.txt").read_text() == "2 4 3\n0,2 0:0.100000001 3:2\n1 \n"
    rows = tmp_path / "rows.txt"
    rows.write_text("".join((tmp_path / "bow" / "train.txt").read_text().splitlines(True)[1:]))
    features, labels = load_svmlight_file(str(rows), n_features=4, multilabel=True, zero_based=True)
    assert features.toarray()[0].astype(np.float32).tolist() == matrix.toarray()[0].tolist()
    assert labels == [(0, 2), (1,)]


def test_the_same_data_make_the_same_bytes(tmp_path: Path) -> None:
    row = Record("1", labels=(0,), columns=np.array([1]), values=np.ones(1, np.float32))
    for name in "ab":
        write("npz", tmp_path / name, Made("sparse", {"train": [row] * 50}, [LabelRecord("a")], 3, 1))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def _refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        write(*arguments, **options)
    return str(caught.value)


def test_what_a_format_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    one = Record("a", "t", ("x",))
    source = Made("text", {"train": [one]})
    assert _refused("bow", out, source) == (
        f"{out}: bow cannot hold texts; choose one of jsonl, csv, parquet, lf, raw, npz"
    )
    assert _refused("csv", out, Made("sparse", {"train": []}, num_features=1, num_labels=1)) == (
        f"{out}: csv cannot hold sparse features; choose one of npz, split, bow"
    )
    assert _refused("split", out, Made("dense", {"train": []}, num_features=1, num_labels=1)) == (
        f"{out}: split cannot hold dense features; choose one of npz"
    )
    assert _refused("xml", out, source) == (
        f"{out}: format xml cannot be written; choose one of jsonl, csv, parquet, lf, raw, npz, split, bow"
    )
    assert _refused("csv", out, source, packed=".xz") == f"{out}: packed (.xz) must be .gz, .zst or empty"
    for name in ("a\nb", " a"):
        assert _refused("raw", out, Made("text", {"train": [Record("a", "t", (name,))]})) == (
            f"{out}: raw cannot hold the label {name!r}, with a line break or blanks around it; choose lf"
        )
    assert not out.exists()
    out.mkdir()
    (out / "other").touch()
    assert _refused("csv", out, source) == f"{out}: must be empty or not there yet; choose another folder"


@pytest.mark.parametrize("format", ["csv", "raw"])
def test_nul_is_refused_and_leaves_no_file(tmp_path: Path, format: str) -> None:
    source = Made("text", {"train": [Record("a", "t"), Record("b", "t\0")]})
    path = tmp_path / ("train.csv" if format == "csv" else "trn_X.txt")
    assert _refused(format, tmp_path, source) == (
        f"{path}: cannot hold the NUL character of document b; remove it, or write jsonl"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    record = Record("a", "one\ntwo", (0,))
    source = Made("text", {"train": [record]}, [LabelRecord("x", "the x")], None, 1, {"train": [(0, 0)]})
    lines: list[str] = []
    write("raw", tmp_path / "raw", source, log=lines.append)
    assert lines == [
        "train: line breaks in 1 texts are blanks now",
        "train: 1 documents in trn_X.txt and trn_X_Y.txt",
        "ids are left out; raw has no place for them, lf has",
        "texts of labels are left out; raw has no place for them, lf has",
    ]
    lines.clear()
    write("csv", tmp_path / "csv", source, log=lines.append)
    assert lines == [
        "train: the 1 pairs of the filter are left out; csv has no place for them, lf has",
        "train: 1 documents in train.csv",
    ]
