"""What a data set holds and what is wrong with it: one pass, without keeping its documents."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, pairwise
from typing import TypeVar

import numpy as np

from haste.data._tally import LabelCounts, Same, SplitReport, Tally
from haste.data.source import DataError, Source

SHOWN = 20  # problems of a kind that are kept, beside their count
_KINDS = 100  # kinds of problems told apart
_EVERY = 5_000  # documents between two calls of `tick`
# What differs between two problems of a kind: quoted values, remarks in brackets, numbers.
_details = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\([^)]*\)|0x[0-9a-f]+|\d+")

_Item = TypeVar("_Item")


@dataclass
class Problems:
    """What is wrong, by kind: all of it counted, the first `SHOWN` of each kind kept. Takes the place of a Problem.

    total: of all kinds
    counts: kind -> how many
    shown: kind -> the first messages
    """

    total: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    shown: dict[str, list[str]] = field(default_factory=dict)

    def __call__(self, error: DataError) -> None:
        message = str(error)
        kind = _details.sub("_", re.sub(r"^.*?:(\d+:)? ", "", message))
        if kind not in self.counts and len(self.counts) >= _KINDS:
            kind = "other"
        self.total += 1
        self.counts[kind] = self.counts.get(kind, 0) + 1
        shown = self.shown.setdefault(kind, [])
        if len(shown) < SHOWN:
            shown.append(message)


@dataclass(frozen=True)
class Bucket:
    """Labels with `low` to `high` documents in all splits together, and the pairs they make."""

    low: int
    high: int
    labels: int
    pairs: int


@dataclass(frozen=True)
class Report:
    """A whole data set.

    format, reason, kind, num_features: as in Source
    files: name of a split, or "labels" -> paths
    labels: different ones in all documents
    described, described_unused: labels that the data set describes; those of them that no document has
    label_texts: described labels with a text of their own
    look_alike: labels that are another one but for case and blanks
    unsplit: documents with a single label that holds a separator, where no document has more than one
    histogram: labels by documents
    shared: (a, b) -> documents of b equal to one of a; lines of a, then of b
    problems: that a run would stop at, or that leave it nothing to learn
    """

    path: str
    format: str
    reason: str
    kind: str
    num_features: int | None
    files: dict[str, list[str]]
    splits: dict[str, SplitReport]
    labels: int
    described: int
    described_unused: int
    label_texts: int
    look_alike: int
    unsplit: int
    histogram: list[Bucket]
    shared: dict[tuple[str, str], Same]
    problems: Problems


def check(source: Source, *, tick: Callable[[str, int], None] = lambda split, documents: None) -> Report:
    """Read all of a data set and report what is there.

    A document costs 20 bytes of memory: a 64-bit digest of its content, another of its id, and its line. Two
    documents count as equal when the digests are.
    tick: called with the split's name and the documents read so far, now and then
    """
    problems = Problems()
    labels = LabelCounts()
    tallies = {name: Tally(name, source.kind, labels) for name in source.splits}
    for name, tally in tallies.items():
        before = problems.total
        for record in _to_the_end(partial(source.documents, name, problems), problems):
            tally.add(record)
            if tally.documents % _EVERY == 0:
                tick(name, tally.documents)
        tally.finish()
        tally.filter_pairs = sum(1 for _ in _to_the_end(partial(source.filter_pairs, name, problems), problems))
        if not tally.documents and problems.total == before:
            problems(DataError(f"{_first_file(source, name)}: holds no documents; remove the file or fill it"))
    counts, train = labels.counts(), labels.counts("train")
    if "train" in tallies and tallies["train"].documents and not train.any():
        problems(DataError(f"{_first_file(source, 'train')}: no document has a label; check data.labels"))
    described = used = with_text = 0
    for number, label in enumerate(_to_the_end(partial(source.labels, problems), problems)):
        described += 1
        with_text += bool(label.text)
        met = labels.numbers.get(label.name) if source.num_labels is None else number
        used += int(met is not None and met < len(counts) and counts[met] > 0)
    several = any(max(tally.per_document, default=0) > 1 for tally in tallies.values())
    return Report(
        path=str(source.path),
        format=source.format,
        reason=source.reason,
        kind=source.kind,
        num_features=source.num_features,
        files={name: [str(path) for path in paths] for name, paths in source.files().items()},
        splits={name: tally.report(train) for name, tally in tallies.items()},
        labels=int((counts > 0).sum()),
        described=described,
        described_unused=described - used,
        label_texts=with_text,
        look_alike=labels.look_alike(),
        unsplit=0 if several else sum(map(labels.with_separator, tallies)),
        histogram=_histogram(counts),
        shared={
            (first, second): same
            for first, second in combinations(tallies, 2)
            if (same := tallies[first].shared(tallies[second])).documents
        },
        problems=problems,
    )


def _to_the_end(start: Callable[[], Iterator[_Item]], problems: Problems) -> Iterator[_Item]:
    """The items up to an error that the reader cannot go on after, which becomes the last problem."""
    try:
        yield from start()
    except DataError as error:
        problems(error)


def _first_file(source: Source, split: str) -> str:
    return str(next(iter(source.files().get(split, ())), source.path))


def _histogram(counts: np.ndarray) -> list[Bucket]:
    """Labels by documents, in the steps 1, 2-4, 5-9, 10-19, 20-49, 50-99, ..."""
    most = int(counts.max(initial=0))
    lows = [1]
    while lows[-1] <= most:
        lows.append(lows[-1] * 5 // 2 if str(lows[-1])[0] == "2" else 2 * lows[-1])
    buckets = []
    for low, following in pairwise(lows):
        inside = counts[(counts >= low) & (counts < following)]
        buckets.append(Bucket(low, following - 1, len(inside), int(inside.sum())))
    return buckets
