"""Writes a whole data set in any of the formats."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from haste.data.formats._atomic import whole_file
from haste.data.formats._fields import LIST, SAMPLE, SEPARATORS
from haste.data.formats._files import SPELLINGS
from haste.data.formats._json import json_line
from haste.data.formats._jsonl import write_jsonl
from haste.data.formats._write_features import write_bow, write_dense, write_sparse_array, write_sparse_text
from haste.data.formats._write_text import text_line, write_csv, write_lf, write_lines, write_parquet
from haste.data.source import DataError, LabelRecord, Record, Source

_logger = logging.getLogger(__name__)
_KINDS = {
    "jsonl": ("text",),
    "csv": ("text",),
    "parquet": ("text",),
    "lf": ("text",),
    "raw": ("text",),
    "npz": ("text", "sparse", "dense"),
    "split": ("sparse",),
    "bow": ("sparse",),
}
_BY_NAME = ("jsonl", "csv", "parquet")


def write(
    format: str, folder: str | Path, source: Source, *, packed: str = "", log: Callable[[str], None] = _logger.info
) -> list[Path]:
    """Write a data set into a folder, for `detect` to find; documents are streamed, twice.

    folder: is made; must be empty
    packed: .gz or .zst packs files of text, "" does not
    log: called with lines that tell what is written and what the format has no place for
    Returns: the files written, each of which is complete.
    Raises: DataError if the format cannot hold the documents or their labels, or the source is wrong.
    """
    folder = Path(folder)
    if format not in _KINDS:
        raise DataError(f"{folder}: format {format} cannot be written; choose one of {', '.join(_KINDS)}")
    if packed not in ("", ".gz", ".zst"):
        raise DataError(f"{folder}: packed ({packed}) must be .gz, .zst or empty")
    if source.kind not in _KINDS[format]:
        fitting = ", ".join(name for name, kinds in _KINDS.items() if source.kind in kinds)
        what = {"text": "texts", "sparse": "sparse features", "dense": "dense features"}[source.kind]
        raise DataError(f"{folder}: {format} cannot hold {what}; choose one of {fitting}")
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder}: must be empty or not there yet; choose another folder")
    survey = _survey(source)
    if format in _BY_NAME:
        _say_left_out(source, format, log)
    else:
        _check_names(folder, format, survey)
    folder.mkdir(parents=True, exist_ok=True)
    return list(_Writer(format, folder, source, survey, packed, log).files())


@dataclass
class _Survey:
    """What is known of a source after reading it once.

    counts: documents of each split
    names, texts, contents: of the labels, by number
    number: name -> number
    separator: with which csv can hold the labels, so that it is found when they are read
    own_ids: whether any document has an id that is not its number
    """

    counts: dict[str, int] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)
    number: dict[str, int] = field(default_factory=dict)
    separator: str = LIST
    own_ids: bool = False


def _survey(source: Source) -> _Survey:
    survey = _Survey()
    for label in source.labels():
        survey.names.append(label.name)
        survey.texts.append(label.text)
        survey.contents.append(label.content)
    known = set(survey.names)
    others: set[str] = set()
    labelled, several = 0, None
    for split in source.splits:
        number = 0
        for number, record in enumerate(source.documents(split), 1):
            if source.num_labels is None:
                others.update(name for name in record.labels if name not in known)
            labelled += bool(record.labels)
            if several is None and len(record.labels) > 1:
                several = labelled
            survey.own_ids |= record.id != str(number)
        survey.counts[split] = number
    survey.names += sorted(others)
    survey.texts += [""] * len(others)
    survey.contents += [""] * len(others)
    survey.number = {name: number for number, name in enumerate(survey.names)}
    plain = all(
        name == name.strip() and name[0] != "[" and not any(mark in name for mark in SEPARATORS)
        for name in known | others
    )
    # A reader looks at the first documents with labels: the mark must be there, or nowhere.
    if plain and (several is None or several <= SAMPLE):
        survey.separator = SEPARATORS[0]
    return survey


def _say_left_out(source: Source, format: str, log: Callable[[str], None]) -> None:
    for split in source.splits:
        count = sum(1 for _ in source.filter_pairs(split))
        if count:
            log(f"{split}: the {count:,} pairs of the filter are left out; {format} has no place for them, lf has")


def _check_names(folder: Path, format: str, survey: _Survey) -> None:
    for name in survey.names if format != "lf" else ():
        if name != name.strip() or "\n" in name or "\r" in name:
            raise DataError(
                f"{folder}: {format} cannot hold the label {name!r}, with a line break or blanks around it; choose lf"
            )


@dataclass(frozen=True)
class _Writer:
    format: str
    folder: Path
    source: Source
    survey: _Survey
    packed: str
    log: Callable[[str], None]

    def files(self) -> Iterator[Path]:
        """Write one file after the other."""
        for split, count in self.survey.counts.items():
            paths = self._paths(split)
            self._write(split, paths, count)
            self.log(f"{split}: {count:,} documents in {' and '.join(path.name for path in paths)}")
            yield from paths
            if self.format not in _BY_NAME:
                yield from self._filter(split)
        if self.format not in (*_BY_NAME, "lf") and self.survey.own_ids:
            self.log(f"ids are left out; {self.format} has no place for them, lf has")
        yield from self._labels()

    def _paths(self, split: str) -> list[Path]:
        short = SPELLINGS[split][1] if split != "dev" else split
        text = "txt" + self.packed
        features = {"text": text, "sparse": "npz", "dense": "npy"}[self.source.kind]
        names = {
            "jsonl": [f"{split}.jsonl{self.packed}"],
            "csv": [f"{split}.csv{self.packed}"],
            "parquet": [f"{split}.parquet"],
            "lf": [f"{short}.json{self.packed}"],
            "bow": [f"{split}.{text}"],
            "split": [f"{short}_X_Xf.{text}", f"{short}_X_Y.{text}"],
            "raw": [f"{short}_X.{text}", f"{short}_X_Y.{text}"],
            "npz": [f"X.{short}.{features}", f"Y.{short}.npz"],
        }
        return [self.folder / name for name in names[self.format]]

    def _write(self, split: str, paths: list[Path], count: int) -> None:
        width, num_labels = self.source.num_features or 0, len(self.survey.names)
        if self.format == "jsonl":
            write_jsonl(paths[0], self._named(split))
        elif self.format == "csv":
            write_csv(paths[0], self._named(split), self.survey.separator)
        elif self.format == "parquet":
            write_parquet(paths[0], self._named(split))
        elif self.format == "lf":
            write_lf(paths[0], self._numbered(split))
        elif self.format == "bow":
            write_bow(paths[0], self._numbered(split), (count, width, num_labels))
        else:
            self._write_pair(split, paths[0], count, width)
            rows = ((sorted(set(record.labels)), None) for record in self._numbered(split))
            write_labels = write_sparse_array if self.format == "npz" else write_sparse_text
            write_labels(paths[1], rows, (count, num_labels))

    def _write_pair(self, split: str, path: Path, count: int, width: int) -> None:
        documents = self.source.documents(split)
        if self.source.kind == "text":
            changed = write_lines(path, documents)
            if changed:
                self.log(f"{split}: line breaks in {changed:,} texts are blanks now")
        elif self.source.kind == "dense":
            write_dense(path, documents, (count, width))
        else:
            write_features = write_sparse_array if self.format == "npz" else write_sparse_text
            write_features(path, ((record.columns, record.values) for record in documents), (count, width))

    def _named(self, split: str) -> Iterator[Record]:
        """Documents with names as labels."""
        if self.source.num_labels is None:
            return self.source.documents(split)
        names = self.survey.names
        return (replace(r, labels=tuple(names[i] for i in r.labels)) for r in self.source.documents(split))

    def _numbered(self, split: str) -> Iterator[Record]:
        """Documents with numbers as labels."""
        if self.source.num_labels is not None:
            return self.source.documents(split)
        number = self.survey.number
        return (replace(r, labels=tuple(number[name] for name in r.labels)) for r in self.source.documents(split))

    def _filter(self, split: str) -> Iterator[Path]:
        pairs = self.source.filter_pairs(split)
        first = next(pairs, None)
        if first is None:
            return
        path = self.folder / f"filter_labels_{split}.txt"
        with whole_file(path) as stream:
            for row, label in (first, *pairs):
                stream.write(b"%d %d\n" % (row, label))
        yield path

    def _labels(self) -> Iterator[Path]:
        names, texts = self.survey.names, self.survey.texts
        lines: Iterator[bytes]
        if self.format in _BY_NAME:
            if next(self.source.labels(), None) is None:
                return
            path = self.folder / f"labels.jsonl{self.packed}"
            lines = map(_label_line, self.source.labels())
        elif self.format == "lf":
            path = self.folder / f"lbl.json{self.packed}"
            described = zip(names, texts, self.survey.contents, strict=True)
            lines = (json_line({"uid": n, "title": t, "content": c}) for n, t, c in described)
        else:
            if any(texts):
                self.log(f"texts of labels are left out; {self.format} has no place for them, lf has")
            if all(name == str(number) for number, name in enumerate(names)):
                return
            path = self.folder / ("output-items.txt" if self.format == "npz" else f"Y.txt{self.packed}")
            lines = (text_line(number, name) for number, name in enumerate(names))
        with whole_file(path) as stream:
            stream.writelines(lines)
        yield path


def _label_line(label: LabelRecord) -> bytes:
    content = {"content": label.content} if label.content else {}
    return json_line({"label": label.name, "text": label.text, **content})
