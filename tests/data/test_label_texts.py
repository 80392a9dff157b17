import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haste.config import Data
from haste.data.convert import convert
from haste.data.dataset import Dataset, Labels, load_dataset, split_for
from haste.data.formats import DataError
from haste.data.store import open_store


def _lines(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pages and the pages they link to: c has a text and no training document, d neither, b no text."""
    (tmp_path / "lf").mkdir()
    texts = {"c": ("see", "fish"), "b": ("", ""), "d": ("", ""), "a": ("blue one", "red"), "e": ("", "fish one")}
    rows = ({"uid": name, "title": title, "content": rest} for name, (title, rest) in texts.items())
    _lines(tmp_path / "lf/lbl.json", *rows)
    pages = [("red fish", [1, 3]), ("one fish", [1]), ("blue red", [3]), ("one see", [])]
    for name, labels in (("trn", []), ("tst", [0, 2])):
        documents = ((title, [*found, *labels]) for title, found in pages)
        rows = ({"uid": f"p{n}", "title": t, "content": "", "target_ind": x} for n, (t, x) in enumerate(documents))
        _lines(tmp_path / f"lf/{name}.json", *rows)
    (tmp_path / "lf/filter_labels_test.txt").write_text("1 0\n2 2\n")
    return tmp_path / "lf"


def _load(folder: Path, *, label_texts: bool = True, **settings: Any) -> tuple[Dataset, list[str]]:
    lines: list[str] = []
    config = Data(path=str(folder), **{"min_df": 1, "dev_fraction": 0.0, **settings})
    return load_dataset(config, seed=0, log=lines.append, label_texts=label_texts), lines


def test_labels_with_a_text_have_rows_and_their_texts_are_documents(folder: Path) -> None:
    data, lines = _load(folder)
    assert data.labels.names == ["a", "b", "c", "e", "d"]
    assert data.labels.num_labels == 4
    assert data.labels.counts.tolist() == [2, 2, 0, 0]
    points, vectorizer = data.points, data.vectorizer
    assert points is not None
    assert vectorizer is not None
    assert list(points.ids) == points.ids[:] == ["p0", "p1", "p2", "p3", "a", "c", "e"]
    texts = ["red fish", "one fish", "blue red", "one see", "blue one red", "see fish", "fish one"]
    again = type(vectorizer).fit(texts, min_df=1)
    assert (vectorizer.terms, vectorizer.idf.tolist()) == (again.terms, again.idf.tolist())
    assert (points.features != vectorizer.transform(texts)).nnz == 0
    assert points.truth.toarray()[4:].tolist() == [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]
    assert len(data.train) == 4
    assert (data.train.features != points.features[:4]).nnz == (data.train.truth != points.truth[:4]).nnz == 0
    (offsets, _, _), (label_offsets, labels) = points.batch(np.array([6, 0]))
    assert offsets.tolist() == [0, 2, 4]
    assert (label_offsets.tolist(), labels.tolist()) == ([0, 1, 3], [3, 0, 1])
    assert lines[-2:] == [
        "5 terms; 2 labels with a training document, 2 more with a text alone, 1 more without",
        "the texts of 3 labels are read beside the training documents (label_texts)",
    ]


def test_the_filter_reaches_labels_that_have_nothing_but_a_text(folder: Path) -> None:
    filtered = [_load(folder, label_texts=on)[0].test.filter for on in (True, False)]  # type: ignore[union-attr]
    assert filtered[0].toarray().tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert filtered[1].nnz == 0


def test_pairs_of_the_filter_are_true_of_points_and_a_label_on_its_own_page_needs_no_text(folder: Path) -> None:
    (folder / "filter_labels_train.txt").write_text("1 0\n2 3\n3 2\n")
    documents = [json.loads(line) for line in (folder / "trn.json").read_text().splitlines()]
    documents[1]["uid"] = "c"  # the page of label c; p2 is not label a
    _lines(folder / "trn.json", *documents)
    data, _ = _load(folder)
    assert data.points is not None
    assert data.labels.names == ["a", "b", "c", "e", "d"]
    assert data.labels.counts.tolist() == [2, 2, 0, 0]
    assert list(data.points.ids)[4:] == ["a", "e"]
    assert data.train.truth.toarray().tolist() == [[1, 1, 0, 0, 0], [0, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert data.points.truth.toarray().tolist() == [
        [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0]
    ]  # fmt: skip
    seen, _ = _load(folder, filter=False)
    assert seen.points is not None
    assert list(seen.points.ids)[4:] == ["a", "c", "e"]
    assert (seen.points.truth[:4] != seen.train.truth).nnz == 0


def test_texts_are_left_alone_where_they_are_not_asked_for(folder: Path) -> None:
    data, _ = _load(folder, label_texts=False)
    assert data.points is None
    assert data.labels.names == ["a", "b", "c", "d", "e"]
    assert data.labels.counts.tolist() == [2, 2]
    assert data.labels.texts == ["blue one", "", "see", "", ""]
    assert data.digest != _load(folder)[0].digest


def test_a_split_in_the_labels_of_a_model_with_texts(folder: Path, tmp_path: Path) -> None:
    data, _ = _load(folder)
    assert data.test is not None
    data.labels.save(tmp_path / "labels.jsonl")
    labels = Labels.load(tmp_path / "labels.jsonl", data.labels.num_labels)
    assert labels.counts.tolist() == [2, 2, 0, 0]
    assert Labels.load(tmp_path / "labels.jsonl").counts.tolist() == [2, 2]
    split = split_for(Data(path=str(folder)), "test", labels, data.vectorizer, inputs="text", seed=0)
    assert (split.truth != data.test.truth).nnz == (split.filter != data.test.filter).nnz == 0
    assert split.num_labels == 4


def test_described_labels_that_no_document_names(tmp_path: Path) -> None:
    rows = ({"text": f"red w{n % 3}", "labels": [f"l{n % 2}"]} for n in range(8))
    _lines(tmp_path / "train.jsonl", *rows)
    described = [("new", "red w1"), ("l1", "w2"), ("silent", "")]
    rows = ({"label": name, "text": text, "content": "w0" if text else ""} for name, text in described)
    _lines(tmp_path / "labels.jsonl", *rows)
    data, _ = _load(tmp_path)
    assert data.labels.names == ["l0", "l1", "new"]
    assert data.labels.counts.tolist() == [4, 4, 0]
    assert data.points is not None
    assert (data.points.features[8:] != data.vectorizer.transform(["w2 w0", "red w1 w0"])).nnz == 0  # type: ignore[union-attr]
    assert _load(tmp_path, label_texts=False)[0].labels.names == ["l0", "l1"]


@pytest.mark.parametrize("format", ["lf", "haste", "jsonl"])
def test_a_converted_data_set_has_the_same_texts(folder: Path, tmp_path: Path, format: str) -> None:
    convert(Data(path=str(folder)), tmp_path / "other", format, log=lambda line: None)
    store = open_store(Data(path=str(tmp_path / "other")), log=lambda line: None)
    texts = dict(zip(store.label_names, store.label_documents(np.arange(len(store.label_names))), strict=True))
    assert {name: text for name, text in texts.items() if text} == {
        "a": "blue one red", "c": "see fish", "e": "fish one"
    }  # fmt: skip


def test_data_without_texts_of_labels_is_refused(tmp_path: Path) -> None:
    _lines(tmp_path / "train.jsonl", *({"text": "red fish", "labels": ["a"]} for _ in range(4)))
    with pytest.raises(DataError, match=r"label_texts\.train, init and group must be false, for no label of"):
        _load(tmp_path)
    np.save(tmp_path / "X.trn.npy", np.ones((4, 2), np.float32))
    (tmp_path / "train.jsonl").unlink()
    from scipy.sparse import csr_matrix, save_npz

    save_npz(tmp_path / "Y.trn.npz", csr_matrix(np.ones((4, 1), np.float32)))
    with pytest.raises(DataError, match="must be false, for the documents are given features"):
        _load(tmp_path)
