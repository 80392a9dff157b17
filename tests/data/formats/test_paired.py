"""split, npz and raw: documents and labels in files of their own."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import coo_matrix, csc_matrix, csr_array, csr_matrix, save_npz

from format_cases import everything, found, told
from haste.data.formats import Record

X = "2 3\n0:1 2:0.5\n\n"
Y = "2 4\n3:1 1:1\n0:0 2:1\n"


def _npz(matrix: Any, **options: bool) -> bytes:
    stream = io.BytesIO()
    save_npz(stream, matrix, **options)
    return stream.getvalue()


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


MATRIX = csr_matrix(np.array([[1, 0, 0.5], [0, 0, 0]], np.float64))
TARGETS = csr_matrix(np.array([[0, 1, 0, 1], [0, 0, 1, 0]], np.float32))


def _check_sparse(records: list[Record]) -> None:
    assert [record.labels for record in records] == [(1, 3), (2,)]
    assert [record.columns.tolist() for record in records] == [[0, 2], []]  # type: ignore[union-attr]
    assert [record.values.tolist() for record in records] == [[1, 0.5], []]  # type: ignore[union-attr]
    assert {record.columns.dtype for record in records} == {np.dtype(np.int64)}  # type: ignore[union-attr]
    assert {record.values.dtype for record in records} == {np.dtype(np.float32)}  # type: ignore[union-attr]
    assert [record.id for record in records] == ["1", "2"]


def test_split(tmp_path: Path) -> None:
    files = {"trn_X_Xf.txt": X, "trn_X_Y.txt": Y, "tst_X_Xf.txt": X, "tst_X_Y.txt": Y}
    source = found(tmp_path, {**files, "Yf.txt": "a\nb\nc\nd\n", "tst_filter_labels.txt": "1 0\n"})
    assert (source.format, source.kind, source.num_features, source.num_labels) == ("split", "sparse", 3, 4)
    assert source.reason == "the folder holds trn_X_Xf.txt, trn_X_Y.txt, tst_X_Xf.txt and tst_X_Y.txt"
    documents, labels, pairs, problems = everything(source)
    assert problems == []
    _check_sparse(documents["train"])
    _check_sparse(documents["test"])
    assert [label.name for label in labels] == list("abcd")
    assert pairs == {"train": [], "test": [(1, 0)]}


@pytest.mark.parametrize("form", [csr_matrix, csc_matrix, coo_matrix, csr_array])
def test_npz(tmp_path: Path, form: Any) -> None:
    files = {"X.trn.npz": _npz(form(MATRIX)), "Y.trn.npz": _npz(form(TARGETS), compressed=False)}
    source = found(tmp_path, {**files, "output-items.txt": "a\nb\nc\nd\n"})
    assert (source.format, source.kind, source.num_features, source.num_labels) == ("npz", "sparse", 3, 4)
    documents, labels, _, problems = everything(source)
    assert problems == []
    _check_sparse(documents["train"])
    assert [label.name for label in labels] == list("abcd")


def test_npz_with_unsorted_columns_and_more_rows_than_are_read_at_once(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    dense = generator.random((2500, 6), np.float32) * (generator.random((2500, 6)) < 0.4)
    matrix = csr_matrix(dense)
    for row in range(0, 2500, 3):
        part = slice(matrix.indptr[row], matrix.indptr[row + 1])
        matrix.indices[part] = matrix.indices[part][::-1].copy()
        matrix.data[part] = matrix.data[part][::-1].copy()
    files = {"X.trn.npz": _npz(matrix), "Y.trn.npz": _npz(csr_matrix(dense > 0.5))}
    documents = everything(found(tmp_path, files))[0]["train"]
    for row, record in enumerate(documents):
        assert record.columns.tolist() == np.nonzero(dense[row])[0].tolist()  # type: ignore[union-attr]
        assert (record.values == dense[row][dense[row] != 0]).all()
        assert record.labels == tuple(np.nonzero(dense[row] > 0.5)[0].tolist())
    assert len(documents) == 2500


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int8, np.bool_])
def test_dense_features(tmp_path: Path, dtype: Any) -> None:
    files = {"X.trn.npy": _npy(np.array([[1, 0], [0, 1]], dtype)), "Y.trn.npz": _npz(TARGETS)}
    source = found(tmp_path, files)
    assert (source.format, source.kind, source.num_features, source.num_labels) == ("npz", "dense", 2, 4)
    documents = everything(source)[0]["train"]
    assert [document.dense.tolist() for document in documents] == [[1, 0], [0, 1]]  # type: ignore[union-attr]
    assert {document.dense.dtype for document in documents} == {np.dtype(np.float32)}  # type: ignore[union-attr]


def test_texts_and_features_side_by_side(tmp_path: Path) -> None:
    files = {"X.trn.npz": _npz(MATRIX), "X.trn.txt": "one two\n\n", "Y.trn.npz": _npz(TARGETS)}
    for choice, kind, read in (
        ("auto", "text", "texts"),
        ("text", "text", "texts"),
        ("features", "sparse", "features"),
    ):
        source = found(tmp_path, files, input=choice)
        assert (source.format, source.kind) == ("npz", kind)
        assert source.reason.endswith(f"; holds texts and features, the {read} are read (data.input)")
    documents = everything(found(tmp_path, files))[0]["train"]
    assert documents == [Record("1", "one two", (1, 3)), Record("2", "", (2,))]


def test_raw_texts_with_numbers_or_names(tmp_path: Path) -> None:
    numbers = {"trn_X.txt": "\ufeffone\r\ntwo\n", "trn_X_Y.txt": Y, "Y.txt": "a\nb\nc\nd\n"}
    source = found(tmp_path / "numbers", numbers)
    assert (source.format, source.kind, source.num_features, source.num_labels) == ("raw", "text", None, 4)
    assert everything(source)[0]["train"] == [Record("1", "one", (1, 3)), Record("2", "two", (2,))]
    for texts in ("train_raw_texts.txt", "train_texts.txt"):
        names = {texts: "one\ntwo\n", "train_labels.txt": "a;b c\n\n"}
        source = found(tmp_path / texts, names)
        assert (source.format, source.num_labels) == ("raw", None)
        assert source.reason == f"the folder holds {texts} and train_labels.txt; labels are separated by blanks"
        assert everything(source)[0]["train"] == [Record("1", "one", ("a;b", "c")), Record("2", "two", ())]
    source = found(tmp_path / texts, names, separator=";")
    assert source.reason.endswith("; labels are separated by ';'")
    assert everything(source)[0]["train"][0].labels == ("a", "b c")


def _archive(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def _csr(indptr: list[int], indices: list[int], data: list[float], shape: tuple[int, int]) -> bytes:
    return _archive(
        format=np.array(b"csr"),
        shape=np.array(shape),
        indptr=np.array(indptr, np.int32),
        indices=np.array(indices, np.int32),
        data=np.array(data, np.float64),
    )


OBJECTS = (
    "holds Python objects, which only unpickling could read, and that may run any program; "
    "save numbers (np.save of a float32 array, scipy.sparse.save_npz), or texts one a line"
)
NPZ = {"X.trn.npz": _npz(MATRIX), "Y.trn.npz": _npz(TARGETS)}
SPLIT = {"trn_X_Xf.txt": X, "trn_X_Y.txt": Y}
RAW = {"trn_X.txt": "one\ntwo\n", "trn_X_Y.txt": Y}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"trn_X_Xf.txt": X},
            [".: the folder holds trn_X_Xf.txt without trn_X_Y.txt, the labels of the same rows; add it"],
        ),
        (
            {**SPLIT, "tst_X_Y.txt": Y},
            [".: the folder holds tst_X_Y.txt without tst_X_Xf.txt, the documents of the same rows; add it"],
        ),
        (
            {"tst_X_Xf.txt": X, "tst_X_Y.txt": Y},
            [".: the folder holds tst_X_Xf.txt, but no documents to train on; add a file named train or trn like it"],
        ),
        (
            {**SPLIT, "trn_X_Y.txt": "3 4\n\n\n\n"},
            ["trn_X_Y.txt: has 3 rows, trn_X_Xf.txt 2; give both a row for each document"],
        ),
        (
            {**SPLIT, "tst_X_Xf.txt": "1 2\n\n", "tst_X_Y.txt": "1 4\n\n"},
            ["tst_X_Xf.txt: has 2 columns, trn_X_Xf.txt 3; write both alike"],
        ),
        (
            {**SPLIT, "tst_X_Xf.txt": "1 3\n\n", "tst_X_Y.txt": "1 5\n\n"},
            ["tst_X_Y.txt: has 5 labels, trn_X_Y.txt 4; write both alike"],
        ),
        ({**SPLIT, "trn_X_Xf.txt": "x\n"}, ["trn_X_Xf.txt:1: must hold 2 whole numbers, rows, columns (found: 'x')"]),
        ({**SPLIT, "trn_X_Xf.txt": ""}, ["trn_X_Xf.txt:1: must hold 2 whole numbers, rows, columns (found: '')"]),
        (
            {**SPLIT, "trn_X_Xf.txt": "2 3\n\n"},
            [
                "trn_X_Xf.txt:2: ends after 1 rows, the header says 2; get it whole",
                "trn_X_Xf.txt:2: ends after 1 rows, trn_X_Y.txt goes on; give both a row for each document",
            ],
        ),
        (
            {**SPLIT, "trn_X_Y.txt": "2 4\n4:1\n1:-1\n"},
            [
                "trn_X_Y.txt:2: label 4 must be in [0, 4); count from 0, or correct the file's first line",
                "trn_X_Y.txt:3: the value of label 1 (-1) must be 1, or 0 for none",
            ],
        ),
        (
            {**SPLIT, "trn_X_Y.txt": "2 4\n1:1 1:1\n\n"},
            ["trn_X_Y.txt:2: label 1 stands twice; keep one of them"],
        ),
        (
            {**RAW, "trn_X.txt": "one\n"},
            ["trn_X.txt:2: ends after 1 rows, trn_X_Y.txt goes on; give both a row for each document"],
        ),
        (
            {**RAW, "trn_X.txt": "one\ntwo\nthree\n"},
            ["trn_X_Y.txt:3: ends after 2 rows, trn_X.txt goes on; give both a row for each document"],
        ),
        (
            {**RAW, "trn_X.txt": b"caf\xe9\nt\0wo\n"},
            [
                "trn_X.txt:1: byte 0xe9 at column 4 is not UTF-8; save the file as UTF-8",
                "trn_X.txt:2: holds a NUL character at column 2; save the file as plain UTF-8 text",
            ],
        ),
        (
            {"train_texts.txt": "a\n", "train_labels.txt": b"\xff\n"},
            ["train_labels.txt:1: byte 0xff at column 1 is not UTF-8; save the file as UTF-8"],
        ),
        (
            {"train_texts.npy": _npy(np.array([["a"]], object)), "train_labels.npy": b""},
            [
                ".: the folder holds train_texts.npy and train_labels.npy, arrays of Python objects, which only "
                "unpickling could read, and that may run any program; give the text files they were made from, "
                "train_raw_texts.txt and train_labels.txt",
            ],
        ),
        (
            {**NPZ, "X.trn.npz": b"PK no"},
            ["X.trn.npz: is no file of NumPy's; write it with np.save or scipy.sparse.save_npz"],
        ),
        (
            {**NPZ, "X.trn.npz": _archive(a=np.ones(3))},
            ["X.trn.npz: must be a sparse matrix; write it with scipy.sparse.save_npz"],
        ),
        (
            {**NPZ, "X.trn.npz": _archive(format=np.array([{}], object), shape=np.array([1, 2]))},
            [f"X.trn.npz: {OBJECTS}"],
        ),
        (
            {
                **NPZ,
                "X.trn.npz": _archive(**dict(np.load(io.BytesIO(_npz(MATRIX)))) | {"data": np.array([1, "a"], object)}),
            },
            [
                f"X.trn.npz:1: {OBJECTS}",
                "X.trn.npz:1: ends after 0 rows, Y.trn.npz goes on; give both a row for each document",
            ],
        ),
        (
            {**NPZ, "Y.trn.npz": _npz(csr_matrix((3, 4)))},
            ["Y.trn.npz: has 3 rows, X.trn.npz 2; give both a row for each document"],
        ),
        (
            {**NPZ, "X.trn.npz": _csr([0, 1, 2], [3, -1], [1, 1], (2, 3))},
            [
                "X.trn.npz:1: column 3 must be in [0, 3), as the matrix has 3 columns",
                "X.trn.npz:2: column -1 must be in [0, 3), as the matrix has 3 columns",
            ],
        ),
        (
            {**NPZ, "X.trn.npz": _csr([0, 2, 3], [1, 1, 0], [1, 1, np.nan], (2, 3))},
            [
                "X.trn.npz:1: column 1 stands twice; sum_duplicates() before saving",
                "X.trn.npz:2: the value of column 0 (nan) must be finite, within float32",
            ],
        ),
        (
            {**NPZ, "X.trn.npz": _csr([0, 2, 1], [1, 1], [1, 1], (2, 3))},
            [
                "X.trn.npz:1: not readable as an array file (its offsets do not fit its values); get or write it again",
                "X.trn.npz:1: ends after 0 rows, Y.trn.npz goes on; give both a row for each document",
            ],
        ),
        (
            {"X.trn.npy": _npy(np.array([["a"]], object)), "Y.trn.npz": _npz(TARGETS)},
            [f"X.trn.npy: {OBJECTS}"],
        ),
        (
            {"X.trn.npy": _npy(np.ones((2, 2, 2))), "Y.trn.npz": _npz(TARGETS)},
            ["X.trn.npy: holds 3 dimensions of float64, must hold 2 of numbers, (documents, features)"],
        ),
        (
            {"X.trn.npy": _npy(np.array([["a"], ["b"]])), "Y.trn.npz": _npz(TARGETS)},
            ["X.trn.npy: holds 2 dimensions of <U1, must hold 2 of numbers, (documents, features)"],
        ),
        (
            {"X.trn.npy": _npy(np.array([[1, np.inf], [1e39, 0]])), "Y.trn.npz": _npz(TARGETS)},
            [
                "X.trn.npy:1: the value of column 1 (inf) must be finite, within float32",
                "X.trn.npy:2: the value of column 0 (1e+39) must be finite, within float32",
            ],
        ),
        (
            {"X.trn.npy": b"", "Y.trn.npz": _npz(TARGETS)},
            ["X.trn.npy: not readable as an array file (No data left in file); get or write it again"],
        ),
    ],
)
def test_broken(tmp_path: Path, files: dict[str, str | bytes], expected: list[str]) -> None:
    assert told(tmp_path, files) == expected


def test_an_archive_cut_short_or_damaged(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    matrix = csr_matrix(generator.random((3000, 20), np.float32))
    targets = _npz(csr_matrix((3000, 4)))
    packed = _npz(matrix)
    (message,) = told(tmp_path / "cut", {"X.trn.npz": packed[:-100], "Y.trn.npz": targets})
    assert message == "X.trn.npz: not readable as an array file (File is not a zip file); get or write it again"
    damaged = bytearray(packed)
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        start = archive.getinfo("data.npy").header_offset
    damaged[start + 60_000 : start + 60_100] = bytes(100)
    messages = told(tmp_path / "damaged", {"X.trn.npz": bytes(damaged), "Y.trn.npz": targets})
    assert any("not readable as an array file (" in message for message in messages)
