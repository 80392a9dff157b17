"""A data set in its memory-mapped form: made once from files in any format, opened in no time afterwards.

dataset.json                        what is here, from which files, and the digest of every column
label_names.*                       of the labels, by number
label_texts.* label_contents.*      what they mean, and the rest of it that is not shown
{train,dev,test}/ids.* texts.*      documents; or rows.* (sparse) or dense, where features are given
{train,dev,test}/labels.* filter.*  labels of every document, sorted; pairs that are not to be predicted
{train,dev,test}/digests            64 bits of every text, by which equal ones are found
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from haste.config import Data
from haste.data import _writer
from haste.data._cache import cache_folder, digests_of, locked, remember, remembered
from haste.data._columns import Files, Strings, column, matrix, verify
from haste.data.source import DataError, Kind, LabelRecord, Problem, Record, Source, raise_problem

Log = Callable[[str], None]
Rows = tuple[np.ndarray, np.ndarray]  # CSR: offsets (N + 1,) int64, labels int32

MANIFEST = "dataset.json"


@dataclass(frozen=True)
class StoredSplit:
    """Documents of a split; every array is mapped into memory.

    texts, features: one of them is None; features (N, D) float32, CSR or dense
    labels, filter: numbers of labels, sorted within a document
    digests: (N,) uint64 of the texts; empty where there are none
    """

    ids: Strings
    texts: Strings | None
    features: csr_matrix | np.ndarray | None
    labels: Rows
    filter: Rows | None
    digests: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Store:
    """A data set on the disk.

    folder: where it is
    content: digest of the documents and labels, the same however they were stored before
    num_named: labels that documents may name; those behind them have nothing but a text
    label_names, label_texts, label_contents: by label number; None where the data set has none of it
    notes: lines to be said whenever the data set is used, such as repeated labels
    """

    folder: Path
    content: str
    kind: Kind
    num_features: int | None
    splits: dict[str, StoredSplit]
    num_named: int
    label_names: Strings
    label_texts: Strings | None
    label_contents: Strings | None
    notes: list[str]

    def described(self) -> np.ndarray:
        """Which labels have a text, (labels,) bool, by number."""
        found = np.zeros(len(self.label_names), bool)
        for strings in (self.label_texts, self.label_contents):
            if strings is not None:
                found |= np.fromiter(map(bool, strings), bool, len(strings))
        return found

    def label_documents(self, labels: np.ndarray) -> Iterator[str]:
        """What the labels of these numbers are, read as documents: their texts with all that belongs to them."""
        columns = [strings.take(labels) for strings in (self.label_texts, self.label_contents) if strings is not None]
        return (" ".join(filter(None, parts)) for parts in zip(*columns, strict=True))


def open_store(config: Data, *, log: Log) -> Store:
    """The data set at config.path, made under config.cache from its files unless it is there already.

    It is found by the digest of the files' content and of the settings that decide how they are read, so a file
    that changes makes a new one. An unfinished one is taken up after its last complete split.
    Raises: DataError if files are missing, malformed or empty, or a converted folder was altered.
    """
    from haste.data.formats import detect

    source = detect(config)
    log(f"{source.path}: {source.format}, {source.reason}")
    if isinstance(source, StoreSource):
        return source.store
    cache = cache_folder(config.cache)
    files = [file for group in source.files().values() for file in group]
    digests = digests_of(files, cache)
    settings = [config.text, config.labels, config.id, config.separator, config.input]
    names = {name: [digests[str(file.resolve())] for file in group] for name, group in source.files().items()}
    described = json.dumps([_writer.FORMAT_VERSION, source.format, source.kind, names, settings], sort_keys=True)
    key = hashlib.sha256(described.encode()).hexdigest()
    folder = cache / "documents" / key[:32]
    with locked(folder.with_suffix(".lock"), log):
        if (folder / MANIFEST).is_file():
            try:
                return read_store(folder)
            except DataError as error:
                log(f"{error} (it is made again now)")
                shutil.rmtree(folder)
        book, place = cache / "documents" / "places.json", str(source.path.resolve())
        if remembered(book).get(place, key) != key:
            log(f"{source.path}: its files or their settings are not those of the last time; reading them again")
        _writer.write_store(folder, folder.with_name(folder.name + ".partial"), source, key=key, log=log)
        remember(book, {place: key})
        return read_store(folder, check=False)


def write_store(folder: Path, source: Source, *, log: Log) -> Path:
    """Convert a data set into a new folder, which `data.path` may name afterwards; an interrupted one starts anew.

    Raises: DataError if the source is malformed; ValueError if the folder is in the way.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} must be new or empty; choose another folder, or remove it first")
    folder, key = folder.resolve(), secrets.token_hex(4)
    partial = folder.with_name(f".{folder.name}.{key}.partial")
    try:
        _writer.write_store(folder, partial, source, key=key, log=log)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def read_store(folder: Path, *, check: bool = True) -> Store:
    """Open a folder that `write_store` made.

    check: compare the content of every column with its digest first
    Raises: DataError if it is not as written, naming the file.
    """
    manifest = read_manifest(folder)
    files: Files = manifest["files"]
    if check:
        verify(folder, files)
    kind, num_features = manifest["kind"], manifest["num_features"]

    def strings(name: str) -> Strings | None:
        return Strings.read(folder, name, files) if f"{name}.bytes" in files else None

    return Store(
        folder,
        manifest["content"],
        kind,
        num_features,
        {name: _read_split(folder, name, files, kind, num_features) for name in manifest["splits"]},
        manifest["num_named"],
        Strings.read(folder, "label_names", files),
        strings("label_texts"),
        strings("label_contents"),
        manifest["notes"],
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """dataset.json of a folder. Raises DataError if it is missing, damaged or of another version."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
        content = _writer.content_digest(manifest["files"])
        if version == _writer.FORMAT_VERSION and (manifest["digest"], manifest["content"]) == (
            _writer.manifest_digest(manifest),
            content,
        ):
            return dict(manifest)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); is this a converted data set?") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        version = None
    if version is not None and version != _writer.FORMAT_VERSION:
        raise DataError(
            f"{path}: format_version ({version}) must be {_writer.FORMAT_VERSION}; convert the data set again"
        )
    raise DataError(f"{path}: its content is not as written; the folder was altered, make it again")


def _read_split(folder: Path, name: str, files: Files, kind: Kind, num_features: int | None) -> StoredSplit:
    features: csr_matrix | np.ndarray | None = None
    if kind == "sparse":
        features = matrix(folder, f"{name}/rows", files, num_features or 0)
    elif kind == "dense":
        features = column(folder, f"{name}/dense", files).reshape(-1, num_features or 0)

    def rows(what: str) -> Rows:
        return column(folder, f"{name}/{what}.offsets", files), column(folder, f"{name}/{what}.numbers", files)

    return StoredSplit(
        Strings.read(folder, f"{name}/ids", files),
        Strings.read(folder, f"{name}/texts", files) if kind == "text" else None,
        features,
        rows("labels"),
        rows("filter") if f"{name}/filter.offsets" in files else None,
        column(folder, f"{name}/digests", files),
    )


class StoreSource(Source):
    """A converted data set; raises DataError if it was altered."""

    def __init__(self, path: Path) -> None:
        self.store = store = read_store(path)
        self.format, self.path, self.kind = "haste", path, store.kind
        self.reason = f"the folder holds {MANIFEST}"
        self.splits = tuple(store.splits)
        self.num_features, self.num_labels = store.num_features, store.num_named

    def files(self) -> dict[str, tuple[Path, ...]]:
        """The folder's own files."""
        groups: dict[str, tuple[Path, ...]] = {}
        for name in read_manifest(self.path)["files"]:
            group = name.partition("/")[0] if "/" in name else "labels"
            groups[group] = (*groups.get(group, ()), self.path / name)
        return groups

    def documents(self, split: str, problem: Problem = raise_problem) -> Iterator[Record]:
        """Documents of a split."""
        part = self.store.splits[split]
        offsets, numbers = part.labels
        texts, features = iter(part.texts or ()), part.features
        for row, name in enumerate(part.ids):
            labels = tuple(numbers[offsets[row] : offsets[row + 1]].tolist())
            if part.texts is not None:
                yield Record(name, next(texts), labels, line=row + 1)
            elif isinstance(features, np.ndarray):
                yield Record(name, labels=labels, dense=features[row], line=row + 1)
            elif features is not None:
                here = slice(features.indptr[row], features.indptr[row + 1])
                columns = features.indices[here].astype(np.int64)
                yield Record(name, labels=labels, columns=columns, values=features.data[here], line=row + 1)

    def labels(self, problem: Problem = raise_problem) -> Iterator[LabelRecord]:
        """Every label, by number."""
        texts, contents = self.store.label_texts, self.store.label_contents
        for number, name in enumerate(self.store.label_names):
            yield LabelRecord(name, texts[number] if texts else "", contents[number] if contents else "")

    def filter_pairs(self, split: str, problem: Problem = raise_problem) -> Iterator[tuple[int, int]]:
        """Pairs that are not to be predicted."""
        pairs = self.store.splits[split].filter
        if pairs is not None:
            offsets, numbers = pairs
            documents = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
            yield from zip(documents.tolist(), numbers.tolist(), strict=True)
