"""A data set in memory: tf-idf features and true labels of the train, dev and test documents."""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix

from haste.config import Data, expand_path
from haste.data.formats import DataError, find_splits, read_jsonl, read_objects
from haste.data.source import Kind
from haste.data.text import TfIdf

_logger = logging.getLogger(__name__)
_MOST_DEV = 5000  # documents drawn from train: enough to tell 0.5 % of P@1 apart, and no more taken from training

Documents = torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Positives = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Labels:
    """Names and training frequencies of the labels; a label's id is its place in `names`.

    names: labels with a training document, sorted, and behind them the others, sorted
    counts: (num_labels,) int64, training documents of each label that has any
    """

    names: list[str]
    counts: np.ndarray

    @property
    def num_labels(self) -> int:
        """Number of labels with a training document: the rows of the output layer."""
        return len(self.counts)

    def save(self, path: str | Path) -> None:
        """Write one {"label": name, "count": n} a line, in the order of the ids; 0 for labels not trained."""
        counts = chain(self.counts.tolist(), [0] * (len(self.names) - self.num_labels))
        with open(path, "w", encoding="utf-8") as stream:
            for name, count in zip(self.names, counts, strict=True):
                stream.write(json.dumps({"label": name, "count": count}, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Labels":
        """Read what `save` wrote. Raises DataError, naming file and line, if it is anything else."""
        names: set[str] = set()
        ordered: list[str] = []
        counts: list[int] = []
        for number, row in read_objects(path):
            name, count = row.get("label"), row.get("count")
            if row.keys() != {"label", "count"} or not isinstance(name, str) or type(count) is not int:
                raise DataError(f'{path}:{number}: must be {{"label": name, "count": whole number}}')
            if name in names:
                raise DataError(f"{path}:{number}: label {name!r} stands in an earlier line too")
            if not 0 <= count < 2**63 or (count and len(counts) < len(names)):
                raise DataError(f"{path}:{number}: count ({count}) must be above 0, or 0 from here to the end")
            names.add(name)
            ordered.append(name)
            counts += [count] if count else []
        return cls(ordered, np.array(counts, np.int64))


@dataclass(frozen=True)
class Split:
    """Some documents of a data set.

    name: train, dev or test
    ids: of the documents, (N,)
    features: (N, V) float32; sparse: columns sorted
    truth: (N, number of label names) float32 ones, columns sorted
    num_labels: labels from this id on have no row in the output layer
    filter: (N, number of label names) ones, labels that may not be predicted
    """

    name: str
    ids: list[str]
    features: csr_matrix | np.ndarray
    truth: csr_matrix
    num_labels: int
    filter: csr_matrix | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: np.ndarray) -> tuple[Documents, Positives]:
        """The documents `rows` (B,) as what the encoder and the output layer read.

        Returns: ((offsets (B+1,) int64, terms int64, values float32), (offsets (B+1,) int64, labels int64)), or
            ((B, V) float32, the same) for dense features; labels without a row in the output layer are left out
        """
        features, truth = self.features[rows], self.truth[rows][:, : self.num_labels]
        positives = _int64(truth.indptr), _int64(truth.indices)
        if isinstance(features, np.ndarray):
            return torch.from_numpy(features), positives
        return (_int64(features.indptr), _int64(features.indices), torch.from_numpy(features.data)), positives


@dataclass(frozen=True)
class Dataset:
    """Documents and labels of one run. Ids of terms and labels are those of `vectorizer` and `labels`."""

    train: Split
    dev: Split | None
    test: Split | None
    labels: Labels
    vectorizer: TfIdf | None
    kind: Kind = "text"

    @property
    def num_inputs(self) -> int:
        """Terms of the vocabulary, or columns of given features."""
        return self.train.features.shape[1]


@dataclass(frozen=True)
class _Documents:
    ids: list[str]
    texts: list[str]
    labels: list[tuple[str, ...]]

    def take(self, rows: Iterable[int]) -> "_Documents":
        chosen = list(rows)
        return _Documents(
            [self.ids[i] for i in chosen], [self.texts[i] for i in chosen], [self.labels[i] for i in chosen]
        )


def load_dataset(config: Data, *, seed: int, log: Callable[[str], None] = _logger.info) -> Dataset:
    """Read the documents under config.path and turn their text into terms.

    Vocabulary and label counts come from the training documents alone. Without a dev file, dev_fraction of the
    training documents, 5,000 at most, drawn at random from `seed`, become dev documents.
    log: called with lines that tell what was found: sizes, documents in two splits, repeated labels
    Raises: DataError if a file is missing, malformed or empty, or no training document has a label.
    """
    path = expand_path(config.path, "data.path")
    documents = {name: _read(file, name, config, log) for name, file in find_splits(path).items()}
    if "dev" not in documents:
        _draw_dev(documents, config.dev_fraction, seed, log)
    documents = {name: documents[name] for name in ("train", "dev", "test") if name in documents}
    train = documents["train"]
    _log_same_texts(documents, log)

    counted: dict[str, int] = {}
    for label in chain.from_iterable(train.labels):
        counted[label] = counted.get(label, 0) + 1
    if not counted:
        raise DataError(f"{path}: no training document has a label; check data.labels ({config.labels or 'labels'})")
    trained = sorted(counted)
    every = {label for part in documents.values() for label in chain.from_iterable(part.labels)}
    names = trained + sorted(every - counted.keys())
    labels = Labels(names, np.array([counted[name] for name in trained], np.int64))

    vectorizer, features = TfIdf.fit_transform(
        train.texts, ngrams=config.ngrams, min_df=config.min_df, max_features=config.max_features
    )
    splits: dict[str, Split] = {}
    for name, part in documents.items():
        rows = features if name == "train" else vectorizer.transform(part.texts)
        truth = truth_of(part.labels, names)
        splits[name] = Split(name, part.ids, rows, truth, labels.num_labels)
        empty = int((np.diff(rows.indptr) == 0).sum())
        log(
            f"{name}: {len(part.ids):,} documents, {rows.nnz / len(part.ids):.1f} terms and "
            f"{truth.nnz / len(part.ids):.2f} labels each"
            + (f"; {empty:,} without any term of the vocabulary" if empty else "")
        )
    log(
        f"{vectorizer.num_terms:,} terms; {labels.num_labels:,} labels with a training document"
        + (f", {len(names) - len(trained):,} more without" if len(names) > len(trained) else "")
    )
    return Dataset(splits["train"], splits.get("dev"), splits.get("test"), labels, vectorizer)


def truth_of(labels: Iterable[Sequence[str]], names: Sequence[str]) -> csr_matrix:
    """True labels of documents as a matrix of ones, (N, L) float32, columns sorted.

    labels: the label names of each document; a repeated one counts once
    names: label of each column; a label that is not among them gets a column of its own behind them, for it is
        a true label all the same, that no prediction hits
    """
    columns = {name: i for i, name in enumerate(names)}
    indices: list[int] = []
    offsets = [0]
    for document in labels:
        indices.extend(sorted({columns.setdefault(label, len(columns)) for label in document}))
        offsets.append(len(indices))
    ones = np.ones(len(indices), np.float32)
    truth = csr_matrix((ones, np.array(indices, np.int32), offsets), shape=(len(offsets) - 1, len(columns)))
    truth.has_canonical_format = True
    return truth


def _int64(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64, copy=False))


def _read(path: Path, name: str, config: Data, log: Callable[[str], None]) -> _Documents:
    documents = _Documents([], [], [])
    repeated = affected = unlabelled = 0
    for record in read_jsonl(path, text=config.text or "text", labels=config.labels or "labels"):
        labels = tuple(dict.fromkeys(record.labels))
        repeated += len(record.labels) - len(labels)
        affected += len(record.labels) > len(labels)
        unlabelled += not labels
        documents.ids.append(record.id)
        documents.texts.append(record.text)
        documents.labels.append(labels)
    if not documents.ids:
        raise DataError(f"{path}: holds no documents; remove the file or write one JSON object a line")
    if repeated:
        log(f"{name}: dropped {repeated:,} repeated labels in {affected:,} documents")
    if unlabelled:
        log(f"{name}: {unlabelled:,} documents have no labels")
    return documents


def _draw_dev(documents: dict[str, _Documents], fraction: float, seed: int, log: Callable[[str], None]) -> None:
    """Move some of documents["train"] to documents["dev"]; both keep the order of the file."""
    train = documents["train"]
    size = min(round(fraction * len(train.ids)), _MOST_DEV, len(train.ids) - 1)
    if size < 1:
        log(f"no dev split: no dev file, and data.dev_fraction ({fraction}) of {len(train.ids):,} is none")
        return
    drawn = np.zeros(len(train.ids), bool)
    drawn[np.random.default_rng(seed).permutation(len(train.ids))[:size]] = True
    documents["train"] = train.take(np.flatnonzero(~drawn))
    documents["dev"] = train.take(np.flatnonzero(drawn))
    log(
        f"no dev file: {size:,} of the {len(train.ids):,} training documents, drawn at random with seed {seed}, "
        f"are the dev split and not trained on (data.dev_fraction {fraction})"
    )


def _log_same_texts(documents: dict[str, _Documents], log: Callable[[str], None]) -> None:
    train = set(documents["train"].texts)
    repeated = len(documents["train"].texts) - len(train)
    if repeated:
        log(f"train: {repeated:,} documents repeat the text of another one")
    for name, part in documents.items():
        same = sum(text in train for text in part.texts) if name != "train" else 0
        if same:
            log(f"{name}: {same:,} of {len(part.texts):,} documents have the text of a training document")
