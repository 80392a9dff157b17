"""What tail labels are grouped by: their documents, or their own texts."""

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


def by_texts(features: Any, truth: csr_matrix, num_documents: int) -> tuple[Rows, csr_matrix]:
    """Return features and positives by which a label with a text is what that says, and others what their documents do.

    Args:
        features: (N, H) documents and, behind them, texts of labels.
        truth: (N, >= L) their positives; of a text, the label it describes.
        num_documents: rows that are documents.

    Returns:
        The rows that any label needs, and their positives, (n, >= L).
    """
    has_text = np.zeros(truth.shape[1], bool)
    has_text[truth[num_documents:].indices] = True
    row = np.repeat(np.arange(truth.shape[0]), np.diff(truth.indptr))
    needed = (row >= num_documents) | ~has_text[truth.indices]
    rows, place = np.unique(row[needed], return_inverse=True)
    labels = truth.indices[needed]
    found = csr_matrix((np.ones(len(labels), np.float32), (place, labels)), shape=(len(rows), truth.shape[1]))
    return Rows(features, rows), found
