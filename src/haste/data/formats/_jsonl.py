"""One JSON object a line."""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from haste.data.formats._atomic import whole_file
from haste.data.formats._fields import SAMPLE, Fields, label_list
from haste.data.formats._files import Files
from haste.data.formats._lines import Malformed, at, check_encodable, decode, excerpt, kind_of, lines, some
from haste.data.source import SPLITS, DataError, LabelRecord, Problem, Record, Source, raise_problem

_SUFFIXES = (".jsonl", ".jsonl.gz")


class JsonlSource(Source):
    """train.jsonl, dev.jsonl, test.jsonl, perhaps packed, and perhaps labels.jsonl."""

    format = "jsonl"
    kind = "text"

    def __init__(self, files: Files, splits: dict[str, Path], fields: Fields) -> None:
        """splits: their files; fields: without a separator where it is to be found"""
        self.path = files.path
        self.splits = tuple(splits)
        self.reason = files.holds(splits.values())
        self._files = splits
        self._labels = files.find("labels.jsonl")
        sample = itertools.islice(_objects(next(iter(splits.values())), ignore), SAMPLE)
        values = [row.get(fields.labels) for _, row in sample]
        strings = [value for value in values if isinstance(value, str)]
        if strings:
            fields = fields.with_separator(strings)
            self.reason += f"; {fields.said()}"
        self._fields = fields

    def files(self) -> dict[str, tuple[Path, ...]]:
        """See Source."""
        files = self._files | ({"labels": self._labels} if self._labels else {})
        return {name: (path,) for name, path in files.items()}

    def documents(self, split: str, problem: Problem = raise_problem) -> Iterator[Record]:
        """See Source."""
        path = self._files[split]
        return _records(path, _objects(path, problem), self._fields, problem)

    def labels(self, problem: Problem = raise_problem) -> Iterator[LabelRecord]:
        """See Source."""
        return described_labels(self._labels, problem)


def ignore(_: DataError) -> None:
    """The Problem of those who only look at what a file seems to hold."""


def described_labels(path: Path | None, problem: Problem = raise_problem) -> Iterator[LabelRecord]:
    """Labels and their texts in a file of {"label": name, "text": text}, one a line; none if there is no file."""
    if path is None:
        return
    seen = set()
    for number, row in _objects(path, problem):
        name, text = row.get("label"), row.get("text", "")
        try:
            if not isinstance(name, str) or not name:
                raise Malformed("the value of 'label' must be the label's name, a string that is not empty")
            if not isinstance(text, str):
                raise Malformed(f"the value of 'text' ({kind_of(text)}) must be a string")
            if name in seen:
                raise Malformed(f"label {excerpt(name)} stands in an earlier line too; keep one of them")
            record = LabelRecord(check_encodable("label", name), check_encodable("text", text))
        except Malformed as error:
            problem(at(path, number, error))
            continue
        seen.add(name)
        yield record


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
    return _objects(Path(path), raise_problem)


def find_splits(path: str | Path) -> dict[str, Path]:
    """Files of the train, dev and test documents under `path`; a file by itself is all train.

    path: folder holding train.jsonl[.gz] and perhaps dev.jsonl[.gz] and test.jsonl[.gz], or one such file
    Raises: DataError if there is no train file, or a split exists twice.
    """
    path = Path(path)
    if path.is_file():
        if not path.name.endswith(_SUFFIXES):
            raise DataError(f"{path}: must end in .jsonl or .jsonl.gz; convert it to one JSON object a line")
        return {"train": path}
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; check data.path")
    splits = {}
    for name in SPLITS:
        found = [path / (name + suffix) for suffix in _SUFFIXES if (path / (name + suffix)).is_file()]
        if len(found) > 1:
            raise DataError(f"{path}: holds both {found[0].name} and {found[1].name}; keep one of them")
        if found:
            splits[name] = found[0]
    if "train" not in splits:
        shown = some(sorted(entry.name for entry in path.iterdir()), "nothing")
        raise DataError(f"{path}: must hold train.jsonl or train.jsonl.gz (found: {shown}); check data.path")
    return splits


def write_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Write documents for read_jsonl to return; .gz and .zst compress. The file appears complete or not at all."""
    with whole_file(Path(path)) as stream:
        for record in records:
            row = {"id": record.id, "text": record.text, "labels": list(record.labels)}
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _objects(path: Path, problem: Problem) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, raw in lines(path, problem):
        if raw.isspace() or not raw:
            continue
        try:
            row = json_object(raw)
        except Malformed as error:
            problem(at(path, number, error))
            continue
        yield number, row


def _records(
    path: Path, rows: Iterable[tuple[int, dict[str, Any]]], fields: Fields, problem: Problem
) -> Iterator[Record]:
    for number, row in rows:
        try:
            record = Record(_id(row, fields.id, number), _text(row, fields), _labels(row, fields), line=number)
        except Malformed as error:
            problem(at(path, number, error))
            continue
        yield record


def json_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in a line. Raises Malformed."""
    line = decode(raw)
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise Malformed(
            f"not valid JSON ({error.msg} at column {error.colno}): {excerpt(line)}; "
            "write one whole JSON object on each line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not readable as JSON ({error}); simplify the line") from None
    if not isinstance(row, dict):
        raise Malformed(f"found {kind_of(row)}, must be a JSON object; write one object on each line")
    return row


def _id(row: dict[str, Any], key: str, number: int) -> str:
    value = row.get(key, number)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Malformed(f"the value of '{key}' ({kind_of(value)}) must be a string or a whole number")
    return check_encodable(key, str(value))


def _text(row: dict[str, Any], fields: Fields) -> str:
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
    return " ".join(parts)


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
