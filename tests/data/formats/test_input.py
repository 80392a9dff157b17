import gzip
import io
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from scipy.sparse import csr_matrix, save_npz

from format_cases import everything, make
from haste.config import Data
from haste.data.formats import DataError, Record, detect_input

CONFIG = Data(path="not read")


def _arrays() -> dict[str, bytes]:
    npz, npy, table = io.BytesIO(), io.BytesIO(), pyarrow.BufferOutputStream()
    save_npz(npz, csr_matrix(np.array([[0, 2.0], [0, 0]])))
    np.save(npy, np.array([[0, 2.0], [0, 0]]))
    parquet.write_table(pyarrow.table({"text": ["one", "two"]}), table)
    return {"a.npz": npz.getvalue(), "a.npy": npy.getvalue(), "a.parquet": table.getvalue().to_pybytes()}


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("a.jsonl", '{"text": "one"}\n{"text": "two"}\n', "jsonl"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "one"}\n{"text": "two"}\n'), "jsonl"),
        ("a.json", '{"uid": "1", "title": "one", "target_ind": [3]}\n{"uid": 2, "title": "two"}\n', "jsonl"),
        ("a.csv", "id,text\n1,one\n2,two\n", "csv"),
        ("a.tsv", "text\tid\none\t1\ntwo\t2\n", "csv"),
        ("a.parquet", _arrays()["a.parquet"], "parquet"),
        ("a.txt", "one\ntwo\n", "raw"),
    ],
    ids=["jsonl", "jsonl.gz", "json", "csv", "tsv", "parquet", "txt"],
)
def test_texts_without_labels(tmp_path: Path, name: str, content: str | bytes, form: str) -> None:
    config = Data(path="not read", text="title") if name == "a.json" else CONFIG
    source = detect_input(make(tmp_path, {name: content}) / name, config)
    assert (source.format, source.kind, source.splits) == (form, "text", ("test",))
    documents, _, _, problems = everything(source)
    assert documents == {"test": [Record("1", "one"), Record("2", "two")]}
    assert problems == []
    assert source.files() == {"test": (tmp_path / name,)}


def test_lines_that_look_like_numbers_are_texts_where_rows_do_not(tmp_path: Path) -> None:
    source = detect_input(make(tmp_path, {"a.txt": "12 34\nsome words\n"}) / "a.txt", CONFIG)
    assert source.kind == "text"


@pytest.mark.parametrize(
    ("name", "content", "form", "kind"),
    [
        ("a.txt", "2 2\n1:2\n\n", "split", "sparse"),
        ("a.txt", "2 2 3\n0,2 1:2\n\n", "bow", "sparse"),
        ("a.npz", _arrays()["a.npz"], "npz", "sparse"),
        ("a.npy", _arrays()["a.npy"], "npz", "dense"),
    ],
    ids=["split", "bow", "npz", "npy"],
)
def test_given_features(tmp_path: Path, name: str, content: str | bytes, form: str, kind: str) -> None:
    source = detect_input(make(tmp_path, {name: content}) / name, CONFIG)
    assert (source.format, source.kind, source.num_features) == (form, kind, 2)
    documents = everything(source)[0]["test"]
    if kind == "dense":
        assert [document.dense.tolist() for document in documents] == [[0, 2], [0, 0]]  # type: ignore[union-attr]
    else:
        assert [document.columns.tolist() for document in documents] == [[1], []]  # type: ignore[union-attr]


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        detect_input(tmp_path / "a.csv", CONFIG)
    assert str(caught.value) == f"{tmp_path / 'a.csv'}: no such file; give one file of documents"
    with pytest.raises(DataError) as caught:
        detect_input(make(tmp_path, {"a.xlsx": ""}) / "a.xlsx", CONFIG)
    assert str(caught.value) == (
        f"{tmp_path / 'a.xlsx'}: must end in .jsonl, .csv, .tsv, .parquet, .json, .npz, .npy or .txt, "
        "or for text also in .gz or .zst behind it; rename or convert it"
    )
