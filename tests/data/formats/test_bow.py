import gzip
from pathlib import Path

import numpy as np
import pytest

from format_cases import everything, found, make, told
from haste.config import Data
from haste.data.formats import DataError, Record, detect

GOOD = "3 5 4\n0,3 1:0.5 4:2\n 2:1e-3\n3 \n"


def _rows(records: list[Record]) -> list[tuple[str, tuple[int, ...], list[int], list[float]]]:
    for record in records:
        assert record.columns is not None
        assert record.values is not None
        assert (record.columns.dtype, record.values.dtype) == (np.int64, np.float32)
    return [(r.id, r.labels, r.columns.tolist(), r.values.tolist()) for r in records]  # type: ignore[union-attr]


EXPECTED = [
    ("1", (0, 3), [1, 4], [0.5, 2]),
    ("2", (), [2], [float(np.float32(1e-3))]),
    ("3", (3,), [], []),
]


def test_labels_are_numbers_and_features_given(tmp_path: Path) -> None:
    source = found(tmp_path, {"train.txt": GOOD, "test.txt.gz": gzip.compress(GOOD.encode())})
    assert (source.format, source.kind, source.num_features, source.num_labels) == ("bow", "sparse", 5, 4)
    assert source.reason == "the folder holds train.txt and test.txt.gz"
    documents, labels, _, problems = everything(source)
    assert problems == []
    assert _rows(documents["train"]) == _rows(documents["test"]) == EXPECTED
    assert [document.line for document in documents["train"]] == [2, 3, 4]
    assert [label.name for label in labels] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + GOOD.replace("\n", "\r\n"),
        "3 5 4\n0,3 4:2 1:0.5\n2:1e-3\n3\n\n\n",
        "3\t5 4\n0,3\t1:0.5\t4:2.0\n\t2:.001  \n3",
        " 3 5 4 \n0,3  1:+0.5  4:2\n 2:1E-3\n3 ",
    ],
)
def test_what_others_write_is_read_alike(tmp_path: Path, content: str) -> None:
    documents, _, _, problems = everything(found(tmp_path, {"train.txt": content}))
    assert problems == []
    assert _rows(documents["train"]) == EXPECTED


def test_more_rows_than_are_parsed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("haste.data.formats._numbers._BLOCK", 5000)
    rows = [f"{i % 7} {i % 11}:{i} {11 + i % 3}:0.1" for i in range(1500)]
    for wrong in (None, 700):
        if wrong:
            rows[wrong] = "0 1:x"
        source = found(tmp_path, {"train.txt": "\n".join(["1500 14 7", *rows])})
        documents, _, _, problems = everything(source)
        expected = [
            (str(i + 1), (i % 7,), [i % 11, 11 + i % 3], [float(i), float(np.float32(0.1))])
            for i in range(1500)
            if i != wrong
        ]
        assert _rows(documents["train"]) == expected
        assert len(problems) == (1 if wrong else 0)


def test_names_and_filter(tmp_path: Path) -> None:
    files = {"train.txt": GOOD, "Y.txt": "a\nb\na\n\n", "filter_labels_train.txt": "0 3\n\n2 1\n"}
    source = found(tmp_path, files)
    _, labels, pairs, problems = everything(source)
    assert problems == []
    assert [label.name for label in labels] == ["a", "b", "a #2", "#3"]
    assert pairs == {"train": [(0, 3), (2, 1)]}
    assert source.files() == {
        "train": (tmp_path / "train.txt", tmp_path / "filter_labels_train.txt"),
        "labels": (tmp_path / "Y.txt",),
    }


def test_names_made_others_are_said_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = found(tmp_path, {"train.txt": GOOD, "Y.txt": b"a\na #2\na\ncaf\xe9\n"})
    assert [label.name for label in everything(source)[1]] == ["a", "a #2", "a #2 #2", "caf\ufffd"]
    assert caplog.messages == [
        f"{tmp_path / 'Y.txt'}: 1 names are not UTF-8; their bytes became U+FFFD",
        f"{tmp_path / 'Y.txt'}: 1 names stand twice or are empty; they became 'name #NUMBER'",
    ]


def test_lists_of_rows_choose_the_splits(tmp_path: Path) -> None:
    data = "4 3 2\n0 0:1\n1 1:1\n0 2:1\n1 0:2\n"
    for base in (0, 1):
        folder = tmp_path / str(base)
        lists = {
            "x_trSplit.txt": f"{3 + base} {base}\n{base} {1 + base}\n",
            "x_tstSplit.txt": f"{1 + base} {3 + base}\n",
        }
        source = found(folder, {"x_data.txt": data, **lists})
        assert source.reason == (
            "the folder holds x_data.txt, x_trSplit.txt and x_tstSplit.txt; "
            f"rows count from {base}, the first of 2 columns is read"
        ).replace("x_trSplit.txt and", "x_trSplit.txt, x_data.txt and")
        documents = everything(source)[0]
        assert [document.id for document in documents["train"]] == ["1", "4"]
        assert [document.id for document in documents["test"]] == ["2"]
        assert [document.line for document in documents["test"]] == [3]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            "1\n5\n",
            "2\n",
            "x_trSplit.txt: rows from 1 to 5 must be in [1, 4], or in [0, 3] (in x_trSplit.txt, x_tstSplit.txt)",
        ),
        (
            "0\n4\n",
            "2\n",
            "x_trSplit.txt: rows from 0 to 4 must be in [1, 4], or in [0, 3] (in x_trSplit.txt, x_tstSplit.txt)",
        ),
        (
            "1\n3\n",
            "2\n",
            "x_trSplit.txt: rows from 1 to 3 of 4 may count from 0 or from 1 (in x_trSplit.txt, x_tstSplit.txt); "
            "write each split into a file of its own, as train.txt and test.txt",
        ),
        ("1\n2\n", "4\n2\n", "x_tstSplit.txt:2: row 2 is in train already; a document is in one split, once"),
        ("1\n1\n", "4\n", "x_trSplit.txt:2: row 1 is in train already; a document is in one split, once"),
        ("1 2\n3\n", "4 4\n", "x_trSplit.txt:2: must hold 2 whole numbers, one for each way to split (found: '3')"),
        ("1\n-3\n", "4\n", "x_trSplit.txt:2: must hold 1 whole numbers, one for each way to split (found: '-3')"),
    ],
)
def test_lists_of_rows_that_are_broken(tmp_path: Path, train: str, test: str, message: str) -> None:
    files = {"x_data.txt": "4 3 2\n0 0:1\n1 1:1\n0 2:1\n1 0:2\n", "x_trSplit.txt": train, "x_tstSplit.txt": test}
    assert told(tmp_path, files) == [message]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("2 5 4\n0 1:1\n", ["train.txt:2: ends after 1 rows, the header says 2; get it whole"]),
        ("1 5 4\n0 1:1\n\n1 1:1\n", ["train.txt:4: is more than the 1 rows of the header; correct the first line"]),
        (
            "1 5 4\n4 1:1\n",
            ["train.txt:2: label 4 must be in [0, 4); count from 0, or correct the file's first line"],
        ),
        (
            "1 5 4\n-1 1:1\n",
            ["train.txt:2: label -1 must be in [0, 4); count from 0, or correct the file's first line"],
        ),
        ("1 5 4\n1.5 1:1\n", ["train.txt:2: label '1.5' must be a whole number"]),
        ("1 5 4\n1_0 1:1\n", ["train.txt:2: label '1_0' must be a whole number"]),
        ("1 5 4\n1,,2 1:1\n", ["train.txt:2: label '' must be a whole number"]),
        ("1 5 4\nx 1:1\n", ["train.txt:2: label 'x' must be a whole number"]),
        (
            "1 5 4\n1 5:1\n",
            ["train.txt:2: column 5 must be in [0, 5); count from 0, or correct the file's first line"],
        ),
        (
            "1 5 4\n1 -2:1\n",
            ["train.txt:2: column -2 must be in [0, 5); count from 0, or correct the file's first line"],
        ),
        ("1 5 4\n1 a:1\n", ["train.txt:2: column 'a' must be a whole number"]),
        ("1 5 4\n1 1:\n", ["train.txt:2: '1:' must be column:value, as in 7:0.5"]),
        ("1 5 4\n1 2 3:1\n", ["train.txt:2: '2' must be column:value, as in 7:0.5"]),
        ("1 5 4\n1 2:3:1\n", ["train.txt:2: the value of column 2 ('3:1') must be a number"]),
        ("1 5 4\n1 2:0x1\n", ["train.txt:2: the value of column 2 ('0x1') must be a number"]),
        ("1 5 4\n1 2:1_0\n", ["train.txt:2: the value of column 2 ('1_0') must be a number"]),
        ("1 5 4\n1 2:nan\n", ["train.txt:2: the value of column 2 (nan) must be finite, within float32"]),
        ("1 5 4\n1 2:-inf\n", ["train.txt:2: the value of column 2 (-inf) must be finite, within float32"]),
        ("1 5 4\n1 2:1e39\n", ["train.txt:2: the value of column 2 (1e39) must be finite, within float32"]),
        ("1 5 4\n1 2:1 0:1 2:1\n", ["train.txt:2: column 2 stands twice; keep one of them"]),
        ("1 5 4\n1 2:1 2:2\n", ["train.txt:2: column 2 stands twice; keep one of them"]),
        (b"1 5 4\n1 2:1\xff\n", ["train.txt:2: the value of column 2 ('1\ufffd') must be a number"]),
        (b"1 5 4\n1 2:1\0\n", ["train.txt:2: the value of column 2 ('1\\x00') must be a number"]),
        (
            "2 5 4\n9 9:1\n0 1:1 1:1\n",
            [
                "train.txt:2: label 9 must be in [0, 4); count from 0, or correct the file's first line",
                "train.txt:2: column 9 must be in [0, 5); count from 0, or correct the file's first line",
                "train.txt:3: column 1 stands twice; keep one of them",
            ],
        ),
    ],
)
def test_broken(tmp_path: Path, content: str | bytes, expected: list[str]) -> None:
    assert told(tmp_path, {"train.txt": content}) == expected


def test_a_packed_file_cut_short_is_told_once(tmp_path: Path) -> None:
    rows = "".join(f"{i % 7} {i % 13}:{i * 7919 % 1009}\n" for i in range(4000))
    (message,) = told(tmp_path, {"train.txt.gz": gzip.compress(f"4000 13 7\n{rows}".encode())[:-3000]})
    assert message.endswith(": the gzip file is cut short; get it again")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"Y.txt": "a\nb\nc\n"}, ["Y.txt:4: ends after 3 names, the data set has 4 labels; get it whole"]),
        ({"Y.txt": "a\nb\nc\nd\n\ne\n"}, ["Y.txt:6: is more than the 4 labels of the data set; remove it"]),
        (
            {"filter_labels_train.txt": "0 4\n3 0\n-1 0\n1\n1 x\n0 0\n"},
            [
                "filter_labels_train.txt:1: label 4 must be in [0, 4); count from 0",
                "filter_labels_train.txt:2: document 3 must be in [0, 3); count from 0",
                "filter_labels_train.txt:3: document -1 must be in [0, 3); count from 0",
                "filter_labels_train.txt:4: must be a document's and a label's number, as in '3 17' (found: '1')",
                "filter_labels_train.txt:5: must be a document's and a label's number, as in '3 17' (found: '1 x')",
            ],
        ),
        (
            {"test.txt": "1 6 4\n0 1:1\n"},
            [
                "test.txt:1: has 6 columns and 4 labels, train.txt 5 columns and 4 labels; correct one of the "
                "first lines"
            ],
        ),
        (
            {"test.txt": "0 5\n"},
            ["test.txt:1: must hold 3 whole numbers, documents, columns, labels (found: '0 5')"],
        ),
    ],
)
def test_broken_companions(tmp_path: Path, files: dict[str, str], expected: list[str]) -> None:
    assert told(tmp_path, {"train.txt": GOOD, **files}) == expected


def test_a_file_with_a_test_file_beside_it(tmp_path: Path) -> None:
    make(tmp_path, {"one.txt": GOOD, "two.data": GOOD, "three.txt": GOOD})
    source = detect(Data(path=str(tmp_path / "one.txt"), test=str(tmp_path / "three.txt")))
    assert source.splits == ("train", "test")
    with pytest.raises(DataError) as caught:
        detect(Data(path=str(make(tmp_path, {"four.txt": "a text\n"}) / "four.txt")))
    assert str(caught.value) == (
        f"{tmp_path / 'four.txt'}: four.txt is no bow: its first line must count documents, columns and labels, as "
        "'4880 1836 159'; raw texts are named trn_X.txt and their labels trn_X_Y.txt or trn_labels.txt"
    )
