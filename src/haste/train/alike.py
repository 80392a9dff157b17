"""What tail labels are grouped by: their documents, or their own texts."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix


class Rows:
    """Some rows of features, read when they are asked for.

    Args:
        features: (N, H), indexed by slices and by arrays of rows.
        rows: (n,) of it.
    """

    def __init__(self, features: Any, rows: np.ndarray) -> None:
        self._features, self._rows = features, rows
        self.shape = (len(rows), features.shape[1])

    def __getitem__(self, rows: slice | np.ndarray) -> Any:
        """Those of the rows."""
        return self._features[self._rows[rows]]


def texts_of(ids: Iterable[str], names: Sequence[str]) -> np.ndarray:
    """Return the label that each of some documents describes, its number in names, (N,) int64: it has the label's name
    for an id, as texts of labels have. -1 = none."""
    labels = {name: label for label, name in enumerate(names)}
    return np.fromiter((labels.get(name, -1) for name in ids), np.int64)


def by_texts(features: Any, truth: csr_matrix, texts: np.ndarray) -> tuple[Rows, csr_matrix]:
    """Return features and positives by which a label with a text is what that says, and others what their documents do.

    Args:
        features: (N, H) documents, and texts of labels among them.
        truth: (N, >= L) their positives.
        texts: (N,) label that a row is the text of, where it is one of its positives too; -1 = none.

    Returns:
        The rows that any label needs, and their positives, (n, >= L).
    """
    row = np.repeat(np.arange(truth.shape[0]), np.diff(truth.indptr))
    describes = truth.indices == texts[row]
    has_text = np.zeros(truth.shape[1], bool)
    has_text[truth.indices[describes]] = True
    needed = describes | ~has_text[truth.indices]
    rows, place = np.unique(row[needed], return_inverse=True)
    labels = truth.indices[needed]
    found = csr_matrix((np.ones(len(labels), np.float32), (place, labels)), shape=(len(rows), truth.shape[1]))
    return Rows(features, rows), found
