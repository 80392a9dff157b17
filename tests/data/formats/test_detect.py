from pathlib import Path

import pytest

from format_cases import everything, found, make, told
from haste.config import Data
from haste.data.formats import DataError, detect

JSONL = '{"text": "a", "labels": ["x"]}\n'
CSV = "text,labels\na,x\n"
BOW = "1 2 3\n0 1:1\n"
NEEDS = (
    "jsonl needs train.jsonl; csv needs train.csv or train.tsv; parquet needs train.parquet; "
    "lf needs trn.json and lbl.json; raw needs trn_X.txt and trn_X_Y.txt or trn_labels.txt; "
    "npz needs X.trn.txt and Y.trn.npz; npz needs X.trn.npz or X.trn.npy, and Y.trn.npz; "
    "split needs trn_X_Xf.txt and trn_X_Y.txt; "
    "bow needs train.txt that begins with three counts, or data.txt and trSplit.txt"
)


def _refused(**settings: str) -> str:
    with pytest.raises(DataError) as caught:
        detect(Data(**settings))  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize(
    ("train", "dev", "test"), [("train", "valid", "test"), ("trn", "val", "tst"), ("train", "validation", "tst")]
)
def test_spellings_of_splits(tmp_path: Path, train: str, dev: str, test: str) -> None:
    source = found(tmp_path, {f"{train}.jsonl": JSONL, f"{dev}.jsonl": JSONL, f"{test}.jsonl": JSONL})
    assert source.splits == ("train", "dev", "test")
    assert source.reason == f"the folder holds {train}.jsonl, {dev}.jsonl and {test}.jsonl"


def test_a_beginning_of_names(tmp_path: Path) -> None:
    files = {"a_train.txt": BOW, "a_test.txt": BOW, "b.train.csv": CSV, "b-x.csv": CSV, "ab_train.txt": BOW}
    source = found(tmp_path, files, "a")
    assert (source.format, source.splits) == ("bow", ("train", "test"))
    assert source.reason == "found a_train.txt and a_test.txt"
    assert found(tmp_path, {}, "b").format == "csv"
    assert _refused(path=str(tmp_path)) == (
        f"{tmp_path}: holds 3 data sets; set data.path to {tmp_path / 'a'} or {tmp_path / 'ab'} or {tmp_path / 'b'}"
    )


def test_a_folder_with_one_beginning_needs_no_more(tmp_path: Path) -> None:
    source = found(tmp_path, {"my.set_train.csv": CSV, "my.set_dev.csv": CSV, "README.md": "", "notes_trained.txt": ""})
    assert (source.format, source.splits) == ("csv", ("train", "dev"))


def test_files_of_other_splits_beside_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, {"one.csv": CSV, "two.csv": CSV, "three.csv": CSV})
    monkeypatch.setenv("WHERE", str(tmp_path))
    source = detect(Data(path="${WHERE}/one.csv", dev="${WHERE}/two.csv", test="${WHERE}/three.csv"))
    assert source.files() == {
        "train": (tmp_path / "one.csv",),
        "dev": (tmp_path / "two.csv",),
        "test": (tmp_path / "three.csv",),
    }
    assert source.path == tmp_path / "one.csv"
    assert _refused(path=str(tmp_path / "one.csv"), test=str(tmp_path / "no.csv")) == (
        f"{tmp_path / 'no.csv'}: no such file; check data.test"
    )
    assert _refused(path=str(tmp_path), dev=str(tmp_path / "two.csv")) == (
        f"{tmp_path}: must be the file of train where data.dev ({tmp_path / 'two.csv'}) is set; "
        "set data.path to a file, or put the other file into the folder"
    )


def test_texts_and_features_in_one_folder(tmp_path: Path) -> None:
    files = {"trn_X.txt": "a\n", "trn_X_Xf.txt": "1 2\n0:1\n", "trn_X_Y.txt": "1 3\n1:1\n"}
    assert found(tmp_path, files).format == "raw"
    assert found(tmp_path, files).reason == (
        "the folder holds trn_X.txt and trn_X_Y.txt; holds texts and features, the texts are read (data.input)"
    )
    assert found(tmp_path, files, input="features").format == "split"
    assert found(tmp_path, files, format="split").format == "split"


@pytest.mark.parametrize(
    ("files", "settings", "expected"),
    [
        ({}, {}, f".: no data set (found: nothing); {NEEDS}"),
        (
            {f"{i}.dat": "" for i in range(9)},
            {},
            f".: no data set (found: 0.dat, 1.dat, 2.dat, 3.dat, 4.dat, 5.dat, 6.dat, 7.dat, ...); {NEEDS}",
        ),
        (
            {"train.jsonl": JSONL},
            {"format": "csv"},
            ".: no data set in format csv (found: train.jsonl); csv needs train.csv or train.tsv",
        ),
        (
            {"train.jsonl": JSONL, "train.csv": CSV},
            {},
            ".: may be jsonl or csv (found: train.csv, train.jsonl); set data.format to one of them",
        ),
        (
            {"train.jsonl": JSONL, "trn.jsonl": JSONL},
            {},
            ".: holds both train.jsonl and trn.jsonl; keep one of them",
        ),
        (
            {"test.csv": CSV},
            {},
            ".: the folder holds test.csv, but no documents to train on; add a file named train or trn like it",
        ),
        ({"train.txt": BOW}, {"input": "text"}, ".: is bow with given features but no texts; set data.input to auto"),
        (
            {"train.csv": CSV},
            {"input": "features"},
            ".: is csv with texts but no given features; set data.input to auto",
        ),
        (
            {"x_data.txt": BOW, "x_tstSplit.txt": "1\n"},
            {},
            ".: the folder holds x_data.txt and x_tstSplit.txt without trSplit.txt, the rows of train; add it",
        ),
    ],
)
def test_what_is_no_data_set_is_explained(
    tmp_path: Path, files: dict[str, str], settings: dict[str, str], expected: str
) -> None:
    assert told(tmp_path, files, **settings) == [expected]


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "no", tmp_path / "no" / "no"):
        assert _refused(path=str(path)) == f"{path}: no such file or folder; check data.path"
    make(tmp_path, {"table.xlsx": "", "trn.json": "{}"})
    assert _refused(path=str(tmp_path / "table.xlsx")) == (
        f"{tmp_path / 'table.xlsx'}: no data set (found: table.xlsx); {NEEDS}"
    )


def test_jsonl_with_labels_described(tmp_path: Path) -> None:
    labels = '{"label": "x", "text": "the x"}\n{"label": "y"}\n'
    _, described, _, problems = everything(found(tmp_path, {"train.jsonl": JSONL, "labels.jsonl": labels}))
    assert [(label.name, label.text) for label in described] == [("x", "the x"), ("y", "")]
    assert problems == []


def test_jsonl_with_labels_in_a_string(tmp_path: Path) -> None:
    rows = ['{"text": "a", "labels": "x;y, z"}', '{"text": "b", "labels": ["x;y"]}', '{"text": "c", "labels": ""}']
    source = found(tmp_path, {"train.jsonl": "\n".join(rows)})
    assert source.reason == "the folder holds train.jsonl; 'labels' are separated by ';'"
    assert [document.labels for document in everything(source)[0]["train"]] == [("x", "y, z"), ("x;y",), ()]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[]", "labels.jsonl:1: found a list, must be a JSON object; write one object on each line"),
        ("{}", "labels.jsonl:1: the value of 'label' must be the label's name, a string that is not empty"),
        ('{"label": ""}', "labels.jsonl:1: the value of 'label' must be the label's name, a string that is not empty"),
        ('{"label": "x", "text": 3}', "labels.jsonl:1: the value of 'text' (the number 3) must be a string"),
        (
            '{"label": "x"}\n\n{"label": "x"}',
            "labels.jsonl:3: label 'x' stands in an earlier line too; keep one of them",
        ),
    ],
)
def test_labels_described_that_are_broken(tmp_path: Path, content: str, expected: str) -> None:
    assert told(tmp_path, {"train.jsonl": JSONL, "labels.jsonl": content}) == [expected]


def test_every_line_that_is_broken_is_told(tmp_path: Path) -> None:
    files = {"train.jsonl": "x\n" + JSONL + '{"text": 1, "labels": []}\n' + JSONL}
    documents, _, _, problems = everything(found(tmp_path, files))
    assert [document.line for document in documents["train"]] == [2, 4]
    assert len(problems) == 2


def test_an_id_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    assert told(tmp_path, {"train.jsonl": JSONL}, id="key") == [
        "train.jsonl:1: no key 'key' (found: text, labels); set data.id to the key of the documents' ids"
    ]
