"""Writes a data set in its memory-mapped form, a split at a time, so that an interrupted one is taken up again."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from haste.data._cache import replace_folder, write_json
from haste.data._columns import Columns, Files, Strings, append_rows
from haste.data._words import count_columns
from haste.data.source import DataError, LabelRecord, Record, Source

FORMAT_VERSION = 2
_PARTS = ("bytes", "offsets")  # of a column of strings
_TOGETHER = 1024  # documents turned into columns at a time
_SAY_EVERY = 10.0  # seconds between two lines about what was read


def write_store(folder: Path, partial: Path, source: Source, *, key: str, log: Callable[[str], None]) -> None:
    """Make `folder`, complete or not at all.

    partial: where it grows; anything else there is removed
    key: of the source; what an interrupted call with the same key has left in `partial` is used
    """
    if _read(partial / "key.json") != key:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_json(partial / "key.json", key)
    labels = _Labels(source)
    notes: list[str] = []
    files: Files = {}
    for name in source.splits:
        done = _read(partial / f"{name}.json")
        if done is None:
            done = _write_split(partial, name, source, labels, log)
            write_json(partial / f"{name}.json", done)
        else:
            log(f"{name}: {done['documents']:,} documents were read before the interruption")
            new = {f"{name}/new_labels.{part}": done["files"][f"{name}/new_labels.{part}"] for part in _PARTS}
            labels.restore(Strings.read(partial, f"{name}/new_labels", new))
        files |= {file: entry for file, entry in done["files"].items() if "/new_labels." not in file}
        notes += done["notes"]
    num_named, label_files = labels.write(partial)
    files |= label_files
    # In this order a process that is killed here leaves what can be taken up.
    for name in source.splits:
        (partial / f"{name}.json").unlink()
    for name in source.splits:
        for part in _PARTS:
            (partial / name / f"new_labels.{part}").unlink()
    (partial / "key.json").unlink()
    manifest = {
        "format_version": FORMAT_VERSION,
        "format": source.format,
        "reason": source.reason,
        "sources": {name: [str(path) for path in paths] for name, paths in source.files().items()},
        "kind": source.kind,
        "num_features": source.num_features,
        "num_named": num_named,
        "splits": list(source.splits),
        "content": content_digest(files),
        "notes": notes,
        "files": files,
    }
    write_json(partial / "dataset.json", {**manifest, "digest": manifest_digest(manifest)})
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    replace_folder(partial, folder)


def manifest_digest(manifest: dict[str, Any]) -> str:
    """Digest of all a manifest says but this."""
    rest = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def content_digest(files: Files) -> str:
    """Digest of what the columns hold."""
    return hashlib.sha256(json.dumps([[name, files[name]["sha256"]] for name in sorted(files)]).encode()).hexdigest()


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


class _Numbers(dict[str, int]):
    """A number for every name that was asked for, in the order of the first time."""

    def __missing__(self, name: str) -> int:
        self[name] = number = len(self)
        return number


class _Labels:
    """Numbers of the labels: those the source gives, else in the order in which the documents name them."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._numbers = _Numbers()

    def of(self, records: list[Record]) -> tuple[np.ndarray, np.ndarray]:
        """How many labels every document has, and their numbers, sorted, without repeats."""
        offsets = np.cumsum([0, *(len(record.labels) for record in records)])
        labels: Iterator[Any] = chain.from_iterable(record.labels for record in records)
        if self._source.num_labels is None:
            labels = map(self._numbers.__getitem__, labels)
        document, numbers, _ = count_columns(offsets, [np.fromiter(labels, np.int64, int(offsets[-1]))])
        return np.bincount(document, minlength=len(records)), numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def names_from(self, first: int) -> list[str]:
        """Names that came in after `first` others."""
        return list(islice(self._numbers, first, None))

    def restore(self, names: Strings) -> None:
        """Give the numbers again that an interrupted call gave while it read a split."""
        for name in names:
            self._numbers[name]

    def write(self, folder: Path) -> tuple[int, Files]:
        """Write names and texts of all labels, those that documents name first; returns how many those are."""
        labels: Iterator[LabelRecord] = self._source.labels()
        named = self._source.num_labels
        if named is None:
            named = len(self._numbers)
            known = {
                label.name: label for label in labels if label.name in self._numbers or label.text or label.content
            }
            first = [known.pop(name, LabelRecord(name)) for name in self._numbers]
            labels = chain(first, known.values())
        columns = Columns(folder)
        written = 0
        while chunk := list(islice(labels, _TOGETHER)):
            for name in ("name", "text", "content"):
                columns.append_strings(f"label_{name}s", [getattr(label, name) for label in chunk])
            written += len(chunk)
        if not written:
            columns.append_strings("label_names", [str(number) for number in range(named)])
        files = columns.finish()
        for name in ("label_texts", "label_contents"):
            if f"{name}.bytes" in files and not files[f"{name}.bytes"]["size"]:
                for part in _PARTS:
                    del files[f"{name}.{part}"]
                    (folder / f"{name}.{part}").unlink()
        return named, files


def _write_split(
    folder: Path,
    name: str,
    source: Source,
    labels: _Labels,
    log: Callable[[str], None],
) -> dict[str, Any]:
    columns = Columns(folder / name)
    count = repeated = affected = unlabelled = 0
    first_label = len(labels)
    started = said = time.monotonic()
    records = source.documents(name)
    while chunk := list(islice(records, _TOGETHER)):
        columns.append_strings("ids", [record.id for record in chunk])
        _append_input(columns, source, chunk)
        lengths, numbers = labels.of(chunk)
        columns.append_offsets("labels.offsets", lengths)
        columns.append("labels.numbers", numbers.astype(np.int32))
        given = np.fromiter((len(record.labels) for record in chunk), np.int64, len(chunk))
        repeated += int((given - lengths).sum())
        affected += int((given > lengths).sum())
        unlabelled += int((lengths == 0).sum())
        count += len(chunk)
        if time.monotonic() - said > _SAY_EVERY:
            said = time.monotonic()
            log(f"{name}: {count:,} documents read, {count / (said - started):,.0f} a second")
    if not count:
        file = next(iter(source.files().get(name, ())), source.path)
        raise DataError(f"{file}: holds no documents; remove the file or fill it")
    _append_filter(columns, source, name, count)
    columns.append_strings("new_labels", labels.names_from(first_label))
    files = {f"{name}/{file}": entry for file, entry in columns.finish().items()}
    notes = []
    if repeated:
        notes.append(f"{name}: dropped {repeated:,} repeated labels in {affected:,} documents")
    if unlabelled:
        notes.append(f"{name}: {unlabelled:,} documents have no labels")
    seconds = time.monotonic() - started
    log(f"{name}: {count:,} documents read in {seconds:.1f} s, {count / max(seconds, 1e-9):,.0f} a second")
    return {"documents": count, "files": files, "notes": notes}


def _append_input(columns: Columns, source: Source, chunk: list[Record]) -> None:
    digests: list[bytes] = []
    if source.kind == "text":
        texts = [record.text.encode() for record in chunk]
        columns.append_bytes("texts", texts)
        digests = [blake2b(text, digest_size=8).digest() for text in texts]
    elif source.kind == "dense":
        columns.append("dense", np.concatenate([record.dense for record in chunk]).astype(np.float32, copy=False))
    else:
        sorted_rows = [_sorted(record) for record in chunk]
        lengths = np.fromiter((len(row) for row, _ in sorted_rows), np.int64, len(chunk))
        indices = np.concatenate([row for row, _ in sorted_rows])
        append_rows(columns, "rows", lengths, indices, np.concatenate([values for _, values in sorted_rows]))
    columns.append("digests", np.frombuffer(b"".join(digests), np.uint64))


def _sorted(record: Record) -> tuple[np.ndarray, np.ndarray]:
    assert record.columns is not None
    assert record.values is not None
    if (np.diff(record.columns) > 0).all():
        return record.columns, record.values
    order = np.argsort(record.columns, kind="stable")
    return record.columns[order], record.values[order]


def _append_filter(columns: Columns, source: Source, name: str, count: int) -> None:
    pairs = np.array(sorted(set(source.filter_pairs(name))), np.int64).reshape(-1, 2)
    if len(pairs):
        columns.append_offsets("filter.offsets", np.bincount(pairs[:, 0], minlength=count))
        columns.append("filter.numbers", pairs[:, 1].astype(np.int32))
