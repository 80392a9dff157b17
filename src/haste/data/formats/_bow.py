"""The XML Repository's first format: a line "documents columns labels", then "3,17 5:0.5 9:1" for each document."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from haste.data.formats._files import Files
from haste.data.formats._lines import Malformed, at, excerpt, lines
from haste.data.formats._numbered import NAME_LISTS, Numbered
from haste.data.formats._numbers import blocks, has_header, parse_lists, parse_rows, read_body, read_header
from haste.data.source import DataError, Problem, Record, raise_problem

_COUNTS = ("documents", "columns", "labels")


class BowSource(Numbered):
    """train.txt, dev.txt, test.txt; or data.txt with lists of the rows of each split."""

    format = "bow"
    kind = "sparse"
    num_features: int
    num_labels: int

    def __init__(self, files: Files, splits: dict[str, Path], rows: dict[str, Path] | None = None) -> None:
        """splits: their files; rows: split -> the list of its rows in its file"""
        rows = rows or {}
        paths = {
            split: tuple(dict.fromkeys([path, *filter(None, [rows.get(split)])])) for split, path in splits.items()
        }
        super().__init__(files, paths, files.find(*NAME_LISTS))
        self._counts = {split: read_header(path, _COUNTS) for split, path in splits.items()}
        first = next(iter(splits))
        _, self.num_features, self.num_labels = self._counts[first]
        for split, path in splits.items():
            if self._counts[split][1:] != self._counts[first][1:]:
                raise at(
                    path,
                    1,
                    f"has {_shape(self._counts[split])}, {splits[first].name} {_shape(self._counts[first])}; "
                    "correct one of the first lines",
                )
        self._chosen: dict[str, np.ndarray] = {}
        if rows:
            self._chosen, said = _read_choice(rows, self._counts[first][0])
            self.reason += f"; {said}"

    def documents(self, split: str, problem: Problem = raise_problem) -> Iterator[Record]:
        """See Source."""
        path = self._files[split][0]
        chosen = self._chosen.get(split)
        body = read_body(path, self._counts[split][0], problem)
        if chosen is not None:
            body = ((line, raw) for line, raw in body if chosen[line - 2])
        for block in blocks(body):
            parts = [_parted(raw) for _, raw in block]
            rows = parse_rows([row for _, row in parts], self.num_features, "column")
            labels = parse_lists([names for names, _ in parts], self.num_labels, "label")
            for (line, _), row, found in zip(block, rows, labels, strict=True):
                if isinstance(found, Malformed) or isinstance(row, Malformed):
                    for error in filter(lambda part: isinstance(part, Malformed), (found, row)):
                        problem(at(path, line, error))
                else:
                    yield Record(str(line - 1), labels=found, columns=row[0], values=row[1], line=line)

    def _num_rows(self, split: str) -> int:
        chosen = self._chosen.get(split)
        return self._counts[split][0] if chosen is None else int(chosen.sum())


def _shape(counts: tuple[int, ...]) -> str:
    return f"{counts[1]} columns and {counts[2]} labels"


def _parted(raw: bytes) -> tuple[bytes, bytes]:
    """The labels and the features of a document. One without labels begins with a blank, or should."""
    text = raw.rstrip()
    if text[:1].isspace():
        return b"", text.strip()
    labels, _, row = text.replace(b"\t", b" ").partition(b" ")
    return (b"", text) if b":" in labels else (labels, row.strip())


def is_bow(path: Path) -> bool:
    """Whether a file's first line has the three counts. Raises DataError if the file cannot be read."""
    return has_header(path, len(_COUNTS))


def _read_choice(rows: dict[str, Path], count: int) -> tuple[dict[str, np.ndarray], str]:
    """Split -> (count,) bool, the rows that are its documents; and what was read, in words."""
    lists = {split: _read_rows(path) for split, path in rows.items()}
    everything = np.concatenate([table.ravel() for table, _ in lists.values()])
    low, high = (int(everything.min()), int(everything.max())) if len(everything) else (1, count)
    names = ", ".join(path.name for path in rows.values())
    if high > count or low < 0 or (low == 0 and high == count):
        where = next(iter(rows.values()))
        raise DataError(
            f"{where}: rows from {low} to {high} must be in [1, {count}], or in [0, {count - 1}] (in {names})"
        )
    if low > 0 and high < count:
        where = next(iter(rows.values()))
        raise DataError(
            f"{where}: rows from {low} to {high} of {count} may count from 0 or from 1 (in {names}); "
            "write each split into a file of its own, as train.txt and test.txt"
        )
    base = 0 if low == 0 else 1
    chosen: dict[str, np.ndarray] = {}
    for split, (table, numbers) in lists.items():
        chosen[split] = np.zeros(count, bool)
        for line, row in zip(numbers, (table[:, 0] - base).tolist(), strict=True):
            other = next((name for name, taken in chosen.items() if taken[row]), None)
            if other is not None:
                raise at(rows[split], line, f"row {row + base} is in {other} already; a document is in one split, once")
            chosen[split][row] = True
    widths = {table.shape[1] for table, _ in lists.values()}
    more = f", the first of {max(widths)} columns is read" if max(widths) > 1 else ""
    return chosen, f"rows count from {base}{more}"


def _read_rows(path: Path) -> tuple[np.ndarray, list[int]]:
    """(rows, columns) int64 of the numbers in a file, and the lines where they stand."""
    table: list[list[int]] = []
    numbers = []
    for number, raw in lines(path):
        words = raw.split()
        if not words:
            continue
        if not all(word.isdigit() for word in words) or (table and len(words) != len(table[0])):
            shown = excerpt(raw.decode(errors="replace"))
            width = f"{len(table[0])} whole numbers" if table else "whole numbers"
            raise at(path, number, f"must hold {width}, one for each way to split (found: {shown})")
        table.append([int(word) for word in words])
        numbers.append(number)
    return np.array(table, np.int64).reshape(len(table), -1), numbers
