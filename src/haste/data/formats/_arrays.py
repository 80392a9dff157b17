"""Matrices in NumPy's files, read some rows at a time; nothing in them is ever unpickled."""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from haste.data.formats._lines import at
from haste.data.formats._numbers import Row
from haste.data.source import DataError, Problem, raise_problem

_BLOCK = 1024
# What NumPy, SciPy and zipfile raise, depending on where a file is damaged.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
)
_OBJECTS = (
    "holds Python objects, which only unpickling could read, and that may run any program; "
    "save numbers (np.save of a float32 array, scipy.sparse.save_npz), or texts one a line"
)


class SparseArray:
    """A matrix that scipy.sparse.save_npz wrote; CSR is streamed, other forms are read whole."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if the file is none."""
        self.path = path
        try:
            with np.load(path, allow_pickle=False) as arrays:
                missing = {"format", "shape"} - set(arrays.files)
                if missing or arrays["shape"].shape != (2,):
                    raise DataError(f"{path}: must be a sparse matrix; write it with scipy.sparse.save_npz")
                self._form = arrays["format"].item()
                self.shape: tuple[int, ...] = tuple(map(int, arrays["shape"]))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except _BROKEN as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: {_explained(error)}") from None

    def rows(self, problem: Problem = raise_problem, what: str = "column") -> Iterator[tuple[int, Row | None]]:
        """(number from 1, row) of every row; None for one that is wrong. what: is numbered by the columns"""
        number = 0
        try:
            for offsets, columns, values in self._blocks():
                columns = columns.astype(np.int64)
                with np.errstate(over="ignore"):
                    numbers = values.astype(np.float32)
                fine = _all_fine(offsets, columns, numbers, self.shape[1])
                for low, high in pairwise(offsets):
                    number += 1
                    row: Row | None = (columns[low:high], numbers[low:high])
                    if fine:
                        yield number, row
                        continue
                    row, wrong = _checked(columns[low:high], values[low:high], self.shape[1], what)
                    if wrong:
                        problem(at(self.path, number, wrong))
                    yield number, row
        except _BROKEN as error:
            if isinstance(error, DataError):
                raise
            problem(at(self.path, number + 1, _explained(error)))

    def _blocks(self) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
        """Offsets, columns and values of some rows at a time."""
        if self._form in ("csr", b"csr"):
            with zipfile.ZipFile(self.path) as archive:
                offsets = _Stream(archive, "indptr").take(self.shape[0] + 1).astype(np.int64)
                with _Stream(archive, "indices") as columns, _Stream(archive, "data") as values:
                    if offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] > min(columns.left, values.left):
                        raise ValueError("its offsets do not fit its values")
                    for start in range(0, self.shape[0], _BLOCK):
                        part = offsets[start : start + _BLOCK + 1]
                        count = int(part[-1] - part[0])
                        yield (part - part[0]).tolist(), columns.take(count), values.take(count)
            return
        from scipy.sparse import load_npz

        matrix = load_npz(self.path)
        if hasattr(matrix, "check_format"):
            matrix.check_format(full_check=True)  # what follows trusts the indices
        matrix = matrix.tocsr()
        for start in range(0, self.shape[0], _BLOCK):
            some = matrix[start : start + _BLOCK]
            yield some.indptr.tolist(), some.indices, some.data


class DenseArray:
    """A matrix that np.save wrote, mapped into memory."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if the file is none."""
        self.path = path
        try:
            self._array = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except _BROKEN as error:
            raise DataError(f"{path}: {_explained(error)}") from None
        if self._array.ndim != 2 or self._array.dtype.kind not in "fiub":
            found = f"{self._array.ndim} dimensions of {self._array.dtype}"
            raise DataError(f"{path}: holds {found}, must hold 2 of numbers, (documents, features)")
        self.shape: tuple[int, ...] = self._array.shape

    def rows(self, problem: Problem = raise_problem) -> Iterator[tuple[int, np.ndarray | None]]:
        """(number from 1, (columns,) float32) of every row; None for one that is wrong."""
        for start in range(0, self.shape[0], _BLOCK):
            with np.errstate(over="ignore"):
                block = self._array[start : start + _BLOCK].astype(np.float32)
            finite = np.isfinite(block)
            for number, (row, good) in enumerate(zip(block, finite.all(1).tolist(), strict=True), start + 1):
                if good:
                    yield number, row
                    continue
                column = int(np.argmin(finite[number - 1 - start]))
                problem(at(self.path, number, _not_finite("column", column, self._array[number - 1, column])))
                yield number, None


class _Stream:
    """Numbers of one array in an archive, taken from the front."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._stream: IO[bytes] = archive.open(f"{name}.npy")
        version = np.lib.format.read_magic(self._stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, self._dtype = read(self._stream)
        if self._dtype.kind not in "fiub" or len(shape) != 1:
            raise ValueError(_OBJECTS if self._dtype.hasobject else f"its {name} are not numbers in a row")
        self.left: int = shape[0]

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_: Any) -> None:
        self._stream.close()

    def take(self, count: int) -> np.ndarray:
        """The next `count` numbers. Raises EOFError."""
        size = count * self._dtype.itemsize
        found = self._stream.read(size)
        if len(found) < size:
            raise EOFError
        self.left -= count
        return np.frombuffer(found, self._dtype)


def _all_fine(offsets: list[int], columns: np.ndarray, values: np.ndarray, limit: int) -> bool:
    """Whether all rows are sorted, within the limits and finite."""
    rises = columns[1:] > columns[:-1]
    rises[[start - 1 for start in offsets[1:-1] if 0 < start < len(columns)]] = True
    inside = len(columns) == 0 or (columns.min() >= 0 and columns.max() < limit)
    return bool(inside and rises.all() and np.isfinite(values).all())


def _checked(columns: np.ndarray, values: np.ndarray, limit: int, what: str) -> tuple[Row | None, str]:
    """The row as it is to be, or what is wrong with it."""
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    if len(columns) == 0:
        return (columns, numbers), ""
    if not (columns[1:] > columns[:-1]).all():
        order = np.argsort(columns, kind="stable")
        columns, numbers, values = columns[order], numbers[order], values[order]
        same = columns[1:] == columns[:-1]
        if same.any():
            return None, f"{what} {columns[1:][same][0]} stands twice; sum_duplicates() before saving"
    for column in columns[[0, -1]].tolist():
        if not 0 <= column < limit:
            return None, f"{what} {column} must be in [0, {limit}), as the matrix has {limit} columns"
    finite = np.isfinite(numbers)
    if not finite.all():
        place = int(np.argmin(finite))
        return None, _not_finite(what, int(columns[place]), values[place])
    return (columns, numbers), ""


def _not_finite(what: str, number: int, value: np.generic) -> str:
    return f"the value of {what} {number} ({value}) must be finite, within float32"


def _explained(error: Exception) -> str:
    text = str(error)
    if text == _OBJECTS or "Object arrays" in text or "Python objects" in text:
        return _OBJECTS
    if "pickled" in text:
        return "is no file of NumPy's; write it with np.save or scipy.sparse.save_npz"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror})"
    return (
        f"not readable as an array file ({text.splitlines()[0] if text else 'it is cut short'}); get or write it again"
    )
