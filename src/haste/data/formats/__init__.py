"""Readers and writers of every format of documents; each finds out what it is given and names file and line."""

from haste.data.formats._detect import detect
from haste.data.formats._input import detect_input
from haste.data.formats._jsonl import read_jsonl, read_objects, write_jsonl
from haste.data.formats._write import write
from haste.data.source import DataError, Record

__all__ = [
    "DataError",
    "Record",
    "detect",
    "detect_input",
    "read_jsonl",
    "read_objects",
    "write",
    "write_jsonl",
]
