"""What a run reads, made once from a stored data set: features and true labels of every split, memory-mapped.

Everything here follows from the stored documents, the dev split drawn from train, whether labels' texts are read, and
the settings of the terms; the folder is named after a digest of them.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from haste.config import Data
from haste.data._cache import cache_folder, locked, replace_folder, write_json
from haste.data._columns import Columns, Files, Strings, append_rows, as_matrix, column, file_digest, matrix, verify
from haste.data.source import SPLITS, DataError
from haste.data.store import Log, Rows, Store, StoredSplit
from haste.data.text import Part, TfIdf
from haste.data.tokens import Tokenizer, TokenPart, Tokens

Vectorizer = TfIdf | Tokenizer

_FORMAT_VERSION = 1
_TRAIN = 1  # stream of random numbers: which documents are trained on
_TOGETHER = 1 << 14  # documents copied at a time
_MOST_DEV = 5000  # documents drawn from train: enough to tell 0.5 % of P@1 apart, and no more taken from training


def draw_dev(num_documents: int, fraction: float, seed: int) -> np.ndarray:
    """Rows of train that become dev, rising; at least one document stays in train."""
    size = min(round(fraction * num_documents), _MOST_DEV, num_documents - 1)
    return np.sort(np.random.default_rng(seed).permutation(num_documents)[: max(0, size)])


class Prepared:
    """A folder that `prepare` made.

    digest: of the documents, the draw and the settings of the terms
    rows: split -> rows of the stored split it is drawn from
    label_order: (labels,) int64, the stored number of every label: those with a training document by name, then, where
        labels' texts are read, those with a text by name, then the others by name
    counts: (num_labels,) int64, training documents of the labels that have a row in the output layer: any, or a text
    """

    def __init__(
        self,
        folder: Path,
        digest: str,
        store: Store,
        rows: dict[str, tuple[StoredSplit, np.ndarray | None]],
        tokenizer: Tokenizer | None,
    ) -> None:
        self.folder, self.digest, self.rows = folder, digest, rows
        part, chosen = rows["train"]
        self._documents = len(part) if chosen is None else len(chosen)
        self._store = store
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self._files: Files = self.manifest["files"]
        self.label_order = column(folder, "label_order", self._files)
        self.counts = column(folder, "counts", self._files)
        self.vectorizer: Vectorizer | None = tokenizer
        if store.kind == "text" and tokenizer is None:
            self.vectorizer = TfIdf.load(folder)

    def mapped_bytes(self) -> int:
        """Bytes of the documents as a run maps them into memory: features and truth of every split."""
        return sum(file.stat().st_size for file in self.folder.glob("*/*"))

    def features(self, split: str) -> csr_matrix | np.ndarray | Tokens:
        """(N, D) float32, or tokens, of a split."""
        found = self._features(split)
        return first_rows(found, self._documents) if split == "train" else found

    def truth(self, split: str) -> csr_matrix:
        """(N, labels) float32 ones of a split."""
        return matrix(self.folder, f"{split}/truth", self._files, len(self.label_order))

    def points(self) -> tuple[csr_matrix | Tokens, csr_matrix]:
        """Features and truth of the training documents and, behind them, of the texts of labels, each with its label.

        Where data.filter is on, the pairs of document and label that the filter of train lists are true here: nobody
        sees them predicted. A document called as the label of such a pair is its own page, in the place of its text.
        """
        features = self._features("train")
        assert not isinstance(features, np.ndarray)
        return features, self.truth("points")

    def _features(self, split: str) -> csr_matrix | np.ndarray | Tokens:
        if self.vectorizer is not None:
            return _read(self.folder, f"{split}/", self._files, self.vectorizer)
        if f"{split}/features.offsets" in self._files:
            return matrix(self.folder, f"{split}/features", self._files, self._store.num_features or 0)
        if f"{split}/dense" in self._files:
            return column(self.folder, f"{split}/dense", self._files).reshape(-1, self._store.num_features or 0)
        features = self.rows[split][0].features
        assert features is not None
        return features


def prepare(
    store: Store,
    config: Data,
    *,
    seed: int,
    log: Log,
    label_texts: bool = False,
    tokenizer: Tokenizer | None = None,
) -> Prepared:
    """Features and true labels of a data set's splits, made under data.cache unless they are there already.

    label_texts: read the labels' texts too; the vocabulary is then that of training documents and labels' texts
    tokenizer: of texts; None = their terms, tf-idf
    Raises: DataError if no training document has a label, no term is left, there are no labels' texts to read, or given
        features are to be tokenised.
    """
    if tokenizer is not None and store.kind != "text":
        raise DataError(f"{config.path}: holds features, a transformer reads texts; set encoder.kind: features")
    if label_texts and (store.kind != "text" or not (store.label_texts or store.label_contents)):
        what = "no label of this data has a text" if store.kind == "text" else "the documents are given features"
        raise DataError(
            f"{config.path}: label_texts.train, init and group must be false, for {what}; texts of labels are "
            "read beside texts of documents, from lbl.json or labels.jsonl"
        )
    rows: dict[str, tuple[StoredSplit, np.ndarray | None]] = {name: (part, None) for name, part in store.splits.items()}
    drawn = np.empty(0, np.int64)
    if "dev" not in rows:
        train = rows["train"][0]
        drawn = draw_dev(len(train), config.dev_fraction, seed)
        _say_drawn(len(drawn), len(train), config, seed, log)
        if len(drawn):
            rows["train"] = train, np.delete(np.arange(len(train)), drawn)
            rows["dev"] = train, drawn
    drawn_train = np.empty(0, np.int64)
    train, chosen = rows["train"]
    given = np.arange(len(train)) if chosen is None else chosen
    if config.max_documents is not None and config.max_documents < len(given):
        drawn_train = np.sort(np.random.default_rng((seed, _TRAIN)).permutation(given)[: config.max_documents])
        rows["train"] = train, drawn_train
        log(
            f"train: {len(drawn_train):,} of {len(given):,} documents, drawn at random with seed {seed} "
            "(data.max_documents)"
        )
    rows = {name: rows[name] for name in SPLITS if name in rows}
    settings = [_FORMAT_VERSION, store.content]
    if tokenizer is not None:
        settings += ["tokens", tokenizer.digest()]
    elif store.kind == "text":
        settings += [config.ngrams, config.min_df, config.max_features]
    if label_texts:
        settings += ["label texts", config.filter]
    digest = hashlib.sha256(json.dumps(settings).encode() + drawn.tobytes() + drawn_train.tobytes()).hexdigest()
    folder = cache_folder(config.cache) / "features" / digest[:32]
    with locked(folder.with_suffix(".lock"), log):
        if not _intact(folder, log):
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _write(partial, store, config, rows, label_texts, tokenizer, log)
            replace_folder(partial, folder)
        return Prepared(folder, digest, store, rows, tokenizer)


def features_of(
    store: Store, split: str, chosen: np.ndarray | None, vectorizer: Vectorizer | None, config: Data, *, log: Log
) -> csr_matrix | np.ndarray | Tokens:
    """The features of a stored split, in the terms of any vectorizer; text is transformed once, under data.cache.

    chosen: only these rows
    """
    part = store.splits[split]
    if part.texts is None:
        assert part.features is not None
        return part.features if chosen is None else part.features[chosen]
    assert vectorizer is not None
    settings = json.dumps([_FORMAT_VERSION, store.content, split, vectorizer.digest()]).encode()
    key = hashlib.sha256(settings + (b"" if chosen is None else chosen.tobytes())).hexdigest()
    folder = cache_folder(config.cache) / "features" / key[:32]
    with locked(folder.with_suffix(".lock"), log):
        if not _intact(folder, log):
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            columns = Columns(partial)
            _append_parts(columns, vectorizer.parts(part.texts if chosen is None else part.texts.take(chosen)))
            write_json(partial / "manifest.json", {"format_version": _FORMAT_VERSION, "files": columns.finish()})
            replace_folder(partial, folder)
    files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    return _read(folder, "", files, vectorizer)


def _append_parts(columns: Columns, parts: Iterable[Part] | Iterable[TokenPart]) -> None:
    for part in parts:
        if len(part) == 3:
            append_rows(columns, "features", *part)
        else:
            columns.append_offsets("tokens.offsets", part[0])
            columns.append("tokens.ids", part[1])


def _read(folder: Path, prefix: str, files: Files, vectorizer: Vectorizer) -> csr_matrix | Tokens:
    """What `_append_parts` wrote."""
    if isinstance(vectorizer, TfIdf):
        return matrix(folder, f"{prefix}features", files, vectorizer.num_terms)
    offsets, ids = (column(folder, f"{prefix}tokens.{name}", files) for name in ("offsets", "ids"))
    return vectorizer.tokens(offsets, ids)


def _say_drawn(size: int, num_documents: int, config: Data, seed: int, log: Log) -> None:
    if size:
        log(
            f"no dev file: {size:,} of the {num_documents:,} training documents, drawn at random with seed {seed}, "
            f"are the dev split and not trained on (data.dev_fraction {config.dev_fraction})"
        )
    else:
        log(f"no dev split: no dev file, and data.dev_fraction ({config.dev_fraction}) of {num_documents:,} is none")


def _intact(folder: Path, log: Log) -> bool:
    try:
        verify(folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"])
    except OSError:
        return False
    except (ValueError, KeyError, TypeError) as error:
        log(f"{error} (it is made again now)")
        return False
    return True


def _write(
    folder: Path,
    store: Store,
    config: Data,
    rows: dict[str, tuple[StoredSplit, np.ndarray | None]],
    label_texts: bool,
    tokenizer: Tokenizer | None,
    log: Log,
) -> None:
    columns = Columns(folder)
    described = store.described() if label_texts else np.zeros(len(store.label_names), bool)
    order, counts = _label_order(store, *rows["train"], described)
    if not counts.any():
        raise DataError(
            f"{config.path}: no training document has a label; check data.labels ({config.labels or 'labels'})"
        )
    columns.append("label_order", order)
    columns.append("counts", counts)
    ids = np.full(len(store.label_names), -1, np.int32)
    ids[order] = np.arange(len(order), dtype=np.int32)
    files = columns.finish()
    with_text = np.empty(0, np.int64)
    if label_texts:
        train, chosen = rows["train"]
        pages = train.filter if config.filter else None
        if pages is not None:
            described[_own_pages(store, train.ids, pages, chosen)] = False
        with_text = order[described[order]]
        columns = Columns(folder / "points")
        _append_truth(columns, train.labels, chosen, ids, pages)
        append_rows(columns, "truth", np.ones(len(with_text), np.int64), ids[with_text], np.ones(len(with_text)))
        files |= {f"points/{file}": entry for file, entry in columns.finish().items()}
    vectorizer: Vectorizer | None = tokenizer
    for name, (part, chosen) in rows.items():
        columns = Columns(folder / name)
        _append_truth(columns, part.labels, chosen, ids)
        started = time.monotonic()
        if store.kind == "text":
            assert part.texts is not None
            texts: Iterable[str] = part.texts if chosen is None else part.texts.take(chosen)
            if name == "train":
                texts = chain(texts, store.label_documents(with_text))
            if vectorizer is None:
                try:
                    vectorizer, parts = TfIdf.fit_parts(
                        texts,
                        ngrams=config.ngrams,
                        min_df=config.min_df,
                        max_features=config.max_features,
                        folder=folder,
                    )
                except ValueError as error:
                    raise DataError(f"{config.path}: {error}") from None
                vectorizer.save(folder)
                files |= {name: _entry(folder / name) for name in ("vectorizer.json", "vectorizer.npz")}
            else:
                parts = vectorizer.parts(texts)  # type: ignore[assignment]
            _append_parts(columns, parts)
            count = (len(part) if chosen is None else len(chosen)) + len(with_text) * (name == "train")
            seconds = time.monotonic() - started
            what = "terms" if tokenizer is None else "tokens"
            log(f"{name}: {what} of {count:,} documents in {seconds:.1f} s, {count / max(seconds, 1e-9):,.0f} a second")
        elif chosen is not None:
            _append_features(columns, part.features, chosen)
        files |= {f"{name}/{file}": entry for file, entry in columns.finish().items()}
    write_json(folder / "manifest.json", {"format_version": _FORMAT_VERSION, "files": files})


def _entry(path: Path) -> dict[str, Any]:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
    return {"dtype": "|u1", "size": path.stat().st_size, "sha256": file_digest(path)}


def _label_order(
    store: Store, train: StoredSplit, chosen: np.ndarray | None, described: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """See Prepared. described: which labels have a row without a document too, (labels,) bool, by number"""
    offsets, numbers = train.labels
    if chosen is not None:
        kept = np.zeros(len(train), bool)
        kept[chosen] = True
        numbers = numbers[np.repeat(kept, np.diff(offsets))]
    counts = np.bincount(numbers, minlength=len(store.label_names)).astype(np.int64)
    names = list(store.label_names)
    kinds = np.where(counts > 0, 0, np.where(described, 1, 2))
    kinds[store.num_named :][~described[store.num_named :]] = 3  # no split has them
    order = np.array(sorted(range(len(names)), key=lambda number: (kinds[number], names[number])), np.int64)
    return order[kinds[order] < 3], counts[order][kinds[order] < 2]


def _append_truth(
    columns: Columns, labels: Rows, chosen: np.ndarray | None, ids: np.ndarray, more: Rows | None = None
) -> None:
    """Write which labels every document has, and which of `more`."""
    chosen = np.arange(len(labels[0]) - 1) if chosen is None else chosen
    for start in range(0, len(chosen), _TOGETHER):
        here = chosen[start : start + _TOGETHER]
        keys = []
        for offsets, numbers in (labels,) if more is None else (labels, more):
            lengths, places = row_entries(offsets, here)
            document = np.repeat(np.arange(len(here)), lengths)
            keys.append(document << 40 | ids[numbers[places]].astype(np.int64))
        unique = np.unique(np.concatenate(keys))
        lengths = np.bincount(unique >> 40, minlength=len(here))
        append_rows(columns, "truth", lengths, unique & ((1 << 40) - 1), np.ones(len(unique), np.float32))


def _own_pages(store: Store, ids: Strings, pages: Rows, chosen: np.ndarray | None) -> np.ndarray:
    """Labels that pairs of document and label name by the document's own id, by number."""
    chosen = np.arange(len(ids)) if chosen is None else chosen
    lengths, places = row_entries(pages[0], chosen)
    labels = pages[1][places]
    names = zip(ids.take(np.repeat(chosen, lengths)), store.label_names.take(labels), strict=True)
    return labels[np.fromiter((first == second for first, second in names), bool, len(labels))]


def _append_features(columns: Columns, features: csr_matrix | np.ndarray | None, chosen: np.ndarray) -> None:
    for start in range(0, len(chosen), _TOGETHER):
        part = features[chosen[start : start + _TOGETHER]]  # type: ignore[index]
        if isinstance(part, np.ndarray):
            columns.append("dense", part.reshape(-1))
        else:
            append_rows(columns, "features", np.diff(part.indptr), part.indices, part.data)


def first_rows(rows: csr_matrix | np.ndarray | Tokens, count: int) -> csr_matrix | np.ndarray | Tokens:
    """The first rows, without a copy."""
    if count == rows.shape[0]:
        return rows
    if not isinstance(rows, csr_matrix):
        return rows[:count]
    end = rows.indptr[count]
    return as_matrix(rows.data[:end], rows.indices[:end], rows.indptr[: count + 1], rows.shape[1])


def row_entries(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of some rows of a CSR matrix: their lengths, and the places of their entries, one row behind the other."""
    starts, lengths = offsets[rows], offsets[rows + 1] - offsets[rows]
    before = np.cumsum(lengths) - lengths
    return lengths, np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)
