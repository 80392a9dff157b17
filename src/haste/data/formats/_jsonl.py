"""One JSON object a line."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from haste.data.formats._atomic import whole_file
from haste.data.formats._fields import Fields, join_texts, label_list
from haste.data.formats._json import json_line, json_objects
from haste.data.formats._lines import Malformed, at, check_encodable, ignore, kind_of
from haste.data.formats._table import Table
from haste.data.source import Problem, Record, raise_problem


class JsonlSource(Table):
    """train.jsonl, dev.jsonl, test.jsonl, perhaps packed, and perhaps labels.jsonl."""

    format = "jsonl"

    def _sample(self, path: Path) -> Iterator[object]:
        return (row.get(self._fields.labels) for _, row in json_objects(path, ignore))

    def _read(self, path: Path, problem: Problem) -> Iterator[Record]:
        return _records(path, json_objects(path, problem), self._fields, problem)


def read_jsonl(
    path: str | Path, *, text: str = "text", labels: str = "labels", require_labels: bool = True
) -> Iterator[Record]:
    """Documents of a file with one JSON object a line, in order; blank lines are skipped.

    path: .jsonl, .jsonl.gz or .jsonl.zst, UTF-8 with or without a byte-order mark
    text, labels: the keys that hold the text (a string) and the labels (a list of strings)
    require_labels: whether the key of the labels must be there; without it a document has none
    Returns: an iterator; a document's id is its key "id" (a string or whole number), else the line's number.
    Raises: DataError while iterating, at the first thing that is wrong.
    """
    fields = Fields(text=(text,), labels=labels, require_labels=require_labels)
    return _records(Path(path), read_objects(path), fields, raise_problem)


def read_objects(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, JSON object) of every line that is not blank. Raises DataError as read_jsonl does."""
    return json_objects(Path(path), raise_problem)


def write_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Write documents for read_jsonl to return; .gz and .zst compress. The file appears complete or not at all."""
    with whole_file(Path(path)) as stream:
        for record in records:
            row = {"id": record.id, "text": record.text, "labels": list(record.labels)}
            stream.write(json_line(row))


def _records(
    path: Path, rows: Iterable[tuple[int, dict[str, Any]]], fields: Fields, problem: Problem
) -> Iterator[Record]:
    for number, row in rows:
        try:
            record = Record(read_id(row, fields, number), read_text(row, fields), _labels(row, fields), line=number)
        except Malformed as error:
            problem(at(path, number, error))
            continue
        yield record


def read_id(row: dict[str, Any], fields: Fields, number: int) -> str:
    """The id of a document, the line's number where it has none. Raises Malformed."""
    key = fields.id
    if fields.require_id and key not in row:
        raise fields.missing(key, "id", row)
    value = row.get(key, number)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Malformed(f"the value of '{key}' ({kind_of(value)}) must be a string or a whole number")
    return check_encodable(key, str(value))


def read_text(row: dict[str, Any], fields: Fields) -> str:
    """The text of a document. Raises Malformed."""
    parts = []
    for key in fields.text:
        if key not in row:
            raise fields.missing(key, "text", row)
        value = row[key]
        if value is None and len(fields.text) > 1:
            continue
        if not isinstance(value, str):
            raise Malformed(f"the value of '{key}' ({kind_of(value)}) must be a string")
        parts.append(check_encodable(key, value))
    return parts[0] if len(parts) == 1 else join_texts(parts)


def _labels(row: dict[str, Any], fields: Fields) -> tuple[str, ...]:
    key = fields.labels
    if key not in row:
        if not fields.require_labels:
            return ()
        raise fields.missing(key, "labels", row)
    value = row[key]
    if isinstance(value, str) and fields.separator is not None:
        return tuple(check_encodable(key, label) for label in fields.split(value))
    if not isinstance(value, list):
        raise Malformed(f"the value of '{key}' ({kind_of(value)}) must be a list of strings")
    return label_list(key, value)
