"""What holds for the readers of all formats."""

import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from scipy.sparse import csr_matrix, save_npz

from format_cases import everything, make
from haste.config import Data
from haste.data.formats import DataError, detect

ROWS = 30


def _npz(matrix: csr_matrix) -> bytes:
    stream = io.BytesIO()
    save_npz(stream, matrix)
    return stream.getvalue()


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _parquet() -> bytes:
    stream = io.BytesIO()
    columns = {"text": [f"word{i}" for i in range(ROWS)], "labels": [["a", "b"]] * ROWS}
    parquet.write_table(pyarrow.table(columns), stream)
    return stream.getvalue()


MATRIX = csr_matrix((np.arange(4 * ROWS) % 3 == 0).reshape(ROWS, 4).astype(np.float32))
SPARSE = f"{ROWS} 4\n" + "0:1 2:0.5\n" * ROWS
SETS: dict[str, dict[str, bytes]] = {
    "jsonl": {"train.jsonl": b'{"text": "a b", "labels": ["x", "y"]}\n' * ROWS},
    "csv": {"train.csv": b'text,labels\n"a, b",x|y\n' * ROWS},
    "parquet": {"train.parquet": _parquet()},
    "lf": {
        "trn.json": b'{"uid": "a", "title": "t", "content": "c", "target_ind": [0, 1]}\n' * ROWS,
        "lbl.json": b'{"uid": "a", "title": "t"}\n' * 3,
    },
    "raw": {"trn_X.txt": b"one two\n" * ROWS, "trn_X_Y.txt": SPARSE.encode()},
    "split": {"trn_X_Xf.txt": SPARSE.encode(), "trn_X_Y.txt": SPARSE.encode()},
    "npz": {"X.trn.npz": _npz(MATRIX), "Y.trn.npz": _npz(MATRIX)},
    "dense": {"X.trn.npy": _npy(MATRIX.toarray()), "Y.trn.npz": _npz(MATRIX)},
    "bow": {"train.txt": f"{ROWS} 4 3\n".encode() + b"0,2 1:0.5\n" * ROWS},
}


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_is_told_and_nothing_else_is_raised(name: str, data: st.DataObject) -> None:
    files = dict(SETS[name])
    file = data.draw(st.sampled_from(sorted(files)))
    content = files[file]
    place = data.draw(st.integers(0, len(content) - 1))
    patch = data.draw(st.one_of(st.binary(max_size=6), st.sampled_from([b"\n", b'"', b"\xff", b"\0", b":", b"-"])))
    removed = data.draw(st.sampled_from([0, 1, len(patch), 20, len(content)]))
    files[file] = content[:place] + patch + content[place + removed :]
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), files)  # type: ignore[arg-type]
        try:
            source = detect(Data(path=folder))
        except DataError:
            return
        documents, labels, _, problems = everything(source)
        assert all(message.startswith(f"{folder}/") for message in problems)
        for record in documents["train"]:
            if source.num_labels is not None:
                assert all(0 <= label < source.num_labels for label in record.labels)
            if record.columns is not None:
                assert source.num_features is not None
                assert (np.diff(record.columns) > 0).all()
                assert not len(record.columns) or 0 <= record.columns[0] <= record.columns[-1] < source.num_features
                assert np.isfinite(record.values).all()
        if source.num_labels is not None:
            assert len(labels) == source.num_labels
            assert len({label.name for label in labels}) == len(labels)


def test_reading_jsonl_imports_neither_arrow_nor_sklearn(tmp_path: Path) -> None:
    make(tmp_path, {"train.jsonl": '{"text": "a", "labels": ["x"]}\n'})
    code = (
        "import sys\n"
        "from haste.config import Data\n"
        "from haste.data.formats import detect\n"
        f"source = detect(Data(path={str(tmp_path)!r}))\n"
        "assert len(list(source.documents('train'))) == 1\n"
        "print(sorted({'pyarrow', 'sklearn', 'scipy'} & {name.split('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("bow-small/bibtex", ("bow", "sparse", 1836, 159, {"train": 4880, "test": 2515}, 0)),
        ("bow-small/delicious", ("bow", "sparse", 500, 983, {"train": 12920, "test": 3185}, 0)),
        ("ddi-seealso", ("lf", "text", None, 9132, {"train": 9255, "test": 2365}, 1517)),
        ("eurlex57k", ("jsonl", "text", None, None, {"train": 45000, "dev": 6000, "test": 6000}, 0)),
        ("yso-finna-en", ("jsonl", "text", None, None, {"train": 588257, "test": 65221}, 0)),
    ],
)
def test_real_data_sets(path: str, expected: tuple) -> None:
    root = Path(os.environ.get("HASTE_DATA") or Path(__file__).resolve().parents[4] / "shared" / "data")
    if not root.is_dir():
        pytest.skip(f"{root} is absent; set HASTE_DATA to the folder of the data sets")
    source = detect(Data(path=str(root / path)))
    counts = {split: sum(1 for _ in source.documents(split)) for split in source.splits}
    pairs = sum(1 for _ in source.filter_pairs("test"))
    assert (source.format, source.kind, source.num_features, source.num_labels, counts, pairs) == expected
    if source.num_labels is not None:
        assert sum(1 for _ in source.labels()) == source.num_labels
