"""Writers of files of texts."""

import csv
import io
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from haste.data.formats._atomic import whole_file
from haste.data.formats._fields import LIST
from haste.data.formats._json import json_line
from haste.data.source import DataError, Record

_BATCH = 1024


def write_csv(path: Path, records: Iterable[Record], separator: str) -> None:
    """A table of ids, texts and labels. separator: between labels, or LIST for lists as in JSON"""
    with whole_file(path) as stream:
        text = io.TextIOWrapper(stream, "utf-8", newline="", write_through=True)
        rows = csv.writer(text)
        rows.writerow(["id", "text", "labels"])
        for record in records:
            labels = list(record.labels)
            spelled = (
                (json_line(labels).decode().rstrip() if labels else "") if separator == LIST else separator.join(labels)
            )
            row = [record.id, record.text, spelled]
            _check_no_nul(path, record, "".join(row))
            rows.writerow(row)
        text.detach()


def write_parquet(path: Path, records: Iterable[Record]) -> None:
    """A table of ids, texts and lists of labels."""
    import pyarrow
    from pyarrow import parquet

    text = pyarrow.string()
    schema = pyarrow.schema({"id": text, "text": text, "labels": pyarrow.list_(text)})
    rows = iter(records)
    with whole_file(path) as stream, parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        while batch := list(islice(rows, _BATCH)):
            columns = [[r.id for r in batch], [r.text for r in batch], [list(r.labels) for r in batch]]
            arrays = [pyarrow.array(values, kind) for values, kind in zip(columns, schema.types, strict=True)]
            writer.write_batch(pyarrow.record_batch(arrays, schema=schema))


def write_lf(path: Path, records: Iterable[Record]) -> None:
    """JSON lines; labels are numbers."""
    with whole_file(path) as stream:
        for record in records:
            row = {"uid": record.id, "title": record.text, "content": "", "target_ind": list(record.labels)}
            stream.write(json_line(row | {"target_rel": [1.0] * len(record.labels)}))


def write_lines(path: Path, records: Iterable[Record]) -> int:
    """One text a line; line breaks in it become blanks. Returns: texts that were changed."""
    changed = 0
    with whole_file(path) as stream:
        for number, record in enumerate(records):
            _check_no_nul(path, record, record.text)
            text = record.text.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")
            changed += text != record.text
            stream.write(text_line(number, text))
    return changed


def text_line(number: int, text: str) -> bytes:
    """A line of a file. number: its own, from 0"""
    # A byte-order mark that a file begins with is no part of the text: one that is needs another before it.
    mark = "\ufeff" if number == 0 and text.startswith("\ufeff") else ""
    return f"{mark}{text}\n".encode()


def _check_no_nul(path: Path, record: Record, text: str) -> None:
    if "\0" in text:
        raise DataError(f"{path}: cannot hold the NUL character of document {record.id}; remove it, or write jsonl")
