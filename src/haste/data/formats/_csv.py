"""Tables of comma-separated values (or separated by semicolons, tabs or bars) whose first line names the columns."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from haste.data.formats._fields import Fields, join_texts
from haste.data.formats._lines import Malformed, Noted, at, check_no_nul, decode, ignore, lines
from haste.data.formats._table import Table
from haste.data.source import Problem, Record

_DELIMITERS = (",", ";", "\t", "|")
_LONGEST = 1 << 26  # characters of a field: a quote that is never closed must not take the memory of all that follows


class CsvSource(Table):
    """train.csv (or .tsv), dev.csv, test.csv, perhaps packed, and perhaps labels.jsonl."""

    format = "csv"

    def _sample(self, path: Path) -> Iterator[object]:
        header = _Header.of(path, self._fields, ignore)
        if header is not None and header.labels is not None:
            for _, row in _rows(path, header, ignore):
                yield row[header.labels]

    def _read(self, path: Path, problem: Problem) -> Iterator[Record]:
        header = _Header.of(path, self._fields, problem)
        if header is None:
            return
        for line, row in _rows(path, header, problem):
            text = row[header.text[0]] if len(header.text) == 1 else join_texts(row[i] for i in header.text)
            try:
                labels = self._fields.split(row[header.labels]) if header.labels is not None else ()
            except Malformed as error:
                problem(at(path, line, error))
                continue
            name = row[header.id] if header.id is not None else ""
            yield Record(name or str(line), text, labels, line=line)


@dataclass(frozen=True)
class _Header:
    """The first line: the delimiter, the number of columns and which of them are read."""

    delimiter: str
    width: int
    text: list[int]
    labels: int | None
    id: int | None

    @classmethod
    def of(cls, path: Path, fields: Fields, problem: Problem) -> "_Header | None":
        """The header of a file; None, and told to `problem`, if it cannot be used."""
        noted = Noted(problem)
        for number, raw in lines(path, noted):
            if not raw.strip():
                continue
            try:
                return cls._parsed(check_no_nul(decode(raw)), fields)
            except Malformed as error:
                problem(at(path, number, error))
                return None
        if not noted.told:
            problem(at(path, 1, "is empty; its first line must name the columns"))
        return None

    @classmethod
    def _parsed(cls, line: str, fields: Fields) -> "_Header":
        wanted = {*fields.text, fields.labels}
        delimiter = max(_DELIMITERS, key=lambda mark: (len(wanted & set(_names(line, mark))), mark in line))
        names = _names(line, delimiter)
        for number, name in enumerate(names):
            if name and name in names[:number]:
                raise Malformed(f"column '{name}' stands twice in the header; rename one of them")

        def place(name: str, setting: str, required: bool) -> int | None:
            if name in names:
                return names.index(name)
            if required:
                raise fields.missing(name, setting, names)
            return None

        text = [place(name, "text", True) for name in fields.text]
        labels = place(fields.labels, "labels", fields.require_labels)
        number_of_id = place(fields.id, "id", fields.require_id)
        return cls(delimiter, len(names), [i for i in text if i is not None], labels, number_of_id)


def _names(line: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter, strict=True), [])]
    except csv.Error:
        raise Malformed("the header has a quote that is never closed; close it") from None


def _rows(path: Path, header: _Header, problem: Problem) -> Iterator[tuple[int, Sequence[str]]]:
    """(number of its first line, fields) of every row below the header that has as many fields."""
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST))
    rows = csv.reader(_texts(path, problem), delimiter=header.delimiter, strict=True)
    below = False
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            problem(at(path, line, _explained(str(error))))
            continue
        if row is None:
            return
        if not row:
            continue
        if not below:
            below = True
        elif len(row) == header.width:
            yield line, row
        else:
            problem(
                at(
                    path,
                    line,
                    f"has {len(row)} fields, the header {header.width}; put a field that holds "
                    f"{header.delimiter!r} into double quotes",
                )
            )


def _texts(path: Path, problem: Problem) -> Iterator[str]:
    """Lines as text; one that is wrong counts, but is empty."""
    for number, raw in lines(path, problem):
        try:
            text = check_no_nul(raw.decode())
        except UnicodeDecodeError:
            text = _told(path, number, raw, problem)
        except Malformed as error:
            problem(at(path, number, error))
            text = "\n"
        yield text


def _told(path: Path, number: int, raw: bytes, problem: Problem) -> str:
    try:
        decode(raw)
    except Malformed as error:
        problem(at(path, number, error))
    return "\n"


def _explained(error: str) -> str:
    if "unexpected end of data" in error:
        return (
            "a double quote is opened in this row and never closed; close it, or double it where it is part of a text"
        )
    if "field larger" in error:
        return f"a field is longer than {_LONGEST:,} characters; close its double quote"
    if "new-line character" in error:
        return "holds a carriage return outside double quotes; save the file with line ends \\n or \\r\\n"
    return f"not readable as a row ({error}); double the double quotes that are part of a text"
