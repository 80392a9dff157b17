"""Inputs that say most about a group's labels, for output layers that read the documents' own features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scipy.sparse import csc_matrix, csr_matrix

_ELEMENTS = 1 << 23  # numbers of one run of groups: 64 MiB of scores
_SHRINK = 3.0  # documents that a label of n speaks for as n / (n + this)


def telling_inputs(
    features: csr_matrix | np.ndarray,
    truth: csr_matrix,
    labels: np.ndarray,
    *,
    fan_in: int,
    group_size: int,
    normalize: bool,
) -> np.ndarray:
    """Return the inputs in which the documents of a group's labels differ most from others.

        score[k, f] = | sum over labels l of group k of n_l / (n_l + 3) (mean of x_f over l's documents - mean of x_f) |

    Args:
        features: (N, H) training documents x.
        truth: (N, >= L) their labels; n_l documents have label l.
        labels: (L',) the tail's labels, of consecutive groups.
        fan_in, group_size: inputs and labels of a group.
        normalize: scale documents to unit length first.

    Returns:
        (G, fan_in) int64, every row sorted, without duplicates: the inputs of largest score.

    Memory: one more copy of features and of truth.
    """
    if normalize:
        features = _unit_rows(features)
    mean = np.asarray(features.mean(axis=0), np.float64).ravel()
    by_label = truth.tocsc()
    groups = -(-len(labels) // group_size)
    indices = np.empty((groups, fan_in), np.int64)
    for start, shares in _shares(by_label, labels, group_size, len(mean)):
        found = shares @ features
        total = found if isinstance(found, np.ndarray) else found.toarray()
        scores = np.abs(total - np.asarray(shares.sum(axis=1)).reshape(-1, 1) * mean)
        best = np.argpartition(-scores, fan_in - 1, axis=1)[:, :fan_in]
        indices[start : start + len(best)] = np.sort(best, axis=1)
    return indices


def _unit_rows(features: csr_matrix | np.ndarray) -> csr_matrix | np.ndarray:
    from scipy.sparse import diags

    dense = isinstance(features, np.ndarray)
    squares = np.square(features).sum(axis=1) if dense else features.power(2).sum(axis=1)  # type: ignore[union-attr]
    scale = 1 / np.sqrt(np.maximum(np.asarray(squares, np.float64).ravel(), np.finfo(np.float32).tiny))
    return diags(scale) @ features


def _shares(by_label: csc_matrix, labels: np.ndarray, group_size: int, width: int) -> Iterator[tuple[int, csr_matrix]]:
    """Yield runs of groups: the first, and what each document counts for in each of them (groups, N)."""
    from scipy.sparse import coo_matrix

    length = max(1, _ELEMENTS // width)
    groups = -(-len(labels) // group_size)
    for start in range(0, groups, length):
        here = labels[start * group_size : (start + length) * group_size]
        part = by_label[:, here]
        counts = np.diff(part.indptr)
        group = np.arange(len(here)) // group_size
        values = np.repeat(1 / (counts + _SHRINK), counts)  # n / (n + 3) over n
        shape = (int(group[-1]) + 1, by_label.shape[0])
        yield start, coo_matrix((values, (np.repeat(group, counts), part.indices)), shape).tocsr()
