"""Data sets whose documents and labels stand in files of their own, row by row: split, npz and raw."""

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

from haste.data.formats._arrays import DenseArray, SparseArray
from haste.data.formats._fields import Fields
from haste.data.formats._files import Files
from haste.data.formats._lines import Malformed, at, check_no_nul, decode, ignore, lines
from haste.data.formats._numbered import Numbered
from haste.data.formats._numbers import Row, SparseText
from haste.data.source import DataError, Kind, Problem, Record, raise_problem

Document = tuple[int, dict[str, Any] | None]
"""A line and the fields of its Record; None for one that is wrong."""


class _Rows(Protocol):
    """One file with a row for each document."""

    path: Path

    @property
    def count(self) -> int | None:
        """Rows, None where the file does not say."""

    @property
    def width(self) -> int | None:
        """Columns, None where the file does not say."""


class Documents(_Rows, Protocol):
    """One file of documents."""

    @property
    def kind(self) -> Kind:
        """What they are."""

    def read(self, problem: Problem) -> Iterator[Document]:
        """Every document."""


class Targets(_Rows, Protocol):
    """One file of documents' labels."""

    def read(self, problem: Problem) -> Iterator[tuple[Any, ...] | None]:
        """Every document's labels; None for those that are wrong."""


class Paired(Numbered):
    """Documents and labels in two files for each split."""

    def __init__(
        self, format: str, files: Files, pairs: Mapping[str, tuple[Documents, Targets | None]], names: Path | None
    ) -> None:
        """pairs: split -> its documents and labels; names: the labels' names, one a line"""
        self.format = format
        paths = {split: (x.path, *([y.path] if y else [])) for split, (x, y) in pairs.items()}
        super().__init__(files, paths, names)
        self._pairs = pairs
        documents, targets = next(iter(pairs.values()))
        self.kind = documents.kind
        self.num_features = documents.width
        self.num_labels = targets.width if targets else None
        if isinstance(targets, Names):
            self.reason += f"; {targets.said}"
        for x, y in pairs.values():
            _same_width(x, documents, "columns")
            if y and targets:
                _same_width(y, targets, "labels")
            if y and x.count is not None and y.count is not None and x.count != y.count:
                raise DataError(f"{y.path}: has {y.count:,} rows, {x.path.name} {x.count:,}; {_REMEDY}")

    def documents(self, split: str, problem: Problem = raise_problem) -> Iterator[Record]:
        """See Source."""
        x, y = self._pairs[split]
        if y is None:
            for number, (line, fields) in enumerate(x.read(problem), 1):
                if fields is not None:
                    yield Record(str(number), line=line, **fields)
            return
        pairs = zip_longest(x.read(problem), y.read(problem), fillvalue=_END)
        for number, (document, labels) in enumerate(pairs, 1):
            if document is _END or labels is _END:
                short, long = (x, y) if document is _END else (y, x)
                problem(at(short.path, number, f"ends after {number - 1:,} rows, {long.path.name} goes on; {_REMEDY}"))
                return
            line, fields = document
            if fields is not None and labels is not None:
                yield Record(str(number), labels=labels, line=line, **fields)

    def _num_rows(self, split: str) -> int:
        counts = [part.count for part in self._pairs[split] if part and part.count is not None]
        return counts[0] if counts else sum(1 for _ in self._pairs[split][0].read(ignore))


_END: Any = object()
_REMEDY = "give both a row for each document"


def _same_width(one: _Rows, other: _Rows, what: str) -> None:
    if one.width != other.width:
        raise DataError(f"{one.path}: has {one.width} {what}, {other.path.name} {other.width}; write both alike")


class Sparse:
    """Documents with sparse features."""

    kind: Kind = "sparse"

    def __init__(self, matrix: SparseText | SparseArray) -> None:
        self._matrix = matrix
        self.path = matrix.path
        self.count, self.width = matrix.shape

    def read(self, problem: Problem) -> Iterator[Document]:
        """See Documents."""
        for line, row in self._matrix.rows(problem):
            yield line, None if row is None else {"columns": row[0], "values": row[1]}


class Dense:
    """Documents with dense features."""

    kind: Kind = "dense"

    def __init__(self, matrix: DenseArray) -> None:
        self._matrix = matrix
        self.path = matrix.path
        self.count, self.width = matrix.shape

    def read(self, problem: Problem) -> Iterator[Document]:
        """See Documents."""
        for line, row in self._matrix.rows(problem):
            yield line, None if row is None else {"dense": row}


class Texts:
    """Documents, one a line."""

    kind: Kind = "text"
    count = None
    width = None

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, problem: Problem) -> Iterator[Document]:
        """See Documents."""
        for line, raw in lines(self.path, problem):
            try:
                yield line, {"text": check_no_nul(decode(raw))}
            except Malformed as error:
                problem(at(self.path, line, error))
                yield line, None


class Numbers:
    """Labels as the columns of a sparse matrix."""

    def __init__(self, matrix: SparseText | SparseArray) -> None:
        self._matrix = matrix
        self.path = matrix.path
        self.count, self.width = matrix.shape

    def read(self, problem: Problem) -> Iterator[tuple[int, ...] | None]:
        """See Targets. A value of 0 is no label."""
        for line, row in self._matrix.rows(problem, "label"):
            yield None if row is None else self._present(line, row, problem)

    def _present(self, line: int, row: Row, problem: Problem) -> tuple[int, ...] | None:
        columns, values = row[0].tolist(), row[1].tolist()
        if values and min(values) <= 0:
            low = min(values)
            if low < 0:
                where = columns[values.index(low)]
                problem(at(self.path, line, f"the value of label {where} ({low:g}) must be 1, or 0 for none"))
                return None
            columns = [column for column, value in zip(columns, values, strict=True) if value]
        return tuple(columns)


class Names:
    """Labels by name, those of a document on one line."""

    count = None
    width = None

    def __init__(self, path: Path, separator: str | None) -> None:
        """separator: between them; None = blanks"""
        self.path = path
        self._fields = None if separator is None else Fields(separator=separator)
        self.said = "labels are separated by " + ("blanks" if separator is None else repr(separator))

    def read(self, problem: Problem) -> Iterator[tuple[str, ...] | None]:
        """See Targets."""
        for line, raw in lines(self.path, problem):
            try:
                text = check_no_nul(decode(raw))
            except Malformed as error:
                problem(at(self.path, line, error))
                yield None
                continue
            yield tuple(text.split()) if self._fields is None else self._fields.split(text)
