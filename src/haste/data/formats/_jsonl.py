"""Readers and writers of document files; every error names the file and the line."""

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from haste.data.source import SPLITS, DataError, Record

_SUFFIXES = (".jsonl", ".jsonl.gz")
_BOM = b"\xef\xbb\xbf"


def read_jsonl(
    path: str | Path, *, text: str = "text", labels: str = "labels", require_labels: bool = True
) -> Iterator[Record]:
    """Documents of a file with one JSON object a line, in order; blank lines are skipped.

    path: .jsonl or .jsonl.gz, UTF-8 with or without a byte-order mark
    text, labels: the keys that hold the text (a string) and the labels (a list of strings)
    require_labels: whether the key of the labels must be there; without it a document has none
    Returns: an iterator; a document's id is its key "id" (a string or whole number), else the line's number.
    Raises: DataError while iterating, at the first thing that is wrong.
    """
    for number, row in read_objects(path):
        try:
            record = Record(_id(row, number), _text(row, text), _labels(row, labels, require_labels))
        except _Malformed as problem:
            raise DataError(f"{path}:{number}: {problem}") from None
        yield record


def read_objects(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, JSON object) of every line that is not blank. Raises DataError as read_jsonl does."""
    path = Path(path)
    for number, raw in _lines(path):
        try:
            row = _object(raw)
        except _Malformed as problem:
            raise DataError(f"{path}:{number}: {problem}") from None
        yield number, row


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
        entries = sorted(entry.name for entry in path.iterdir())
        shown = ", ".join(entries[:8]) + (", ..." if len(entries) > 8 else "") or "nothing"
        raise DataError(f"{path}: must hold train.jsonl or train.jsonl.gz (found: {shown}); check data.path")
    return splits


def write_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Write documents for read_jsonl to return; .gz compresses. The file appears complete or not at all."""
    path = Path(path)
    partial = path.with_name(path.name + ".tmp")
    try:
        with open(partial, "wb") as raw:
            # No name and no time in the header: the same documents always make the same bytes.
            packed = gzip.GzipFile("", "wb", 6, raw, mtime=0) if path.name.endswith(".gz") else None
            stream: Any = packed or raw
            for record in records:
                row = {"id": record.id, "text": record.text, "labels": list(record.labels)}
                stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            if packed:
                packed.close()
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class _Malformed(Exception):
    """What is wrong with a line, before the file and the line's number are put in front."""


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb")  # type: ignore[return-value]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of every line that is not blank."""
    number = 0
    try:
        with _open(path) as stream:
            for raw in stream:
                number += 1
                if number == 1:
                    raw = raw.removeprefix(_BOM)
                if raw.strip():
                    yield number, raw
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except EOFError:
        raise DataError(f"{path}:{number + 1}: the gzip file is cut short; get it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}:{number + 1}: not readable as gzip ({error}); get it again, "
            "or drop .gz from the name of a plain file"
        ) from None
    except OSError as error:
        raise DataError(f"{path}:{number + 1}: cannot be read ({error.strerror or error})") from error


def _object(raw: bytes) -> dict[str, Any]:
    try:
        line = raw.decode().rstrip()
    except UnicodeDecodeError as error:
        raise _Malformed(
            f"byte {raw[error.start]:#04x} at column {error.start + 1} is not UTF-8; save the file as UTF-8"
        ) from None
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise _Malformed(
            f"not valid JSON ({error.msg} at column {error.colno}): {_excerpt(line)}; "
            "write one whole JSON object on each line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise _Malformed(f"not readable as JSON ({error}); simplify the line") from None
    if not isinstance(row, dict):
        raise _Malformed(f"found {_kind(row)}, must be a JSON object; write one object on each line")
    return row


def _id(row: dict[str, Any], number: int) -> str:
    value = row.get("id", number)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _Malformed(f"the value of 'id' ({_kind(value)}) must be a string or a whole number")
    return _encodable("id", str(value))


def _text(row: dict[str, Any], key: str) -> str:
    if key not in row:
        raise _Malformed(f"no key '{key}' (found: {_keys(row)}); set data.text to the key of the text")
    value = row[key]
    if not isinstance(value, str):
        raise _Malformed(f"the value of '{key}' ({_kind(value)}) must be a string")
    return _encodable(key, value)


def _labels(row: dict[str, Any], key: str, required: bool) -> tuple[str, ...]:
    if key not in row:
        if not required:
            return ()
        raise _Malformed(
            f"no key '{key}' (found: {_keys(row)}); set data.labels to the key of the labels, "
            "[] for a document without any"
        )
    value = row[key]
    if not isinstance(value, list):
        raise _Malformed(f"the value of '{key}' ({_kind(value)}) must be a list of strings")
    for label in value:
        if not isinstance(label, str):
            raise _Malformed(f"the value of '{key}' holds {_kind(label)}, must be a list of strings")
        if not label:
            raise _Malformed(f"the value of '{key}' holds an empty string; remove it or name the label")
        _encodable(key, label)
    return tuple(value)


def _encodable(key: str, value: str) -> str:
    """JSON may spell half a surrogate pair, which no file of ours could be written with."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise _Malformed(f"the value of '{key}' holds half a surrogate pair ({half}); remove it") from None
    return value


def _kind(value: object) -> str:
    """A JSON value in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the string {_excerpt(value)}"
    return "a list" if isinstance(value, list) else "an object"


def _excerpt(value: str) -> str:
    value = value.strip()
    return repr(value if len(value) <= 40 else value[:37] + "...")


def _keys(row: dict[str, Any]) -> str:
    return ", ".join(list(row)[:8]) + (", ..." if len(row) > 8 else "") or "none"
