"""What the formats with one file for each split, a row for each document and named fields have in common."""

from abc import abstractmethod
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from haste.data.formats._fields import SAMPLE, Fields
from haste.data.formats._files import Files
from haste.data.formats._json import described_labels
from haste.data.source import LabelRecord, Problem, Record, Source, raise_problem


class Table(Source):
    """One file for each split, and perhaps labels.jsonl, which describes labels."""

    kind = "text"

    def __init__(self, files: Files, splits: dict[str, Path], fields: Fields) -> None:
        """splits: their files; fields: without a separator where it is to be found"""
        self.path = files.path
        self.splits = tuple(splits)
        self.reason = files.holds(splits.values())
        self._files = splits
        self._labels = files.find("labels.jsonl")
        self._fields = fields
        # Where labels may be missing altogether, the search for one ends somewhere.
        most = None if fields.require_labels else SAMPLE
        values = chain.from_iterable(islice(self._sample(path), most) for path in splits.values())
        sample = islice(filter(_is_filled, values), SAMPLE)
        strings = [value for value in sample if isinstance(value, str)]
        if strings:
            self._fields = fields.with_separator(strings)
            self.reason += f"; {self._fields.said()}"

    def files(self) -> dict[str, tuple[Path, ...]]:
        """See Source."""
        files = self._files | ({"labels": self._labels} if self._labels else {})
        return {name: (path,) for name, path in files.items()}

    def documents(self, split: str, problem: Problem = raise_problem) -> Iterator[Record]:
        """See Source."""
        return self._read(self._files[split], problem)

    def labels(self, problem: Problem = raise_problem) -> Iterator[LabelRecord]:
        """See Source."""
        return described_labels(self._labels, problem) if self._labels else iter(())

    @abstractmethod
    def _sample(self, path: Path) -> Iterator[object]:
        """The labels of documents as they stand there; what is wrong is left out."""

    @abstractmethod
    def _read(self, path: Path, problem: Problem) -> Iterator[Record]:
        """The documents of a file."""


def _is_filled(value: object) -> bool:
    """Whether labels tell how labels are separated."""
    return bool(value.strip() if isinstance(value, str) else value)
