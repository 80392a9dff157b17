import gzip
from pathlib import Path

import pytest

from format_cases import everything, found, make, told
from haste.config import Data
from haste.data.formats import Record, detect

HEADER = "id,text,labels\n"
GOOD = HEADER + "a,one two,x|y\n"


def _documents(folder: Path, content: str | bytes, name: str = "train.csv", **settings: str) -> list[Record]:
    documents, _, _, problems = everything(found(folder, {name: content}, **settings))
    assert problems == []
    return documents["train"]


def test_a_table_of_every_split_with_labels_described(tmp_path: Path) -> None:
    files = {"train.csv": GOOD, "val.csv": HEADER + "b,three,\n", "tst.csv.gz": gzip.compress(GOOD.encode())}
    source = found(tmp_path, {**files, "labels.jsonl": '{"label": "x", "text": "the x"}\n'})
    assert (source.format, source.kind, source.splits) == ("csv", "text", ("train", "dev", "test"))
    assert source.reason == ("the folder holds train.csv, val.csv and tst.csv.gz; 'labels' are separated by '|'")
    assert source.files() == {
        "train": (tmp_path / "train.csv",),
        "dev": (tmp_path / "val.csv",),
        "test": (tmp_path / "tst.csv.gz",),
        "labels": (tmp_path / "labels.jsonl",),
    }
    documents, labels, pairs, _ = everything(source)
    assert documents["train"] == documents["test"] == [Record("a", "one two", ("x", "y"))]
    assert documents["dev"] == [Record("b", "three", ())]
    assert [(label.name, label.text) for label in labels] == [("x", "the x")]
    assert pairs == {"train": [], "dev": [], "test": []}


def test_quotes_line_breaks_and_the_line_of_each_row(tmp_path: Path) -> None:
    content = '\ufefftext,labels\r\n"a ""b"",\r\nc",x\r\n\r\nd,y\r\n'
    documents = _documents(tmp_path, content)
    assert [(d.id, d.text, d.labels, d.line) for d in documents] == [
        ("2", 'a "b",\r\nc', ("x",), 2),
        ("5", "d", ("y",), 5),
    ]


@pytest.mark.parametrize(("delimiter", "name"), [(",", "a.csv"), (";", "a.csv"), ("\t", "a.tsv"), ("|", "a.csv")])
def test_delimiters_and_several_texts(tmp_path: Path, delimiter: str, name: str) -> None:
    rows = [["title", "more", "body", "tags", "key"], ["t", "-", "b", "x y", "k"], ["", "-", "b", "", ""]]
    make(tmp_path, {name: "\n".join(delimiter.join(row) for row in rows)})
    source = detect(Data(path=str(tmp_path / name), text="title+body", labels="tags", id="key"))
    assert everything(source)[0]["train"] == [Record("k", "t b", ("x y",)), Record("3", "b", ())]
    assert source.reason == f"found {name}; each 'tags' is one label"


@pytest.mark.parametrize(
    ("cells", "expected", "said"),
    [
        (["x|y, z", "a"], [("x", "y, z"), ("a",)], "'labels' are separated by '|'"),
        (["x; y ;", "a"], [("x", "y"), ("a",)], "'labels' are separated by ';'"),
        (["x,y", "a,b"], [("x", "y"), ("a", "b")], "'labels' are separated by ','"),
        (["x\ty", "a"], [("x", "y"), ("a",)], "'labels' are separated by '\\t'"),
        (["x y", "a"], [("x y",), ("a",)], "each 'labels' is one label"),
        (['["x", "y,z"]', "[]"], [("x", "y,z"), ()], "'labels' are spelled as lists"),
        (["['x', 'y']", ""], [("x", "y"), ()], "'labels' are spelled as lists"),
        (["", ""], [(), ()], "the folder holds train.csv"),
    ],
)
def test_how_labels_are_separated_is_found(
    tmp_path: Path, cells: list[str], expected: list[tuple[str, ...]], said: str
) -> None:
    rows = ['t,"' + cell.replace('"', '""') + '"' for cell in cells]
    source = found(tmp_path, {"train.csv": "\n".join(["text,labels", *rows])})
    assert [document.labels for document in everything(source)[0]["train"]] == expected
    assert source.reason.endswith(said)


def test_a_rare_mark_is_not_the_separator(tmp_path: Path) -> None:
    content = "text,labels\n" + 't,"a,b"\n' * 30 + 't,"c|d,e"\n'
    assert _documents(tmp_path, content)[-1].labels == ("c|d", "e")


def test_the_separator_is_looked_for_behind_documents_without_labels(tmp_path: Path) -> None:
    assert _documents(tmp_path, "text,labels\n" + "t,\n" * 1500 + "t,x|y\n")[-1].labels == ("x", "y")


def test_the_separator_that_is_set_is_taken(tmp_path: Path) -> None:
    assert _documents(tmp_path, "text,labels\nt,x;y z\n", separator=" ")[0].labels == ("x;y", "z")


@pytest.mark.parametrize(
    ("content", "settings", "expected"),
    [
        ("", {}, ["train.csv:1: is empty; its first line must name the columns"]),
        ("\n\n", {}, ["train.csv:1: is empty; its first line must name the columns"]),
        (
            "text,label\na,b\n",
            {},
            ["train.csv:1: no column 'labels' (found: text, label); set data.labels to the column of the labels"],
        ),
        (
            "body,labels\na,b\n",
            {},
            ["train.csv:1: no column 'text' (found: body, labels); set data.text to the column of the text"],
        ),
        (
            "text,labels\na,b\n",
            {"id": "key"},
            ["train.csv:1: no column 'key' (found: text, labels); set data.id to the column of the documents' ids"],
        ),
        (
            "text,labels,text\na,b,c\n",
            {},
            ["train.csv:1: column 'text' stands twice in the header; rename one of them"],
        ),
        ('text,"labels\na,b\n', {}, ["train.csv:1: the header has a quote that is never closed; close it"]),
        (
            GOOD + "b,one, two,x\nc,d\ne,f,y\n",
            {},
            [
                "train.csv:3: has 4 fields, the header 3; put a field that holds ',' into double quotes",
                "train.csv:4: has 2 fields, the header 3; put a field that holds ',' into double quotes",
            ],
        ),
        (
            GOOD + 'b,"two,x\nc,d,e\n',
            {},
            [
                "train.csv:3: a double quote is opened in this row and never closed; close it, or double it where it "
                "is part of a text"
            ],
        ),
        (
            GOOD + 'b,"two" three,x\n',
            {},
            [
                "train.csv:3: not readable as a row (',' expected after '\"'); double the double quotes that are "
                "part of a text"
            ],
        ),
        (
            GOOD + "b,two\rthree,x\n",
            {},
            ["train.csv:3: holds a carriage return outside double quotes; save the file with line ends \\n or \\r\\n"],
        ),
        (
            GOOD + "b,two\0,x\n",
            {},
            ["train.csv:3: holds a NUL character at column 6; save the file as plain UTF-8 text"],
        ),
        (
            GOOD.encode() + b"b,caf\xe9,x\nc,d,y\n",
            {},
            ["train.csv:3: byte 0xe9 at column 6 is not UTF-8; save the file as UTF-8"],
        ),
        (
            GOOD.encode("utf-16"),
            {},
            ["train.csv:1: byte 0xff at column 1 is not UTF-8; save the file as UTF-8"],
        ),
        (
            'text,labels\na,"[""x""]"\n' + "".join('b,"[""y""]"\n' for _ in range(999)) + "c,y\n",
            {},
            ["train.csv:1002: the value of 'labels' ('y') is not a list as in the lines before; set data.separator"],
        ),
        (
            'text,labels\na,"[1.5]"\n',
            {},
            ["train.csv:2: the value of 'labels' holds the number 1.5, must be a list of strings"],
        ),
    ],
)
def test_broken(tmp_path: Path, content: str | bytes, settings: dict[str, str], expected: list[str]) -> None:
    assert told(tmp_path, {"train.csv": content}, **settings) == expected


def test_rows_after_a_broken_one_are_read(tmp_path: Path) -> None:
    content = GOOD.encode() + b'b,c\nc,"d" e,x\nd,\xff,x\ne,good,z\n'
    documents, _, _, problems = everything(found(tmp_path, {"train.csv": content}))
    assert [document.id for document in documents["train"]] == ["a", "e"]
    assert len(problems) == 3


def test_a_field_too_long_is_a_quote_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import csv

    from haste.data.formats import _csv

    monkeypatch.setattr(_csv, "_LONGEST", 200_000)
    before = csv.field_size_limit(131_072)
    try:
        assert len(_documents(tmp_path, f"text,labels\n{'a' * 150_000},x\n")[0].text) == 150_000
        content = f'text,labels\n"{"a" * 300_000}",x\nb,y\n'
        assert told(tmp_path, {"train.csv": content})[0] == (
            "train.csv:2: a field is longer than 200,000 characters; close its double quote"
        )
    finally:
        csv.field_size_limit(before)


def test_packed_tables_that_are_cut_short(tmp_path: Path) -> None:
    import pyarrow

    text = "text,labels\n" + "".join(f"{i * 7919 % 1009} {i},x\n" for i in range(5000))
    packed = gzip.compress(text.encode())[:-2000]
    (message,) = told(tmp_path / "gz", {"train.csv.gz": packed})
    assert message.endswith(": the gzip file is cut short; get it again")
    packed = pyarrow.compress(text.encode(), codec="zstd", asbytes=True)
    assert told(tmp_path / "good", {"train.csv.zst": packed}) == []
    (message,) = told(tmp_path / "zst", {"train.csv.zst": packed[:-20]})
    assert message.endswith(": the Zstandard file is cut short; get it again")
    assert told(tmp_path / "plain", {"train.csv.zst": text}) == [
        "train.csv.zst:1: not readable as Zstandard (ZSTD decompress failed: Unknown frame descriptor); get it again, "
        "or drop .zst from the name of a plain file"
    ]
