"""A data set as a run reads it: features and true labels of the train, dev and test documents, memory-mapped."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix

from haste.config import Data
from haste.data._columns import Strings, as_matrix
from haste.data.formats import read_objects
from haste.data.prepare import Vectorizer, draw_dev, features_of, prepare
from haste.data.source import DataError, Kind
from haste.data.store import Rows, StoredSplit, open_store
from haste.data.tokens import Tokenizer, Tokens

_logger = logging.getLogger(__name__)

Documents = (
    torch.Tensor
    | tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    | tuple[torch.Tensor, torch.Tensor]
    | tuple[torch.Tensor]
)
Positives = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Labels:
    """Names and training frequencies of the labels; a label's id is its place in `names`.

    names: labels with a training document, sorted, behind them those that only their text is known of, where texts
        are read, sorted, and behind them the others, sorted
    counts: (num_labels,) int64, training documents of each label with a row in the output layer, those without last
    texts: what the labels mean in words, "" for those without; None where no label has a text
    """

    names: list[str]
    counts: np.ndarray
    texts: list[str] | None = None

    @property
    def num_labels(self) -> int:
        """Number of labels with a training document, or a text that is read: the rows of the output layer."""
        return len(self.counts)

    def save(self, path: str | Path) -> None:
        """Write one {"label": name, "count": n} a line, in the order of the ids; 0 for labels without a document.

        A label with a text of its own gets a third key, "text".
        """
        counts = chain(self.counts.tolist(), repeat(0))
        with open(path, "w", encoding="utf-8") as stream:
            for name, text, count in zip(self.names, self.texts or repeat(""), counts, strict=False):
                row = {"label": name, "count": count, **({"text": text} if text else {})}
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | Path, num_labels: int | None = None) -> "Labels":
        """Read what `save` wrote. Raises DataError, naming file and line, if it is anything else.

        num_labels: the first of them have rows; None = those with a training document
        """
        names: set[str] = set()
        ordered: list[str] = []
        counts: list[int] = []
        texts: list[str] = []
        for number, row in read_objects(path):
            name, count, text = row.get("label"), row.get("count"), row.get("text", "")
            known = row.keys() - {"text"} == {"label", "count"} and isinstance(text, str)
            if not known or not isinstance(name, str) or type(count) is not int:
                raise DataError(
                    f'{path}:{number}: must be {{"label": name, "count": whole number}}, perhaps with "text"'
                )
            if name in names:
                raise DataError(f"{path}:{number}: label {name!r} stands in an earlier line too")
            if not 0 <= count < 2**63 or (count and len(counts) < len(names)):
                raise DataError(f"{path}:{number}: count ({count}) must be above 0, or 0 from here to the end")
            names.add(name)
            ordered.append(name)
            texts.append(text)
            counts += [count] if count else []
        counts += [0] * (min(num_labels or 0, len(ordered)) - len(counts))
        return cls(ordered, np.array(counts, np.int64), texts if any(texts) else None)


@dataclass(frozen=True)
class Split:
    """Some documents of a data set.

    name: train, dev or test
    ids: of the documents, (N,)
    features: (N, D) float32: CSR with sorted columns, or dense; or tokens
    truth: (N, number of label names) float32 ones, columns sorted
    num_labels: labels from this id on have no row in the output layer
    filter: (N, num_labels) ones where a label is not to be predicted; None = nowhere
    """

    name: str
    ids: Sequence[str]
    features: csr_matrix | np.ndarray | Tokens
    truth: csr_matrix
    num_labels: int
    filter: csr_matrix | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: np.ndarray) -> tuple[Documents, Positives]:
        """The documents `rows` (B,) as what the encoder and the output layer read.

        Returns: (documents, positives); documents are (B, D) float32 for dense features, else CSR: (offsets (B+1,)
            int64, columns int64, values float32), or tokens: ids (B, T) int64 and, where some are pads, mask (B, T)
            int64; positives are CSR (offsets (B+1,) int64, labels int64), without labels that have no row in the output
            layer
        """
        features, truth = self.features[rows], self.truth[rows][:, : self.num_labels]
        positives = _int64(truth.indptr), _int64(truth.indices)
        if isinstance(features, np.ndarray):
            return torch.from_numpy(np.ascontiguousarray(features)), positives
        if isinstance(features, Tokens):
            ids, mask = (torch.from_numpy(part) for part in features.padded())
            return ((ids,) if bool(mask.all()) else (ids, mask)), positives
        return (_int64(features.indptr), _int64(features.indices), torch.from_numpy(features.data)), positives

    def exclude(self, rows: np.ndarray) -> Positives | None:
        """Labels that are not to be predicted for the documents `rows` (B,), CSR as positives; None = none at all."""
        if self.filter is None:
            return None
        filtered = self.filter[rows]
        return _int64(filtered.indptr), _int64(filtered.indices)


@dataclass(frozen=True)
class Dataset:
    """Documents and labels of one run. Ids of terms and labels are those of `vectorizer` and `labels`.

    vectorizer: a Tokenizer for a transformer; None where features are given
    kind: text, or given features, sparse or dense
    digest: of the documents, their labels and their division into splits
    points: the documents of train and, behind them, the texts of labels, each a document of that label alone; None
        where they are not read
    """

    train: Split
    dev: Split | None
    test: Split | None
    labels: Labels
    vectorizer: Vectorizer | None
    kind: Kind = "text"
    digest: str = ""
    points: Split | None = None

    @property
    def num_inputs(self) -> int:
        """Width of the features: terms of the vocabulary, or columns of given features."""
        return int(self.train.features.shape[1])


def load_dataset(
    config: Data,
    *,
    seed: int,
    log: Callable[[str], None] = _logger.info,
    label_texts: bool = False,
    tokenizer: Tokenizer | None = None,
) -> Dataset:
    """The documents under config.path, their text as terms, or as tokens where there is a tokenizer.

    Vocabulary and label counts come from the training documents alone; the vocabulary from the labels' texts too, where
    they are read. Without a dev file, dev_fraction of the training documents, 5,000 at most, drawn at random from
    `seed`, become dev documents. All of it is made under data.cache at the first call and only opened afterwards.
    log: called with lines that tell what was found: sizes, documents in two splits, repeated labels
    label_texts: read the labels' texts, as `points`; a label with a text then has a row without any document too
    Raises: DataError if a file is missing, malformed or empty, no training document has a label, or no label a text.
    """
    store = open_store(config, log=log)
    for note in store.notes:
        log(note)
    prepared = prepare(store, config, seed=seed, log=log, label_texts=label_texts, tokenizer=tokenizer)
    _log_same_texts(prepared.rows, log)
    order, counts = prepared.label_order, prepared.counts
    names = _in_order(store.label_names, order)
    texts = _in_order(store.label_texts, order) if store.label_texts else None
    labels = Labels(names, np.array(counts), texts)
    ids = np.full(len(store.label_names), -1, np.int32)
    ids[order] = np.arange(len(order), dtype=np.int32)
    splits: dict[str, Split] = {}
    for name, (part, chosen) in prepared.rows.items():
        features, truth = prepared.features(name), prepared.truth(name)
        filtered = _filter(part.filter, ids, labels.num_labels, chosen) if config.filter else None
        split = Split(name, _Some(part.ids, chosen), features, truth, labels.num_labels, filtered)
        splits[name] = split
        _log_split(split, store.kind, log)
    trained, unused = int((labels.counts > 0).sum()), len(names) - labels.num_labels
    what = "terms" if tokenizer is None else "tokens in the vocabulary"
    terms = f"{prepared.vectorizer.num_terms:,} {what}; " if prepared.vectorizer else ""
    cold = f", {labels.num_labels - trained:,} more with a text alone" if labels.num_labels > trained else ""
    log(f"{terms}{trained:,} labels with a training document" + cold + f", {unused:,} more without" * bool(unused))
    points = None
    if label_texts:
        features, truth = prepared.points()
        described = [names[label] for label in truth.indices[truth.indptr[len(splits["train"])] :]]
        points = Split("points", _Joined(splits["train"].ids, described), features, truth, labels.num_labels)
        log(f"the texts of {len(described):,} labels are read beside the training documents (label_texts)")
    return Dataset(
        splits["train"],
        splits.get("dev"),
        splits.get("test"),
        labels,
        prepared.vectorizer,
        store.kind,
        prepared.digest,
        points,
    )


def split_for(
    config: Data,
    name: str,
    labels: Labels,
    vectorizer: Vectorizer | None,
    *,
    inputs: Kind,
    seed: int,
    log: Callable[[str], None] = _logger.info,
) -> Split:
    """A split of the data at config.path in the terms and labels of a model.

    inputs: what the model reads
    Labels that the model does not know are true all the same, and no prediction hits them. Without a dev file, dev
    is what `load_dataset` would draw with this seed.
    Raises: DataError if there is no such split.
    """
    store = open_store(config, log=log)
    if store.kind != inputs:
        what = {"text": "texts", "sparse": "sparse features", "dense": "dense features"}
        found, wanted = what[store.kind], what[inputs]
        raise DataError(f"{config.path}: holds {found}; the model reads {wanted}, as it was trained on")
    source, chosen = name, None
    if name == "dev" and name not in store.splits:
        source, chosen = "train", draw_dev(len(store.splits["train"]), config.dev_fraction, seed)
    if source not in store.splits or (chosen is not None and not len(chosen)):
        raise DataError(f"{config.path}: there is no {name} split; found {', '.join(store.splits)}")
    part = store.splits[source]
    features = features_of(store, source, chosen, vectorizer, config, log=log)
    known = {label: number for number, label in enumerate(labels.names)}
    named = store.label_names[: store.num_named]
    ids = np.array([known.setdefault(label, len(known)) for label in named], np.int32)
    truth = _renumbered(part.labels, ids, len(known))
    filtered = _filter(part.filter, ids, labels.num_labels, chosen) if config.filter else None
    truth = truth if chosen is None else truth[chosen]
    return Split(name, _Some(part.ids, chosen), features, truth, labels.num_labels, filtered)


class _Some(Sequence[str]):
    """The strings of some rows."""

    def __init__(self, strings: Strings, rows: np.ndarray | None) -> None:
        self._strings, self._rows = strings, rows

    def __len__(self) -> int:
        return len(self._strings if self._rows is None else self._rows)

    def __getitem__(self, key):  # type: ignore[no-untyped-def]
        if self._rows is None:
            return self._strings[key]
        rows = self._rows[key]
        return list(self._strings.take(rows)) if isinstance(key, slice) else self._strings[int(rows)]


class _Joined(Sequence[str]):
    """The strings of two sequences, one behind the other."""

    def __init__(self, first: Sequence[str], second: Sequence[str]) -> None:
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, key):  # type: ignore[no-untyped-def]
        if isinstance(key, slice):
            return [self[row] for row in range(*key.indices(len(self)))]
        row = key + len(self) if key < 0 else key
        before = len(self._first)
        return self._first[row] if row < before else self._second[row - before]


def _in_order(strings: Strings, order: np.ndarray) -> list[str]:
    return list(strings.take(order))


def _renumbered(labels: Rows, ids: np.ndarray, num_columns: int) -> csr_matrix:
    offsets, numbers = labels
    truth = as_matrix(np.ones(len(numbers), np.float32), ids[numbers], offsets, num_columns)
    truth.has_sorted_indices = False
    truth.sort_indices()
    return truth


def _filter(pairs: Rows | None, ids: np.ndarray, num_labels: int, chosen: np.ndarray | None) -> csr_matrix | None:
    if pairs is None:
        return None
    known = _renumbered(pairs, ids, max(num_labels, int(ids.max(initial=0)) + 1))[:, :num_labels]
    return known if chosen is None else known[chosen]


def _int64(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64, copy=False))


def _log_split(split: Split, kind: Kind, log: Callable[[str], None]) -> None:
    labels, features = split.truth.nnz / len(split), split.features
    if isinstance(features, np.ndarray):
        log(f"{split.name}: {len(split):,} documents, {features.shape[1]} features and {labels:.2f} labels each")
    elif isinstance(features, Tokens):
        tokens = features.lengths.mean()
        log(f"{split.name}: {len(split):,} documents, {tokens:.1f} tokens and {labels:.2f} labels each")
    else:
        empty = int((np.diff(features.indptr) == 0).sum())
        what, of_what = ("terms", "term of the vocabulary") if kind == "text" else ("features", "feature")
        sizes = f"{features.nnz / len(split):.1f} {what} and {labels:.2f} labels each"
        log(f"{split.name}: {len(split):,} documents, {sizes}" + f"; {empty:,} without any {of_what}" * bool(empty))
    if split.filter is not None:
        log(f"{split.name}: {split.filter.nnz:,} pairs of document and label are never predicted (data.filter)")


def _log_same_texts(rows: dict[str, tuple[StoredSplit, np.ndarray | None]], log: Callable[[str], None]) -> None:
    digests = {
        name: part.digests if chosen is None else part.digests[chosen]
        for name, (part, chosen) in rows.items()
        if len(part.digests)
    }
    if "train" not in digests:
        return
    train = np.sort(digests["train"])
    repeated = int((train[1:] == train[:-1]).sum())
    if repeated:
        log(f"train: {repeated:,} documents repeat the text of another one")
    for name, part in digests.items():
        same = int((train[np.minimum(np.searchsorted(train, part), len(train) - 1)] == part).sum())
        if same and name != "train":
            log(f"{name}: {same:,} of {len(part):,} documents have the text of a training document")
