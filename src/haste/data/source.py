"""A data set as it lies on the disk: what every reader of a format gives to those who use it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

SPLITS = ("train", "dev", "test")
Kind = Literal["text", "sparse", "dense"]


class DataError(ValueError):
    """A file of documents that cannot be used; the message starts with "path:line: ", or "path: "."""


Problem = Callable[[DataError], None]
"""Takes what is wrong with a line; returns to go on with the next one, raises to stop."""


def raise_problem(error: DataError) -> None:
    """The Problem of those who want nothing that is wrong: raises it."""
    raise error


@dataclass(slots=True)  # not frozen: that would make reading a fifth slower
class Record:
    """One document as it stands in its file.

    id: its own, or its line's (row's) number, from 1
    text: "" in a source of features
    labels: names (str) in a source whose num_labels is None, else numbers (int) below it; repeats are kept
    columns, values: features of a sparse source: int64 below num_features, float32
    dense: features of a dense source: (num_features,) float32
    line: where it stands, for messages; from 1
    """

    id: str
    text: str = ""
    labels: tuple[Any, ...] = ()
    columns: np.ndarray | None = None
    values: np.ndarray | None = None
    dense: np.ndarray | None = None
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class LabelRecord:
    """One label that a data set describes: its name and, where there is one, its text.

    content: more of the text, which is read with it but not shown with predictions
    """

    name: str
    text: str = ""
    content: str = ""


class Source(ABC):
    """A data set in one of the formats; every iterator reads its file from the beginning.

    format: name of the format, as in data.format
    reason: why it was taken for that, one sentence that names the files that decided
    path: as given by the user
    kind: text, or given features, sparse or dense
    splits: those that exist, in the order of SPLITS; never empty
    num_features: columns of given features, None for text
    num_labels: labels where documents name them by number, None where they name them by name
    """

    format: str
    reason: str
    path: Path
    kind: Kind
    splits: tuple[str, ...]
    num_features: int | None = None
    num_labels: int | None = None

    @abstractmethod
    def files(self) -> dict[str, tuple[Path, ...]]:
        """Every file that is read: split -> its files; "labels" -> those that describe labels, if any."""

    @abstractmethod
    def documents(self, split: str, problem: Problem = raise_problem) -> Iterator[Record]:
        """Documents of a split, in order, one at a time; what is wrong goes to `problem` with file and line."""

    def labels(self, problem: Problem = raise_problem) -> Iterator[LabelRecord]:
        """Labels described by the data set. By number where num_labels is set; else some of them, by name."""
        return iter(())

    def filter_pairs(self, split: str, problem: Problem = raise_problem) -> Iterator[tuple[int, int]]:
        """(document's row from 0, label's number) pairs that are not to be predicted."""
        return iter(())
