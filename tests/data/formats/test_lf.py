import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from format_cases import everything, found, told
from haste.data.formats import Record


def _lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


LABELS = _lines(
    {"uid": "A", "title": "the a", "content": "c"}, {"uid": "B", "title": "the b"}, {"uid": "A", "title": ""}
)
TRAIN = _lines(
    {"uid": "x", "title": "t", "content": "c", "target_ind": [0, 2], "target_rel": [1.0, 1.0]},
    {"uid": 7, "title": "t", "content": "", "target_ind": []},
    {"uid": "z", "title": None, "content": "c", "target_ind": [1]},
)
GOOD = {"trn.json": TRAIN, "lbl.json": LABELS}


def test_documents_labels_and_filter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {"trn.json.gz": gzip.compress(TRAIN.encode()), "tst.json": TRAIN, "lbl.json": LABELS}
    source = found(tmp_path, {**files, "filter_labels_test.txt": "0 1\n2 2\n"})
    assert (source.format, source.kind, source.num_labels, source.num_features) == ("lf", "text", 3, None)
    assert source.reason == "the folder holds trn.json.gz, tst.json and lbl.json"
    assert source.files() == {
        "train": (tmp_path / "trn.json.gz",),
        "test": (tmp_path / "tst.json", tmp_path / "filter_labels_test.txt"),
        "labels": (tmp_path / "lbl.json",),
    }
    documents, labels, pairs, problems = everything(source)
    assert problems == []
    assert documents["train"] == documents["test"]
    assert documents["train"] == [Record("x", "t c", (0, 2)), Record("7", "t", ()), Record("z", "c", (1,))]
    assert [(label.name, label.text) for label in labels] == [("A", "the a"), ("B", "the b"), ("A #2", "")]
    assert caplog.messages == [f"{tmp_path / 'lbl.json'}: 1 names stand twice or are empty; they became 'name #NUMBER'"]
    assert pairs == {"train": [], "test": [(0, 1), (2, 2)]}


def test_other_keys(tmp_path: Path) -> None:
    assert everything(found(tmp_path, GOOD, text="content"))[0]["train"][0].text == "c"


def _train(**changes: Any) -> str:
    return _lines({"uid": "x", "title": "t", "content": "c", "target_ind": [0], **changes})


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"trn.json": TRAIN},
            [
                ".: the folder holds trn.json without lbl.json, the labels; add it, or name JSON lines .jsonl",
            ],
        ),
        (
            {**GOOD, "trn.json": _train(target_ind=[3, 0]) + _train(target_ind=[-1])},
            [
                "trn.json:1: the value of 'target_ind' holds 3, must be in [0, 3), the lines of lbl.json; count from 0",
                "trn.json:2: the value of 'target_ind' holds -1, must be in [0, 3), the lines of lbl.json; "
                "count from 0",
            ],
        ),
        (
            {**GOOD, "trn.json": _train(target_ind=[1.0]) + _train(target_ind="1") + _train(target_ind=[True])},
            [
                "trn.json:1: the value of 'target_ind' holds the number 1.0, must be a list of whole numbers",
                "trn.json:2: the value of 'target_ind' (the string '1') must be a list of lines of lbl.json",
                "trn.json:3: the value of 'target_ind' holds true, must be a list of whole numbers",
            ],
        ),
        (
            {**GOOD, "trn.json": _train(target_rel=[1.0, 2.0])},
            ["trn.json:1: 'target_ind' holds 1 labels, 'target_rel' 2 values; give one for each"],
        ),
        (
            {**GOOD, "trn.json": _lines({"uid": "x", "title": "t", "content": "c"}, {"target_ind": []})},
            [
                "trn.json:1: no key 'target_ind' (found: uid, title, content); set data.labels to the key of the "
                "labels, [] for a document without any",
                "trn.json:2: no key 'title' (found: target_ind); set data.text to the key of the text",
            ],
        ),
        (
            {**GOOD, "trn.json": "[1,\n2]"},
            [
                "trn.json:1: not valid JSON (Expecting value at column 4): '[1,'; write one whole JSON object on "
                "each line",
                "trn.json:2: not valid JSON (Extra data at column 2): '2]'; write one whole JSON object on each line",
            ],
        ),
        (
            {**GOOD, "lbl.json": _lines({"uid": 3}, {"uid": "B", "title": 4}, {"uid": "C"})},
            [
                "lbl.json:1: the value of 'uid' (the number 3) must be the label's name",
                "lbl.json:2: the value of 'title' (the number 4) must be a string",
            ],
        ),
        (
            {**GOOD, "filter_labels_train.txt": "3 0\n"},
            ["filter_labels_train.txt:1: document 3 must be in [0, 3); count from 0"],
        ),
    ],
)
def test_broken(tmp_path: Path, files: dict[str, str], expected: list[str]) -> None:
    assert told(tmp_path, files) == expected


def test_a_label_that_is_broken_keeps_its_number(tmp_path: Path) -> None:
    labels = everything(found(tmp_path, {**GOOD, "lbl.json": '{"uid": "A"}\nx\n{"uid": "C"}\n'}))[1]
    assert [label.name for label in labels] == ["A", "#1", "C"]
