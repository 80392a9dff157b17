"""What X can be: texts, or a matrix of features; and both as a data set in memory."""

from typing import Any, TypeAlias

import numpy as np
import torch
from scipy.sparse import csr_matrix, issparse

from haste.config import Config
from haste.data.dataset import Dataset, Labels, Split
from haste.data.prepare import Vectorizer, draw_dev
from haste.data.source import Kind
from haste.data.text import TfIdf
from haste.data.tokens import Tokens
from haste.train.device import resolve_device
from haste.train.given_data import tokenizer_of
from haste.train.preset import Facts, free_memory

Inputs: TypeAlias = list[str] | csr_matrix | np.ndarray
_SAMPLE = 1000  # texts whose words are counted


def as_texts(X: Any) -> list[str] | None:
    """The texts of X as a list, None where X is something else.

    Raises:
        ValueError: one text instead of several, or a missing one.
    """
    if isinstance(X, str):
        raise ValueError("X must be a list of texts; put the one text into a list")
    if issparse(X) or getattr(X, "ndim", 1) != 1 or not hasattr(X, "__iter__"):
        return None
    values = list(X)
    if not any(isinstance(value, str) for value in values):
        return None
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"X[{number}] ({type(value).__name__} {value!r}) must be a text; use '' for a missing one")
    return values


def as_features(X: csr_matrix | np.ndarray) -> csr_matrix | np.ndarray:
    """float32 rows as the encoder reads them; the caller's matrix is left alone."""
    if not issparse(X):
        return np.ascontiguousarray(X)
    rows = csr_matrix(X)
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    return rows


def kind_of(inputs: Inputs) -> Kind:
    """text, sparse or dense."""
    return "text" if isinstance(inputs, list) else "sparse" if issparse(inputs) else "dense"


def facts_of(inputs: Inputs, truth: csr_matrix, device: str) -> Facts:
    """What the preset chooses settings from."""
    num = truth.shape[0]
    words = None
    if isinstance(inputs, list):
        sample = inputs[:: max(1, num // _SAMPLE)]
        words = sum(len(text.split()) for text in sample) / len(sample)
    found = resolve_device(device)
    memory = torch.cuda.mem_get_info(found)[0] if found.type == "cuda" else free_memory()
    return Facts(
        num_documents=num,
        num_labels=int(np.count_nonzero(np.diff(truth.tocsc().indptr))),
        labels_per_document=truth.nnz / num,
        kind=kind_of(inputs),
        num_inputs=None if isinstance(inputs, list) else inputs.shape[1],
        words_per_document=words,
        memory_bytes=memory,
        device=found.type,
    )


def make_dataset(config: Config, inputs: Inputs, truth: csr_matrix, names: list[str]) -> Dataset:
    """A data set in memory: as `load_dataset` makes one of files, dev documents drawn in the same way.

    Args:
        config: keys data, run.seed.
        inputs: N texts, or rows of features.
        truth: (N, L) ones.
        names: of its columns.

    Raises:
        ValueError: no training document has a label.
    """
    num = truth.shape[0]
    in_dev = draw_dev(num, config.data.dev_fraction, config.run.seed)
    rows = {"train": np.setdiff1d(np.arange(num), in_dev), "dev": in_dev}

    counts = np.bincount(truth[rows["train"]].indices, minlength=truth.shape[1])
    trained = np.flatnonzero(counts)
    if not len(trained):
        raise ValueError(f"y must give a label to a training document; all {len(rows['train']):,} have none")
    order = np.concatenate((trained, np.flatnonzero(counts == 0)))
    labels = Labels([names[column] for column in order], counts[trained].astype(np.int64))
    vectorizer, features = _features(config, inputs, rows)
    splits = {}
    for name, taken in rows.items():
        if not len(taken):
            continue
        part = truth[taken][:, order].tocsr()
        part.sort_indices()
        ids = [str(row) for row in taken.tolist()]
        splits[name] = Split(name, ids, features[name], part, labels.num_labels)
    return Dataset(splits["train"], splits.get("dev"), None, labels, vectorizer, kind_of(inputs))


def _features(
    config: Config, inputs: Inputs, rows: dict[str, np.ndarray]
) -> tuple[Vectorizer | None, dict[str, csr_matrix | np.ndarray | Tokens]]:
    tokenizer = tokenizer_of(config)
    if not isinstance(inputs, list):
        if tokenizer is not None:
            raise ValueError("X must be texts for encoder.kind transformer; found features")
        return None, {name: inputs[taken] for name, taken in rows.items()}
    data = config.data
    texts = {name: [inputs[row] for row in taken.tolist()] for name, taken in rows.items()}
    if tokenizer is not None:
        return tokenizer, {name: tokenizer.transform(part) for name, part in texts.items()}
    vectorizer, train = TfIdf.fit_transform(
        texts["train"], ngrams=data.ngrams, min_df=data.min_df, max_features=data.max_features
    )
    return vectorizer, {"train": train, "dev": vectorizer.transform(texts["dev"])}
