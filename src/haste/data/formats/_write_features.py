"""Writers of files of features and of numbered labels."""

import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from haste.data.formats._atomic import whole_file
from haste.data.source import Record

_COPIED = 1 << 20
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # of every archive's member, so that the same numbers make the same bytes

Rows = Iterable[tuple[Any, Any]]
"""Columns and values of each row; None as values = 1."""


def write_bow(path: Path, records: Iterable[Record], counts: tuple[int, int, int]) -> None:
    """The XML Repository's first format. counts: documents, columns, labels"""
    with whole_file(path) as stream:
        stream.write(b"%d %d %d\n" % counts)
        for record in records:
            labels = ",".join(map(str, record.labels))
            stream.write(f"{labels} {_pairs(record.columns, record.values)}\n".encode())


def write_sparse_text(path: Path, rows: Rows, shape: tuple[int, int]) -> None:
    """A matrix as text."""
    with whole_file(path) as stream:
        stream.write(b"%d %d\n" % shape)
        for columns, values in rows:
            stream.write(f"{_pairs(columns, values)}\n".encode())


def write_dense(path: Path, records: Iterable[Record], shape: tuple[int, int]) -> None:
    """A matrix as np.save writes it, float32."""
    with whole_file(path) as stream:
        _write_header(stream, np.dtype(np.float32), shape)
        for record in records:
            stream.write(np.asarray(record.dense, np.float32).tobytes())


def write_sparse_array(path: Path, rows: Rows, shape: tuple[int, int]) -> None:
    """A matrix as scipy.sparse.save_npz writes it: CSR, float32."""
    index = np.dtype(np.int32 if max(shape) < 2**31 else np.int64)
    lengths = np.zeros(shape[0] + 1, np.int64)
    with tempfile.TemporaryFile(dir=path.parent) as columns, tempfile.TemporaryFile(dir=path.parent) as values:
        for number, (row_columns, row_values) in enumerate(rows, 1):
            lengths[number] = len(row_columns)
            columns.write(np.asarray(row_columns, index).tobytes())
            ones = np.ones(len(row_columns), np.float32)
            values.write((ones if row_values is None else np.asarray(row_values, np.float32)).tobytes())
        offsets = np.cumsum(lengths)
        nonzeros = int(offsets[-1])
        if nonzeros < 2**31:
            offsets = offsets.astype(np.int32)
        with whole_file(path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in (("format", np.array(b"csr")), ("shape", np.array(shape)), ("indptr", offsets)):
                with _member(archive, name) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            for name, dtype, numbers in (("indices", index, columns), ("data", np.dtype(np.float32), values)):
                numbers.seek(0)
                with _member(archive, name) as member:
                    _write_header(member, dtype, (nonzeros,))
                    while block := numbers.read(_COPIED):
                        member.write(block)


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    info = zipfile.ZipInfo(f"{name}.npy", _EARLIEST)
    info.compress_type = zipfile.ZIP_DEFLATED
    return archive.open(info, "w", force_zip64=True)


def _write_header(stream: IO[bytes], dtype: np.dtype, shape: tuple[int, ...]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)


def _pairs(columns: Sequence[int] | np.ndarray | None, values: np.ndarray | None) -> str:
    assert columns is not None
    if values is None:
        return " ".join(f"{column}:1" for column in columns)
    # Nine digits tell every float32 from its neighbours.
    return " ".join(
        f"{column}:{value:.9g}" for column, value in zip(np.asarray(columns).tolist(), values.tolist(), strict=True)
    )
