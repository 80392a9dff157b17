"""`check` on a source in memory: every count against documents written by hand, or against plain Python."""

import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haste.data.check import SHOWN, Problems, Report, check
from haste.data.source import DataError, LabelRecord, Problem, Record, Source, raise_problem


class Memory(Source):
    """A source whose documents are lists of records, or of errors in their place."""

    format, reason, path = "memory", "made by a test", Path("data")

    def __init__(
        self, splits: dict[str, list[Any]], kind: Any = "text", labels: list[Any] | None = None, **more: Any
    ) -> None:
        self._documents, self.kind, self._labels = splits, kind, labels or []
        self.splits = tuple(splits)
        self.num_labels = more.get("num_labels")
        self.num_features = more.get("num_features")
        self._pairs = more.get("pairs", {})

    def files(self) -> dict[str, tuple[Path, ...]]:
        return {name: (Path(f"{name}.jsonl"),) for name in self.splits}

    def documents(self, split: str, problem: Problem = raise_problem) -> Iterator[Record]:
        return _given(self._documents[split], problem)

    def labels(self, problem: Problem = raise_problem) -> Iterator[LabelRecord]:
        return _given(self._labels, problem)

    def filter_pairs(self, split: str, problem: Problem = raise_problem) -> Iterator[tuple[int, int]]:
        return iter(self._pairs.get(split, ()))


class Fatal(DataError):
    """An error that its reader raises, having no next line."""


def _given(items: list[Any], problem: Problem) -> Iterator[Any]:
    for item in items:
        if isinstance(item, Fatal):
            raise item
        if isinstance(item, DataError):
            problem(item)
        else:
            yield item


def documents(*rows: tuple[str, str]) -> list[Record]:
    return [
        Record(str(line), text, tuple(label for label in labels.split("|") if label), line=line)
        for line, (text, labels) in enumerate(rows, 1)
    ]


@pytest.fixture
def report() -> Report:
    train = documents(
        ("one two three", "a|b"),
        ("four five", "a"),
        ("  one two three", "c"),
        ("", "a"),
        ("six", ""),
        ("seven eight", "b|b"),
    )
    test = documents(("four five", "a|d"), ("nine", "d"), ("six", "B"), ("nine", "a"))
    return check(Memory({"train": train, "test": test}, labels=[LabelRecord("a", "first"), LabelRecord("z")]))


def test_counts_of_splits(report: Report) -> None:
    train, test = report.splits["train"], report.splits["test"]
    assert (train.documents, train.labels, train.pairs) == (6, 3, 6)
    assert (test.documents, test.labels, test.pairs) == (4, 3, 5)
    assert (train.without_labels, test.without_labels) == (1, 0)
    assert (train.empty, test.empty) == (1, 0)
    assert (train.repeated_labels, test.repeated_labels) == (1, 0)
    assert (train.repeated_ids, test.repeated_ids) == (0, 0)
    assert train.words is not None
    assert train.characters is not None
    assert (train.words.least, train.words.median, train.words.most) == (0, 2, 3)
    assert (train.characters.least, train.characters.most) == (0, 15)
    assert train.features is None
    per_document = train.labels_per_document
    assert per_document is not None
    assert (per_document.least, per_document.median, per_document.mean, per_document.most) == (0, 1, 1.0, 2)


def test_equal_documents_within_and_between_splits(report: Report) -> None:
    assert report.splits["train"].repeated.documents == 1
    assert report.splits["train"].repeated.lines == [(1, 3)]
    assert report.splits["test"].repeated.lines == [(2, 4)]
    assert report.shared.keys() == {("train", "test")}
    assert report.shared["train", "test"].documents == 2
    assert report.shared["train", "test"].lines == [(2, 1), (5, 3)]


def test_labels_of_the_whole(report: Report) -> None:
    assert report.labels == 5
    assert (report.splits["test"].unseen_labels, report.splits["test"].unseen_pairs) == (2, 3)
    assert report.splits["train"].unseen_labels == 0
    assert (report.described, report.described_unused, report.label_texts) == (2, 1, 1)
    assert report.look_alike == 1
    assert [(b.low, b.high, b.labels, b.pairs) for b in report.histogram] == [(1, 1, 2, 2), (2, 4, 2, 4), (5, 9, 1, 5)]
    assert report.problems.total == 0


def test_problems_are_counted_by_kind_and_the_first_kept() -> None:
    wrong: list[Any] = [DataError(f"x/train.csv:{n}: no key 'text{n}' (found: a{n}, b); set it") for n in range(50)]
    wrong += [DataError("x/train.csv:99: byte 0xe9 at column 7 is not UTF-8"), *documents(("a", "b"))]
    wrong += [DataError("x/train.csv:101: byte 0x00 at column 1 is not UTF-8")]
    report = check(Memory({"train": wrong}))
    assert report.splits["train"].documents == 1
    assert report.problems.total == 52
    assert list(report.problems.counts.values()) == [50, 2]
    first, second = report.problems.shown.values()
    assert first == [str(error) for error in wrong[:SHOWN]]
    assert [message.split(":")[1] for message in second] == ["99", "101"]


def test_kinds_of_problems_are_bounded() -> None:
    problems = Problems()
    for number in range(1000):
        problems(DataError(f"a:{number}: " + "x" * number))
    assert problems.total == sum(problems.counts.values()) == 1000
    assert len(problems.counts) <= 101
    assert problems.counts["other"] == 900


def test_an_error_that_ends_a_split_is_a_problem_and_the_rest_is_read() -> None:
    train = [*documents(("a", "x")), Fatal("train.jsonl:2: the gzip file is cut short; get it again")]
    report = check(Memory({"train": train, "test": documents(("b", "x"))}))
    assert report.problems.total == 1
    assert [split.documents for split in report.splits.values()] == [1, 1]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": []}, "train.jsonl: holds no documents; remove the file or fill it"),
        ({"train": documents(("a", "x")), "dev": []}, "dev.jsonl: holds no documents; remove the file or fill it"),
        ({"train": documents(("a", ""))}, "train.jsonl: no document has a label; check data.labels"),
    ],
)
def test_what_leaves_nothing_to_learn_is_a_problem(splits: dict[str, Any], message: str) -> None:
    assert [m for shown in check(Memory(splits)).problems.shown.values() for m in shown] == [message]


def test_documents_that_are_all_wrong_are_not_missing_too() -> None:
    assert check(Memory({"train": [DataError("train.jsonl:1: not valid JSON")]})).problems.total == 1


def test_labels_that_seem_to_be_lists() -> None:
    rows = documents(*((f"text {n}", "x;y") for n in range(4)), ("text", "z"))
    assert check(Memory({"train": rows})).unsplit == 4
    rows += documents(("more", "x|z"))
    assert check(Memory({"train": rows})).unsplit == 0


def test_repeated_ids_and_filter_pairs() -> None:
    rows = [Record(name, name, (0,), line=n) for n, name in enumerate("abab")]
    source = Memory({"train": rows}, num_labels=2, pairs={"train": [(0, 1), (2, 1)]})
    split = check(source).splits["train"]
    assert (split.repeated_ids, split.filter_pairs) == (2, 2)


def sparse(number: int, columns: list[int], values: list[float], labels: tuple[int, ...] = (0,)) -> Record:
    return Record(
        str(number), labels=labels, columns=np.array(columns), values=np.array(values, np.float32), line=number
    )


def test_given_features_are_compared_by_value() -> None:
    train = [sparse(1, [3, 1], [1, 2]), sparse(2, [1, 3], [2, 1]), sparse(3, [], []), sparse(4, [7], [0])]
    test = [sparse(5, [1, 3, 5], [2, 1, 0], (2,))]
    report = check(Memory({"train": train, "test": test}, "sparse", [LabelRecord(x) for x in "abcd"], num_labels=4))
    split = report.splits["train"]
    assert (split.repeated.documents, split.empty) == (1, 2)
    assert report.shared["train", "test"].lines == [(1, 5)]
    assert split.words is None
    assert split.features is not None
    assert split.features.most == 2
    assert (report.splits["test"].unseen_labels, report.described_unused) == (1, 2)
    dense = [Record(str(n), labels=(0,), dense=np.array(row, np.float32), line=n) for n, row in enumerate([[0, 1]] * 2)]
    dense.append(Record("2", labels=(1,), dense=np.zeros(2, np.float32), line=2))
    split = check(Memory({"train": dense}, "dense", num_labels=2)).splits["train"]
    assert (split.repeated.documents, split.empty) == (1, 1)


def test_random_documents_are_counted_as_plain_python_counts() -> None:
    generator = random.Random(5)
    rows = [
        (
            " ".join(generator.choice("abcd") for _ in range(generator.randrange(4))),
            "|".join(str(generator.randrange(40) ** 2) for _ in range(generator.randrange(4))),
        )
        for _ in range(3000)
    ]
    report = check(Memory({"train": documents(*rows[:2000]), "dev": documents(*rows[2000:])}))
    labels = [{label for label in row[1].split("|") if label} for row in rows]
    counted = Counter(label for row in labels for label in row)
    train = Counter(label for row in labels[:2000] for label in row)
    dev = Counter(label for row in labels[2000:] for label in row)
    assert report.labels == len(counted)
    assert report.splits["train"].pairs == sum(train.values())
    assert report.splits["dev"].unseen_labels == len(dev.keys() - train.keys())
    for bucket in report.histogram:
        inside = [count for count in counted.values() if bucket.low <= count <= bucket.high]
        assert (bucket.labels, bucket.pairs) == (len(inside), sum(inside))
    assert sum(bucket.labels for bucket in report.histogram) == len(counted)
    texts = [row[0] for row in rows]
    filled = [text for text in texts[:2000] if text]
    assert report.splits["train"].repeated.documents == len(filled) - len(set(filled))
    assert report.shared["train", "dev"].documents == sum(text in set(filled) for text in texts[2000:])
    words = sorted(len(text.split()) for text in texts[:2000])
    spread = report.splits["train"].words
    assert spread is not None
    assert (spread.median, spread.p95, spread.most) == (words[999], words[1899], words[-1])
    assert spread.mean == pytest.approx(sum(words) / 2000)


def test_memory_is_a_few_bytes_a_document() -> None:
    class Endless(Memory):
        def documents(self, split: str, problem: Problem = raise_problem) -> Iterator[Record]:
            return (Record(str(n), f"{n} " * 100, (n % 7,), line=n) for n in range(20_000))

    tracemalloc.start()
    try:
        check(Endless({"train": []}, num_labels=7))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20_000 * 100


def test_progress_is_told() -> None:
    told: list[tuple[str, int]] = []
    rows = documents(*[("a", "b")] * 12_000)
    check(Memory({"train": rows}), tick=lambda split, read: told.append((split, read)))
    assert told == [("train", 5000), ("train", 10000)]
