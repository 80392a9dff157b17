"""JSON objects, one a line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from haste.data.formats._lines import Malformed, at, check_encodable, decode, excerpt, kind_of, lines
from haste.data.source import LabelRecord, Problem, raise_problem


def json_objects(path: Path, problem: Problem = raise_problem) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, JSON object) of every line that is not blank."""
    for number, raw in lines(path, problem):
        if raw.isspace() or not raw:
            continue
        try:
            row = json_object(raw)
        except Malformed as error:
            problem(at(path, number, error))
            continue
        yield number, row


def json_line(value: Any) -> bytes:
    """A value as one line."""
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def described_labels(path: Path, problem: Problem = raise_problem) -> Iterator[LabelRecord]:
    """Labels and their texts in a file of {"label": name, "text": text, "content": more text}, one a line."""
    seen = set()
    for number, row in json_objects(path, problem):
        name, texts = row.get("label"), {key: row.get(key, "") for key in ("text", "content")}
        try:
            if not isinstance(name, str) or not name:
                raise Malformed("the value of 'label' must be the label's name, a string that is not empty")
            for key, text in texts.items():
                if not isinstance(text, str):
                    raise Malformed(f"the value of '{key}' ({kind_of(text)}) must be a string")
            if name in seen:
                raise Malformed(f"label {excerpt(name)} stands in an earlier line too; keep one of them")
            encodable = (check_encodable(key, text) for key, text in texts.items())
            record = LabelRecord(check_encodable("label", name), *encodable)
        except Malformed as error:
            problem(at(path, number, error))
            continue
        seen.add(name)
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
