from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from format_cases import everything, found, told
from haste.data.formats import Record


def _packed(columns: dict[str, Any], **options: Any) -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns), sink, **options)
    return sink.getvalue().to_pybytes()


def test_lists_of_labels_and_several_texts(tmp_path: Path) -> None:
    columns = {
        "id": ["a", None],
        "title": ["t", None],
        "body": ["b", "c"],
        "labels": [["x", "y"], None],
        "more": [1, 2],
    }
    source = found(tmp_path, {"train.parquet": _packed(columns)}, text="title+body")
    assert (source.format, source.kind, source.reason) == ("parquet", "text", "the folder holds train.parquet")
    documents = everything(source)[0]["train"]
    assert documents == [Record("a", "t b", ("x", "y")), Record("2", "c", ())]
    assert [document.line for document in documents] == [1, 2]


@pytest.mark.parametrize(
    ("labels", "expected", "said"),
    [
        (pyarrow.array(["x|y", "z"]), [("x", "y"), ("z",)], "; 'labels' are separated by '|'"),
        (pyarrow.array(["x y", None]), [("x y",), ()], "; each 'labels' is one label"),
        (pyarrow.array(["x", "y"]).dictionary_encode(), [("x",), ("y",)], "; each 'labels' is one label"),
        (pyarrow.array([3, None]), [("3",), ()], ""),
        (pyarrow.array([[3, 4], []]), [("3", "4"), ()], ""),
        (pyarrow.array([["x"], ["y"]], pyarrow.large_list(pyarrow.large_string())), [("x",), ("y",)], ""),
    ],
)
def test_kinds_of_labels(tmp_path: Path, labels: Any, expected: list[tuple[str, ...]], said: str) -> None:
    source = found(tmp_path, {"train.parquet": _packed({"text": ["a", "b"], "labels": labels})})
    assert [document.labels for document in everything(source)[0]["train"]] == expected
    assert source.reason == "the folder holds train.parquet" + said


def test_more_rows_than_are_read_at_once(tmp_path: Path) -> None:
    columns = {"id": range(3000), "text": [f"t{i}" for i in range(3000)], "labels": [["x"]] * 3000}
    documents = everything(found(tmp_path, {"train.parquet": _packed(columns, row_group_size=700)}))[0]["train"]
    assert [(document.id, document.text, document.line) for document in documents] == [
        (str(i), f"t{i}", i + 1) for i in range(3000)
    ]


GOOD = {"text": ["a", "b"], "labels": [["x"], ["y"]]}


@pytest.mark.parametrize(
    ("content", "settings", "expected"),
    [
        (
            b"not parquet",
            {},
            [
                "train.parquet: not readable as parquet (Parquet magic bytes not found in footer. Either the file is "
                "corrupted or this is not a parquet file); get it again"
            ],
        ),
        (
            b"",
            {},
            ["train.parquet: not readable as parquet (Parquet file size is 0 bytes); get it again"],
        ),
        (
            _packed({"body": ["a"], "labels": [["x"]]}),
            {},
            ["train.parquet: no column 'text' (found: body, labels); set data.text to the column of the text"],
        ),
        (
            _packed({"text": ["a"]}),
            {},
            ["train.parquet: no column 'labels' (found: text); set data.labels to the column of the labels"],
        ),
        (
            _packed(GOOD),
            {"id": "key"},
            ["train.parquet: no column 'key' (found: text, labels); set data.id to the column of the documents' ids"],
        ),
        (
            _packed({**GOOD, "text": [1, 2]}),
            {},
            ["train.parquet: column 'text' holds int64, must hold strings"],
        ),
        (
            _packed({**GOOD, "labels": [1.5, 2.5]}),
            {},
            ["train.parquet: column 'labels' holds double, must hold lists of strings, or strings"],
        ),
        (
            _packed({**GOOD, "id": [1.5, 2.5]}),
            {},
            ["train.parquet: column 'id' holds double, must hold strings or whole numbers"],
        ),
        (
            _packed({"text": [None, "b", "c"], "labels": [["x"], ["x", None], [""]]}),
            {},
            [
                "train.parquet:1: the value of 'text' (null) must be a string",
                "train.parquet:2: the value of 'labels' holds null, must be a list of strings",
                "train.parquet:3: the value of 'labels' holds an empty string; remove it or name the label",
            ],
        ),
    ],
)
def test_broken(tmp_path: Path, content: bytes, settings: dict[str, str], expected: list[str]) -> None:
    assert told(tmp_path, {"train.parquet": content}, **settings) == expected


def test_a_damaged_page_is_told_with_its_row(tmp_path: Path) -> None:
    columns = {"text": [f"{i * 7919 % 10007}" for i in range(5000)], "labels": [["x"]] * 5000}
    content = bytearray(_packed(columns, compression="gzip", row_group_size=2000, use_dictionary=False))
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
    documents, _, _, problems = everything(found(tmp_path, {"train.parquet": bytes(content)}))
    (message,) = problems
    row = len(documents["train"]) + 1
    assert row > 1000
    assert message.startswith(f"{tmp_path / 'train.parquet'}:{row}: not readable as parquet (")
