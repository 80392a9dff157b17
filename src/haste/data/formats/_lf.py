"""Data sets with label features: trn.json, tst.json and lbl.json, one JSON object a line, and filter files."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from haste.config import Data
from haste.data.formats._fields import Fields, join_texts
from haste.data.formats._files import Files
from haste.data.formats._json import json_objects
from haste.data.formats._jsonl import read_id, read_text
from haste.data.formats._lines import Malformed, Noted, at, check_encodable, count_lines, kind_of
from haste.data.formats._numbered import Numbered, UniqueNames
from haste.data.source import LabelRecord, Problem, Record, raise_problem


class LfSource(Numbered):
    """A document's labels are the numbers of lines of lbl.json, from 0; a label is called by its uid.

    Its text is the title; what else of a document is read (data.text) is read of a label, too.
    """

    format = "lf"
    kind = "text"
    num_labels: int

    def __init__(self, files: Files, splits: dict[str, Path], labels: Path, config: Data) -> None:
        """splits: their files; labels: the labels' file"""
        super().__init__(files, {split: (path,) for split, path in splits.items()}, labels)
        self.reason = files.holds([*splits.values(), labels])
        self._labels = labels
        self._fields = lf_fields(config)
        self.num_labels = count_lines(labels)

    def documents(self, split: str, problem: Problem = raise_problem) -> Iterator[Record]:
        """See Source."""
        path = self._files[split][0]
        for number, row in json_objects(path, problem):
            try:
                labels = self._numbers(row)
                record = Record(read_id(row, self._fields, number), read_text(row, self._fields), labels, line=number)
            except Malformed as error:
                problem(at(path, number, error))
                continue
            yield record

    def labels(self, problem: Problem = raise_problem) -> Iterator[LabelRecord]:
        """See Source."""
        unique = UniqueNames(self._labels)
        noted = Noted(problem)
        place = broken = 0
        for number, row in json_objects(self._labels, noted):
            for _ in range(noted.told - broken):  # lines that are no objects have a number, too
                yield LabelRecord(unique.add(place, ""))
                place += 1
            try:
                record = self._label(row)
            except Malformed as error:
                noted(at(self._labels, number, error))
                record = LabelRecord("")
            yield replace(record, name=unique.add(place, record.name))
            place += 1
            broken = noted.told
        for rest in range(place, self.num_labels):
            yield LabelRecord(unique.add(rest, ""))
        unique.say()

    def _label(self, row: dict[str, Any]) -> LabelRecord:
        name, text = row.get(self._fields.id), row.get("title", "")
        if not isinstance(name, str):
            raise Malformed(f"the value of '{self._fields.id}' ({kind_of(name)}) must be the label's name")
        if not isinstance(text, str):
            raise Malformed(f"the value of 'title' ({kind_of(text)}) must be a string")
        rest = [check_encodable(key, self._content(key, row)) for key in self._fields.text if key != "title"]
        return LabelRecord(check_encodable(self._fields.id, name), check_encodable("title", text), join_texts(rest))

    @staticmethod
    def _content(key: str, row: dict[str, Any]) -> str:
        value = row.get(key)
        if value is not None and not isinstance(value, str):
            raise Malformed(f"the value of '{key}' ({kind_of(value)}) must be a string")
        return value or ""

    def _numbers(self, row: dict[str, Any]) -> tuple[int, ...]:
        key = self._fields.labels
        if key not in row:
            raise self._fields.missing(key, "labels", row)
        value = row[key]
        if not isinstance(value, list):
            raise Malformed(f"the value of '{key}' ({kind_of(value)}) must be a list of lines of {self._labels.name}")
        for number in value:
            if type(number) is not int:
                raise Malformed(f"the value of '{key}' holds {kind_of(number)}, must be a list of whole numbers")
            if not 0 <= number < self.num_labels:
                limit = f"[0, {self.num_labels}), the lines of {self._labels.name}"
                raise Malformed(f"the value of '{key}' holds {number}, must be in {limit}; count from 0")
        weights = row.get("target_rel")
        if isinstance(weights, list) and len(weights) != len(value):
            raise Malformed(f"'{key}' holds {len(value)} labels, 'target_rel' {len(weights)} values; give one for each")
        return tuple(value)

    def _num_rows(self, split: str) -> int:
        return count_lines(self._files[split][0])


def lf_fields(config: Data, labels: str = "target_ind") -> Fields:
    """The keys of documents, where the settings do not name others."""
    text = tuple((config.text or "title+content").split("+"))
    return Fields(text, config.labels or labels, config.id or "uid", require_id=config.id is not None)
