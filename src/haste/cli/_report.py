"""The report of a check as text and as JSON."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import dropwhile
from typing import Any

from haste.data.check import Problems, Report, Same, SplitReport

_WIDTH = 12  # of a column


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON holds it: nested dictionaries, lists, text and numbers."""
    shared = [{"first": a, "second": b, **asdict(same)} for (a, b), same in report.shared.items()]
    return {**asdict(report), "shared": shared}


def as_text(report: Report) -> str:
    """The report for people: what it is, its splits side by side, its labels, what is odd, what is wrong."""
    what = {"text": "texts", "sparse": "given features, sparse", "dense": "given features, dense"}[report.kind]
    lines = [
        report.path,
        f"{report.format}: {report.reason}",
        what + (f", {report.num_features:,} columns" if report.num_features else ""),
    ]
    if any(split.documents for split in report.splits.values()):
        lines += ["", *_splits(report), "", *_labels(report)]
        remarks = list(_remarks(report))
        if remarks:
            lines += ["", "Worth knowing:", *(f"- {remark}" for remark in remarks)]
    return "\n".join([*lines, "", problems_text(report.problems)])


def problems_text(problems: Problems) -> str:
    """Every problem that was kept, and how many more there are of each kind."""
    if not problems.total:
        return "No problems."
    lines = [f"{_many(problems.total, 'problem')}:"]
    for kind, count in problems.counts.items():
        shown = problems.shown[kind]
        lines += shown
        if count > len(shown):
            lines.append(f"... and {count - len(shown):,} more like this")
    return "\n".join(lines)


def _splits(report: Report) -> Iterator[str]:
    """The numbers of each split, one column for each."""
    splits = list(report.splits.values())

    def row(name: str, value: Callable[[SplitReport], float], digits: int = 0) -> Iterator[str]:
        values = [value(split) for split in splits]
        if any(values):
            yield f"{name:<32}" + "".join(f"{number:>{_WIDTH},.{digits}f}" for number in values)

    yield " " * 32 + "".join(f"{name:>{_WIDTH}}" for name in report.splits)
    yield from row("documents", lambda split: split.documents)
    yield from row("labels", lambda split: split.labels)
    for name, unit in (
        ("labels_per_document", "labels"),
        ("words", "words"),
        ("characters", "characters"),
        ("features", "values not zero"),
    ):
        spreads = {id(split): getattr(split, name) for split in splits}
        for what, digits in (("mean", 2), ("median", 0), ("most", 0)):
            head = f"{unit} each, {what}"
            yield from row(head, lambda split, s=spreads, w=what: getattr(s[id(split)], w, 0), digits)  # type: ignore[misc]
    yield from row("without labels", lambda split: split.without_labels)
    yield from row("empty", lambda split: split.empty)
    yield from row("equal to an earlier one", lambda split: split.repeated.documents)
    yield from row("with an earlier one's id", lambda split: split.repeated_ids)
    yield from row("naming a label twice", lambda split: split.repeated_labels)
    yield from row("labels not in train", lambda split: split.unseen_labels)
    yield from row("pairs of labels not in train", lambda split: split.unseen_pairs)
    yield from row("pairs never to be predicted", lambda split: split.filter_pairs)


def _labels(report: Report) -> Iterator[str]:
    pairs = sum(bucket.pairs for bucket in report.histogram)
    yield f"{_many(report.labels, 'label')} in all, on {_many(pairs, 'pair')} of document and label"
    if report.label_texts or report.described_unused:
        yield (
            f"{report.described:,} described, {report.label_texts:,} of them with a text, "
            f"{report.described_unused:,} without a document"
        )
    yield f"{'documents of a label':<32}{'labels':>{_WIDTH}}{'pairs':>{_WIDTH}}"
    for bucket in dropwhile(lambda bucket: not bucket.labels, report.histogram):
        span = f"{bucket.low:,}" + (f" to {bucket.high:,}" if bucket.high > bucket.low else "")
        yield f"{span:<32}{bucket.labels:>{_WIDTH},}{bucket.pairs:>{_WIDTH},}"


def _remarks(report: Report) -> Iterator[str]:
    """What is odd without being wrong."""
    if report.unsplit:
        yield (
            f"{_many(report.unsplit, 'document')} with a single label that holds one of | ; , or a tab, "
            "and none with more than one: if it is a list, set data.separator"
        )
    if report.look_alike:
        yield f"{_many(report.look_alike, 'label')} differing from another one only in case or blanks"
    for name, split in report.splits.items():
        if split.repeated.documents:
            count = _many(split.repeated.documents, "document")
            yield f"{name}: {count} equal to an earlier one ({_lines(split.repeated, name, name)})"
        if split.unseen_pairs:
            part = 100 * split.unseen_pairs / split.pairs
            yield (
                f"{name}: {_many(split.unseen_labels, 'label')} without a document in train, {part:.1f} % of its "
                "pairs; no prediction can hit them"
            )
    for (first, second), same in report.shared.items():
        yield f"{second}: {_many(same.documents, 'document')} equal to one of {first} ({_lines(same, first, second)})"
    if list(report.splits) == ["train"]:
        yield "there is no test split: nothing tells how good a model is but the dev documents drawn from train"


def _lines(same: Same, first: str, second: str) -> str:
    more = ", ..." if same.documents > len(same.lines) else ""
    return ", ".join(f"{second} {b} = {first} {a}" for a, b in same.lines) + more


def _many(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"
