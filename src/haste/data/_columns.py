"""Columns on the disk: flat arrays written once, from front to back, and mapped into memory afterwards."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from scipy.sparse import csr_matrix

from haste.data.source import DataError

Files = dict[str, dict[str, Any]]
"""Name of a column's file -> {"dtype", "size", "sha256"}."""

_READ = 1 << 10  # strings decoded together
_BLOCK = 1 << 20  # bytes read together
_MOST_INT32 = 2**31 - 1


class Columns:
    """Columns being written into a folder; `finish` says what became of them.

    folder: where to; made if need be
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, tuple[BinaryIO, Any, np.dtype[Any]]] = {}
        self._sizes: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, name: str, values: np.ndarray) -> None:
        """Add values to the end of a column, whose dtype is that of its first values."""
        if name not in self._open:
            file = open(self._folder / name, "wb")  # noqa: SIM115, closed by `finish`
            self._open[name] = (file, hashlib.sha256(), values.dtype)
            self._sizes[name] = 0
        stream, digest, dtype = self._open[name]
        content = np.ascontiguousarray(values, dtype).data.cast("B") if values.size else b""
        stream.write(content)
        digest.update(content)
        self._sizes[name] += values.size

    def append_offsets(self, name: str, lengths: np.ndarray) -> None:
        """Add rows of these lengths to a column of int64 offsets, which begins with 0."""
        if name not in self._open:
            self.append(name, np.zeros(1, np.int64))
            self._ends[name] = 0
        ends = self._ends[name] + np.cumsum(lengths, dtype=np.int64)
        if len(ends):
            self._ends[name] = int(ends[-1])
        self.append(name, ends)

    def append_strings(self, name: str, strings: Iterable[str]) -> None:
        """Add strings to the pair of columns that `Strings.read` reads."""
        self.append_bytes(name, list(map(str.encode, strings)))

    def append_bytes(self, name: str, encoded: list[bytes]) -> None:
        """Add strings that are UTF-8 already."""
        self.append(f"{name}.bytes", np.frombuffer(b"".join(encoded), np.uint8))
        self.append_offsets(f"{name}.offsets", np.fromiter(map(len, encoded), np.int64, len(encoded)))

    def finish(self) -> Files:
        """Close and flush every column to the disk."""
        files = {}
        for name, (stream, digest, dtype) in self._open.items():
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
            files[name] = {"dtype": dtype.str, "size": self._sizes[name], "sha256": digest.hexdigest()}
        return files


def column(folder: Path, name: str, files: Files) -> np.ndarray:
    """A column, mapped into memory and read only. Raises DataError if its size is not as written."""
    entry, path = files[name], folder / name
    dtype = np.dtype(entry["dtype"])
    expected = entry["size"] * dtype.itemsize
    found = path.stat().st_size if path.is_file() else None
    if found != expected:
        state = "is missing" if found is None else f"has {found} bytes, was written with {expected}"
        raise DataError(f"{path}: {state}; the folder was altered, make it again")
    if not entry["size"]:
        return np.empty(0, dtype)
    return np.asarray(np.memmap(path, dtype, mode="r"))  # a plain array: cutting up a np.memmap is slow


def verify(folder: Path, files: Files) -> None:
    """Read every column and raise DataError for the first whose content is not as written."""
    for name, entry in files.items():
        column(folder, name, files)
        if file_digest(folder / name) != entry["sha256"]:
            raise DataError(f"{folder / name}: its content is not as written; the folder was altered, make it again")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


class Strings(Sequence[str]):
    """Strings in one array of UTF-8 bytes; only those asked for become objects.

    data: (bytes,) uint8
    offsets: (N + 1,) int64
    """

    def __init__(self, data: np.ndarray, offsets: np.ndarray) -> None:
        self._data, self._offsets = np.ascontiguousarray(data).data, offsets

    @classmethod
    def read(cls, folder: Path, name: str, files: Files) -> "Strings":
        """Those that `Columns.append_strings` wrote."""
        return cls(column(folder, f"{name}.bytes", files), column(folder, f"{name}.offsets", files))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> list[str]: ...
    def __getitem__(self, key: int | slice) -> str | list[str]:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                return [self[number] for number in range(start, stop, step)]
            return self._run(start, max(start, stop))
        number = key + len(self) if key < 0 else key
        if not 0 <= number < len(self):
            raise IndexError(f"string {key} of {len(self)}")
        return str(self._data[self._offsets[number] : self._offsets[number + 1]], "utf-8")

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _READ):
            yield from self._run(start, min(start + _READ, len(self)))

    def take(self, rows: np.ndarray) -> Iterator[str]:
        """The strings of these rows, in their order."""
        data = self._data
        for start in range(0, len(rows), _READ):
            here = rows[start : start + _READ]
            bounds = zip(self._offsets[here].tolist(), self._offsets[here + 1].tolist(), strict=True)
            yield from [str(data[first:end], "utf-8") for first, end in bounds]

    def _run(self, start: int, stop: int) -> list[str]:
        data, bounds = self._data, self._offsets[start : stop + 1].tolist()
        return [str(data[first:end], "utf-8") for first, end in pairwise(bounds)]


def append_rows(columns: Columns, name: str, lengths: np.ndarray, indices: np.ndarray, values: np.ndarray) -> None:
    """Add rows of a sparse matrix to the columns that `matrix` reads."""
    columns.append_offsets(f"{name}.offsets", lengths)
    columns.append(f"{name}.indices", indices.astype(np.int32, copy=False))
    columns.append(f"{name}.values", values.astype(np.float32, copy=False))


def matrix(folder: Path, name: str, files: Files, num_columns: int) -> csr_matrix:
    """The rows that `append_rows` wrote, float32; values and indices stay on the disk.

    SciPy wants indices and offsets of one type: int32 while the entries can be counted with it, else both int64.
    """
    offsets, indices = column(folder, f"{name}.offsets", files), column(folder, f"{name}.indices", files)
    values = column(folder, f"{name}.values", files)
    return as_matrix(values, indices, offsets, num_columns)


def as_matrix(values: np.ndarray, indices: np.ndarray, offsets: np.ndarray, num_columns: int) -> csr_matrix:
    """A CSR matrix over the arrays, without a copy of `values`, or of `indices` while their number fits int32."""
    wide = np.int32 if len(indices) <= _MOST_INT32 else np.int64
    rows = csr_matrix((len(offsets) - 1, num_columns), dtype=np.float32)
    rows.data, rows.indices, rows.indptr = values, indices.astype(wide, copy=False), offsets.astype(wide)
    rows.has_canonical_format = True
    return rows
