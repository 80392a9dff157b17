"""Rows of sparse numbers as text: "3:1 7:0.5", with a line of counts in front."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from haste.data.formats._lines import Malformed, Noted, at, excerpt, lines
from haste.data.source import Problem, raise_problem

_BLOCK = 1 << 20  # bytes of rows that are parsed in one go
_LISTS = re.compile(rb"\d{1,18}(,\d{1,18})*")
_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)

Row = tuple[np.ndarray, np.ndarray]
"""Columns, int64, sorted, and their values, float32."""


class SparseText:
    """A matrix: a line "rows columns", then one line "column:value column:value ..." for each row; counts from 0."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if the first line is another."""
        self.path = path
        self.shape = read_header(path, ("rows", "columns"))

    def rows(self, problem: Problem = raise_problem, what: str = "column") -> Iterator[tuple[int, Row | None]]:
        """(line, row) of every row; None for one that is wrong. what: is numbered by the columns, for messages"""
        body = read_body(self.path, self.shape[0], problem)
        for block in blocks(body):
            rows = parse_rows([raw.strip() for _, raw in block], self.shape[1], what)
            for (line, _), row in zip(block, rows, strict=True):
                if isinstance(row, Malformed):
                    problem(at(self.path, line, row))
                    yield line, None
                else:
                    yield line, row


def read_header(path: Path, names: Sequence[str]) -> tuple[int, ...]:
    """The counts in the first line of a file. Raises DataError if there is anything else."""
    first = _first_line(path)
    if not _are_counts(first, len(names)):
        shown = excerpt(first.decode(errors="replace"))
        raise at(path, 1, f"must hold {len(names)} whole numbers, {', '.join(names)} (found: {shown})")
    return tuple(map(int, first.split()))


def has_header(path: Path, count: int) -> bool:
    """Whether the first line of a file has so many counts. Raises DataError if the file cannot be read."""
    return _are_counts(_first_line(path), count)


def _first_line(path: Path) -> bytes:
    return next(lines(path), (1, b""))[1]


def _are_counts(line: bytes, count: int) -> bool:
    return re.fullmatch(rb"\s*\d{1,18}(\s+\d{1,18}){%d}\s*" % (count - 1), line) is not None


def read_body(path: Path, count: int, problem: Problem) -> Iterator[tuple[int, bytes]]:
    """(line number, bytes) of the `count` lines below the header; tells of fewer, and of more that are not blank."""
    noted = Noted(problem)
    number = 0
    for number, raw in lines(path, noted):
        if 1 < number <= count + 1:
            yield number, raw
        elif number > 1 and raw.strip():
            problem(at(path, number, f"is more than the {count:,} rows of the header; correct the first line"))
            return
    if number <= count and not noted.told:
        problem(at(path, number, f"ends after {number - 1:,} rows, the header says {count:,}; get it whole"))


def blocks(body: Iterable[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    """Lines, as many at a time as are parsed in one go."""
    block: list[tuple[int, bytes]] = []
    size = 0
    for entry in body:
        block.append(entry)
        size += len(entry[1]) + 1
        if size >= _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def parse_rows(parts: Sequence[bytes], limit: int, what: str) -> list[Row | Malformed]:
    """The rows in stripped lines of column:value; what is wrong with those that are. limit: number of columns"""
    parsed = _parse_block(parts, limit)
    if parsed is not None:
        offsets, columns, values = parsed
        return [(columns[a:b], values[a:b]) for a, b in pairwise(offsets)]
    return [_caught(part, limit, what) for part in parts]


def parse_lists(parts: Sequence[bytes], limit: int, what: str) -> list[tuple[int, ...] | Malformed]:
    """The numbers in stripped texts like 3,7; what is wrong with those that are. limit: they are below it"""
    counts = [part.count(b",") + 1 if part else 0 for part in parts]
    text = b",".join(filter(None, parts))
    numbers = list(map(int, text.split(b","))) if _LISTS.fullmatch(text) else []
    if len(numbers) == sum(counts) and (not numbers or (min(numbers) >= 0 and max(numbers) < limit)):
        found = iter(numbers)
        return [tuple(islice(found, count)) for count in counts]
    return [_caught_list(part, limit, what) for part in parts]


def _parse_block(parts: Sequence[bytes], limit: int) -> tuple[list[int], np.ndarray, np.ndarray] | None:
    """Offsets, columns and values of many rows at once; None if anything is wrong or unusual."""
    counts = np.array([part.count(b":") for part in parts], np.int64)
    pairs = _pairs(b"\n".join(filter(None, parts)).replace(b" ", b"\n"))
    if pairs is None or len(pairs[0]) != counts.sum():
        return None
    columns = pairs[0]
    if len(columns) and not (columns.min() >= 0 and columns.max() < limit):
        return None
    with np.errstate(over="ignore"):
        values = pairs[1].astype(np.float32)
    rows = np.repeat(np.arange(len(parts)), counts)
    inside = rows[1:] == rows[:-1]
    if (inside & (columns[1:] <= columns[:-1])).any():
        order = np.lexsort((columns, rows))
        columns, values = columns[order], values[order]
        if (inside & (columns[1:] == columns[:-1])).any():
            return None
    if not np.isfinite(values).all():
        return None
    return [0, *np.cumsum(counts).tolist()], columns, values


def _pairs(text: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """Numbers, int64, and values, float64, of lines of number:value; None if there is anything else."""
    if not text:
        return np.empty(0, np.int64), np.empty(0)
    import pyarrow
    from pyarrow import csv

    types = {"column": pyarrow.int64(), "value": pyarrow.float64()}
    try:
        table = csv.read_csv(
            pyarrow.BufferReader(text),
            csv.ReadOptions(use_threads=False, column_names=list(types), block_size=len(text) + 1),
            csv.ParseOptions(delimiter=":", quote_char=False, double_quote=False),
            csv.ConvertOptions(column_types=types, null_values=[], check_utf8=False),
        )
    except pyarrow.ArrowInvalid:
        return None
    return table["column"].to_numpy(), table["value"].to_numpy()


def _caught(part: bytes, limit: int, what: str) -> Row | Malformed:
    try:
        return _parse_row(part, limit, what)
    except Malformed as error:
        return error


def _parse_row(part: bytes, limit: int, what: str) -> Row:
    found: dict[int, np.float32] = {}
    for pair in part.split():
        left, colon, right = pair.partition(b":")
        if not colon or not left or not right:
            raise Malformed(f"{_shown(pair)} must be {what}:value, as in 7:0.5")
        column = _parse_id(left, limit, what)
        if not _NUMBER.fullmatch(right):
            raise Malformed(f"the value of {what} {column} ({_shown(right)}) must be a number")
        with np.errstate(over="ignore"):
            value = np.float32(float(right))
        if not np.isfinite(value):
            raise Malformed(f"the value of {what} {column} ({right.decode()}) must be finite, within float32")
        if column in found:
            raise Malformed(f"{what} {column} stands twice; keep one of them")
        found[column] = value
    columns = np.array(sorted(found), np.int64)
    return columns, np.array([found[column] for column in columns.tolist()], np.float32)


def _caught_list(part: bytes, limit: int, what: str) -> tuple[int, ...] | Malformed:
    try:
        return tuple(_parse_id(number, limit, what) for number in part.split(b",")) if part else ()
    except Malformed as error:
        return error


def _parse_id(text: bytes, limit: int, what: str) -> int:
    number = float(text) if _NUMBER.fullmatch(text.strip()) else 0.5
    if not number.is_integer():
        raise Malformed(f"{what} {_shown(text)} must be a whole number")
    if not 0 <= number < limit:
        raise Malformed(f"{what} {int(number)} must be in [0, {limit}); count from 0, or correct the file's first line")
    return int(number)


def _shown(text: bytes) -> str:
    return excerpt(text.decode(errors="replace"))
