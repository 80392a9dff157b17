"""What is counted of a split while its documents go by, none of which is kept."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import numpy as np

from haste.data.source import Kind, Record

_EXAMPLES = 3  # pairs of equal documents that are kept
_SEPARATORS = "|;,\t"
_TOGETHER = 1 << 14  # labels counted together


@dataclass(frozen=True)
class Spread:
    """Whole numbers in short: the smallest, the median, the mean, one that 95 % do not exceed, the largest."""

    least: int
    median: int
    mean: float
    p95: int
    most: int

    @classmethod
    def of(cls, counts: Counter[int]) -> "Spread | None":
        """counts: number -> how often. None of nothing."""
        if not counts:
            return None
        numbers = np.array(sorted(counts), np.int64)
        times = np.array([counts[number] for number in numbers.tolist()], np.int64)
        upto, total = np.cumsum(times), int(times.sum())
        median, p95 = (int(numbers[np.searchsorted(upto, part * total)]) for part in (0.5, 0.95))
        return cls(int(numbers[0]), median, float(numbers @ times) / total, p95, int(numbers[-1]))


@dataclass(frozen=True)
class Same:
    """Documents equal to others in text, or in given features: how many, and the lines of the first few."""

    documents: int = 0
    lines: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class SplitReport:
    """One split.

    documents: that can be read
    labels, pairs: different labels, and pairs of document and label
    without_labels, empty: documents without a label; without a text, or with features that are all zero
    repeated_labels, repeated_ids: documents that name a label twice; that have an earlier document's id
    repeated: documents equal to an earlier one of the split
    unseen_labels, unseen_pairs: labels that no training document has, and their pairs: no prediction can hit them
    filter_pairs: that are not to be predicted
    labels_per_document, words, characters, features: None where there is nothing to count; features are not zero
    """

    documents: int
    labels: int
    pairs: int
    without_labels: int
    empty: int
    repeated_labels: int
    repeated_ids: int
    repeated: Same
    unseen_labels: int
    unseen_pairs: int
    filter_pairs: int
    labels_per_document: Spread | None
    words: Spread | None
    characters: Spread | None
    features: Spread | None


class LabelCounts:
    """Every label met, and its documents in each split; the rest may be asked for when all splits are counted."""

    def __init__(self) -> None:
        self._in_split: dict[str, Counter[str | int]] = {}

    def counter(self, split: str) -> Callable[[Iterable[str | int]], None]:
        """Takes labels, names or numbers, of a split's documents."""
        return self._in_split.setdefault(split, Counter()).update

    @cached_property
    def numbers(self) -> dict[str | int, int]:
        """The place of every label that was met in what `counts` returns; a label's number is its own place."""
        met = dict.fromkeys(chain.from_iterable(self._in_split.values()))
        return {label: label if isinstance(label, int) else place for place, label in enumerate(met)}

    def counts(self, *splits: str) -> np.ndarray:
        """Documents of each label in some splits, or in all: int64."""
        total = np.zeros(max(self.numbers.values(), default=-1) + 1, np.int64)
        for name in splits or self._in_split:
            for label, count in self._in_split.get(name, Counter()).items():
                total[self.numbers[label]] += count
        return total

    def look_alike(self) -> int:
        """Names that are another one but for case and blanks."""
        names = [label for label in self.numbers if isinstance(label, str)]
        return len(names) - len({" ".join(name.casefold().split()) for name in names})

    def with_separator(self, split: str) -> int:
        """Pairs of a document and a name that holds what may separate names."""
        pairs = self._in_split[split].items()
        return sum(n for name, n in pairs if isinstance(name, str) and any(mark in name for mark in _SEPARATORS))


class Tally:
    """What is counted of one split while its documents go by."""

    def __init__(self, name: str, kind: Kind, labels: LabelCounts) -> None:
        self.name, self.kind, self.labels, self.count = name, kind, labels, labels.counter(name)
        self.documents = self.repeated_labels = self.empty = self.filter_pairs = 0
        self._met: list[str | int] = []
        self.per_document: Counter[int] = Counter()
        self.words: Counter[int] = Counter()
        self.characters: Counter[int] = Counter()
        self.features: Counter[int] = Counter()
        self.contents, self.ids, self.lines = array("q"), array("q"), array("I")

    def add(self, record: Record) -> None:
        """Count one document."""
        self.documents += 1
        distinct = set(record.labels)
        self.per_document[len(distinct)] += 1
        self.repeated_labels += len(distinct) < len(record.labels)
        self._met += distinct
        if len(self._met) > _TOGETHER:
            self.finish()
        self.ids.append(hash(record.id))
        content = self._measure(record)
        if content:
            self.contents.append(hash(content))
            self.lines.append(record.line)
        else:
            self.empty += 1

    def finish(self) -> None:
        """Count what is still to be counted; call after the last document."""
        self.count(self._met)
        self._met.clear()

    def _measure(self, record: Record) -> bytes | str:
        """Count lengths; returns what documents are compared by, nothing for an empty one."""
        if self.kind == "text":
            text = record.text.strip()
            self.words[len(text.split())] += 1
            self.characters[len(record.text)] += 1
            return text
        if self.kind == "dense":
            assert record.dense is not None
            self.features[int(np.count_nonzero(record.dense))] += 1
            return record.dense.tobytes() if record.dense.any() else b""
        assert record.columns is not None
        assert record.values is not None
        order = np.argsort(record.columns, kind="stable")
        order = order[record.values[order] != 0]
        self.features[len(order)] += 1
        return record.columns[order].tobytes() + record.values[order].tobytes()

    def report(self, train: np.ndarray) -> SplitReport:
        """What was counted; train: documents of each label in train."""
        counts = self.labels.counts(self.name)
        unseen = counts[(train == 0) & (counts > 0)]
        ids = np.asarray(self.ids, np.int64)
        return SplitReport(
            documents=self.documents,
            labels=int((counts > 0).sum()),
            pairs=int(counts.sum()),
            without_labels=self.per_document[0],
            empty=self.empty,
            repeated_labels=self.repeated_labels,
            repeated_ids=len(ids) - len(np.unique(ids)),
            repeated=self._repeated(),
            unseen_labels=len(unseen),
            unseen_pairs=int(unseen.sum()),
            filter_pairs=self.filter_pairs,
            labels_per_document=Spread.of(self.per_document),
            words=Spread.of(self.words),
            characters=Spread.of(self.characters),
            features=Spread.of(self.features),
        )

    def shared(self, other: "Tally") -> Same:
        """Documents of another split that are equal to one of this."""
        mine, first = np.unique(np.asarray(self.contents, np.int64), return_index=True)
        theirs = np.asarray(other.contents, np.int64)
        if not len(mine):
            return Same()
        place = np.minimum(np.searchsorted(mine, theirs), len(mine) - 1)
        rows = np.flatnonzero(mine[place] == theirs)
        lines = [(self.lines[first[place[row]]], other.lines[row]) for row in rows[:_EXAMPLES]]
        return Same(len(rows), lines)

    def _repeated(self) -> Same:
        contents = np.asarray(self.contents, np.int64)
        distinct, first, place = np.unique(contents, return_index=True, return_inverse=True)
        later = np.flatnonzero(first[place] != np.arange(len(contents)))
        lines = [(self.lines[first[place[row]]], self.lines[row]) for row in later[:_EXAMPLES]]
        return Same(len(contents) - len(distinct), lines)
