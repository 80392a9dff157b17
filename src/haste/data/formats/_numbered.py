"""What the formats whose labels have numbers share: lists of label names, and filter files."""

import logging
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path

from haste.data.formats._files import SPELLINGS, Files
from haste.data.formats._lines import Noted, at, excerpt, lines
from haste.data.source import LabelRecord, Problem, Source, raise_problem

_logger = logging.getLogger(__name__)
NAME_LISTS = ("Y.txt", "Yf.txt", "output-items.txt")


class Numbered(Source):
    """A data set whose labels have numbers, perhaps with a list of names and with filter files."""

    def __init__(self, files: Files, splits: dict[str, tuple[Path, ...]], names: Path | None) -> None:
        """splits: their files; names: the labels' names, one a line"""
        self.path = files.path
        self.splits = tuple(splits)
        self.reason = files.holds(path for paths in splits.values() for path in paths)
        self._files = splits
        self._names = names
        self._filters = {split: path for split in splits if (path := _filter_file(files, split))}

    def files(self) -> dict[str, tuple[Path, ...]]:
        """See Source."""
        files = {split: (*paths, *filter(None, [self._filters.get(split)])) for split, paths in self._files.items()}
        return files | ({"labels": (self._names,)} if self._names else {})

    def labels(self, problem: Problem = raise_problem) -> Iterator[LabelRecord]:
        """See Source. A label without a name is called by its number."""
        if self.num_labels is None:
            return iter(())
        if self._names is None:
            return (LabelRecord(str(number)) for number in range(self.num_labels))
        return read_names(self._names, self.num_labels, problem)

    def filter_pairs(self, split: str, problem: Problem = raise_problem) -> Iterator[tuple[int, int]]:
        """See Source."""
        path = self._filters.get(split)
        if path is None or self.num_labels is None:
            return iter(())
        return _read_pairs(path, self._num_rows(split), self.num_labels, problem)

    @abstractmethod
    def _num_rows(self, split: str) -> int:
        """Documents of a split."""


def _filter_file(files: Files, split: str) -> Path | None:
    names = (
        pattern.format(word)
        for pattern in ("filter_labels_{}.txt", "{}_filter_labels.txt")
        for word in SPELLINGS[split]
    )
    return files.find(*names)


def _read_pairs(path: Path, num_rows: int, num_labels: int, problem: Problem) -> Iterator[tuple[int, int]]:
    for number, raw in lines(path, problem):
        words = raw.split()
        if not words:
            continue
        if len(words) != 2 or not all(word.removeprefix(b"-").isdigit() for word in words):
            shown = excerpt(raw.decode(errors="replace"))
            problem(at(path, number, f"must be a document's and a label's number, as in '3 17' (found: {shown})"))
            continue
        row, label = map(int, words)
        if not 0 <= row < num_rows:
            problem(at(path, number, f"document {row} must be in [0, {num_rows}); count from 0"))
        elif not 0 <= label < num_labels:
            problem(at(path, number, f"label {label} must be in [0, {num_labels}); count from 0"))
        else:
            yield row, label


def read_names(path: Path, count: int, problem: Problem) -> Iterator[LabelRecord]:
    """The names of `count` labels, one a line; bytes that are not UTF-8 are replaced, and said in the log.

    Tells of fewer or more lines.
    """
    unique = UniqueNames(path)
    noted = Noted(problem)
    number, replaced = 0, 0
    for number, raw in lines(path, noted):
        if number > count:
            if not raw.strip():
                continue
            noted(at(path, number, f"is more than the {count:,} labels of the data set; remove it"))
            break
        name = raw.decode(errors="replace").strip()
        replaced += "\ufffd" in name and b"\xef\xbf\xbd" not in raw
        yield LabelRecord(unique.add(number - 1, name))
    if replaced:
        _logger.warning("%s: %s names are not UTF-8; their bytes became U+FFFD", path, f"{replaced:,}")
    unique.say()
    if number < count:
        if not noted.told:
            problem(
                at(path, number + 1, f"ends after {number:,} names, the data set has {count:,} labels; get it whole")
            )
        for missing in range(number, count):
            yield LabelRecord(unique.add(missing, ""))


class UniqueNames:
    """Names of labels by number: one that was there before, or is empty, is made another."""

    def __init__(self, path: Path) -> None:
        """path: where they stand"""
        self._path = path
        self._seen: set[str] = set()
        self._changed = 0

    def add(self, number: int, name: str) -> str:
        """The name, or `name #NUMBER` if it stands for another label already."""
        given = name
        while not name or name in self._seen:
            name = f"{name} #{number}".strip()
        self._changed += name != given
        self._seen.add(name)
        return name

    def say(self) -> None:
        """Write into the log how many were changed."""
        if self._changed:
            _logger.warning(
                "%s: %s names stand twice or are empty; they became 'name #NUMBER'", self._path, f"{self._changed:,}"
            )
