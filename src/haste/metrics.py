"""Ranking metrics of extreme classification, computed from the top-k labels of each row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import issparse

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from scipy.sparse import csr_array, csr_matrix

_PERCENT_NAMES = {
    "precision": "P",
    "ndcg": "nDCG",
    "recall": "R",
    "psprecision": "PSP",
    "psndcg": "PSnDCG",
    "rprecision": "RP",
}


def evaluate(
    topk: ArrayLike,
    truth: csr_matrix | csr_array,
    k: int = 5,
    inverse_propensity: ArrayLike | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Score ranked predictions at every cut-off 1..k, as the xclib evaluation code does.

        precision@j    mean over rows of hits in the first j, divided by j
        recall@j       mean over rows of hits divided by true labels
        rprecision@j   mean over rows of hits divided by min(j, true labels)
        ndcg@j         mean over rows of sum hit_r / log2(r + 1), over the same with min(j, true labels) hits
        psprecision@j  precision with each hit weighted by its inverse propensity
        psndcg@j       ndcg likewise

    The last two are sums over all rows divided by the same sums for the best possible ranking. A row without
    true labels counts as 0, except in rprecision, which leaves it out. Memory is O(N K + nonzeros of truth).

    Args:
        topk: (N, K) integer label ids, best first, K >= k; -1 means no label at that rank.
        truth: (N, L) CSR of ones; columns may cover labels that can never be predicted.
        k: the largest cut-off.
        inverse_propensity: (L,) from `inverse_propensity`; adds the two propensity-scored metrics.

    Returns:
        A float64 array of length k (fractions; entry j - 1 is the metric at j) under each name.

    Raises:
        TypeError: topk is not of an integer dtype, or truth is not scipy CSR.
        ValueError: shapes disagree, an id is out of range or repeated in a row, truth is empty or not binary.
    """
    truth = _check_truth(truth)
    ranked = _check_topk(topk, truth.shape, k)
    hits = _hits(ranked, truth)
    num_true = np.diff(truth.indptr).astype(np.int64)
    cutoffs = np.arange(1, k + 1)
    discounts = 1.0 / np.log2(cutoffs + 1.0)
    # Rows without true labels have no hits, so any positive divisor scores them 0.
    reachable = np.minimum(np.maximum(num_true, 1)[:, None], cutoffs)
    best_dcg = np.cumsum(discounts)[reachable - 1]

    hit_counts = np.cumsum(hits, axis=1)
    result = {
        "precision": hit_counts.mean(axis=0) / cutoffs,
        "ndcg": (np.cumsum(hits * discounts, axis=1) / best_dcg).mean(axis=0),
        "recall": (hit_counts / np.maximum(num_true, 1)[:, None]).mean(axis=0),
        "rprecision": (hit_counts / reachable)[num_true > 0].mean(axis=0),
    }
    if inverse_propensity is not None:
        weights = _check_inverse_propensity(inverse_propensity, truth.shape[1])
        # Where ranked is -1 the last weight is picked up, and hits is False.
        gain, best_gain = hits * weights[ranked], _best_gain(truth, weights, k)
        result["psprecision"] = np.cumsum(gain.sum(axis=0)) / np.cumsum(best_gain.sum(axis=0))
        result["psndcg"] = (np.cumsum(gain * discounts, axis=1) / best_dcg).sum(axis=0) / (
            np.cumsum(best_gain * discounts, axis=1) / best_dcg
        ).sum(axis=0)
    return result


def per_decile(topk: ArrayLike, truth: csr_matrix | csr_array, counts: ArrayLike, k: int = 5) -> NDArray[np.float64]:
    """Split precision at every cut-off 1..k among ten equally large sets of labels, frequent to rare.

    Labels are sorted by training frequency (ties by label id) and cut in ten deciles of equal label count.

    Args:
        topk, truth, k: as in `evaluate`.
        counts: (L,) training positives of each label; 0 for labels unseen in training.

    Returns:
        (10, k) float64 contributions, row 0 of the most frequent labels; summed over rows, the precision.

    Raises:
        TypeError, ValueError: as `evaluate`; or counts is not (L,) non-negative.
    """
    truth = _check_truth(truth)
    ranked = _check_topk(topk, truth.shape, k)
    num_rows, num_labels = truth.shape
    frequencies = _check_counts(counts)
    if len(frequencies) != num_labels:
        raise ValueError(
            f"counts ({len(frequencies)} labels) must cover the {num_labels} columns of truth; "
            "give labels unseen in training the count 0"
        )
    deciles = np.empty(num_labels, dtype=np.int64)
    deciles[np.argsort(-frequencies, kind="stable")] = np.arange(num_labels) * 10 // num_labels
    rows, ranks = np.nonzero(_hits(ranked, truth))
    hits_at_rank = np.zeros((10, k))
    np.add.at(hits_at_rank, (deciles[ranked[rows, ranks]], ranks), 1.0)
    return np.cumsum(hits_at_rank, axis=1) / (num_rows * np.arange(1, k + 1))


def inverse_propensity(counts: ArrayLike, num_points: int, a: float = 0.55, b: float = 1.5) -> NDArray[np.float64]:
    """Estimate how much a hit on each label should count, rare labels being often missing from the truth.

        1 + C (counts + b)^-a,  C = (ln num_points - 1) (b + 1)^a        (Jain, Prabhu and Varma, KDD 2016)

    Print `describe_propensity(a, b)` beside every result: published numbers use 0.5 and 0.4 for Wikipedia, 0.6
    and 2.6 for Amazon, 0.55 and 1.5 otherwise, and disagree on which data sets are which.

    Args:
        counts: (L,) training positives of each label; 0 for labels unseen in training.
        num_points: the number of training rows, at least 3 (below, C is negative).

    Returns:
        (L,) float64 weights, at least 1.

    Raises:
        ValueError: counts is not 1-D or not within 0..num_points; num_points, a or b is too small.
    """
    frequencies = _check_counts(counts)
    if num_points < 3:
        raise ValueError(f"num_points ({num_points}) must be at least 3; propensities need ln(num_points) > 1")
    if not (a > 0 and b > 0):
        raise ValueError(f"a ({a}) and b ({b}) must be positive; the usual values are 0.55 and 1.5")
    if frequencies.size and frequencies.max() > num_points:
        raise ValueError(
            f"counts (up to {frequencies.max():g}) must not exceed num_points ({num_points}); "
            "count each label once per training row"
        )
    scale = (np.log(num_points) - 1.0) * (b + 1.0) ** a
    return 1.0 + scale * (frequencies + b) ** -a


def describe_propensity(a: float = 0.55, b: float = 1.5) -> str:
    """Name the propensity constants, to stand beside every PSP and PSnDCG that is printed."""
    return f"propensity A={a:g}, B={b:g}"


def as_percent(result: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    """Turn the result of `evaluate` into percentages under their usual names ("P@1", "nDCG@3", "PSP@5", ...).

    Cut-offs are 1, 3 and 5, as far as the result reaches.
    """
    return {
        f"{short}@{cutoff}": 100.0 * float(result[name][cutoff - 1])
        for name, short in _PERCENT_NAMES.items()
        if name in result
        for cutoff in (1, 3, 5)
        if cutoff <= len(result[name])
    }


def _hits(ranked: NDArray[np.int64], truth: csr_matrix | csr_array) -> NDArray[np.bool_]:
    """Say for each ranked label whether it is true; ranked is (N, k), truth has sorted indices."""
    num_rows, num_labels = truth.shape
    rows = np.arange(num_rows, dtype=np.int64)
    true_keys = np.repeat(rows, np.diff(truth.indptr)) * num_labels + truth.indices
    keys = rows[:, None] * num_labels + ranked
    found = np.searchsorted(true_keys, keys)
    # A row's -1 has the key of the last label of the row before it, hence the second condition.
    return (true_keys[np.minimum(found, len(true_keys) - 1)] == keys) & (ranked >= 0)


def _best_gain(truth: csr_matrix | csr_array, weights: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Weights (N, k) of each row's true labels that weigh most, highest first, 0 where there are fewer."""
    num_rows = truth.shape[0]
    rows = np.repeat(np.arange(num_rows), np.diff(truth.indptr))
    gains = weights[truth.indices]
    gains = gains[np.lexsort((-gains, rows))]
    ranks = np.arange(truth.nnz) - np.asarray(truth.indptr)[rows]
    best = np.zeros((num_rows, k))
    kept = ranks < k
    best[rows[kept], ranks[kept]] = gains[kept]
    return best


def _check_topk(topk: ArrayLike, shape: tuple[int, int], k: int) -> NDArray[np.int64]:
    num_rows, num_labels = shape
    ranked = np.asarray(topk)
    if ranked.dtype.kind not in "iu":
        raise TypeError(f"topk ({ranked.dtype}) must be of an integer dtype; pass label ids, not scores")
    if ranked.ndim != 2 or len(ranked) != num_rows:
        raise ValueError(f"topk {ranked.shape} must be (N, K) with one row for each of truth's {num_rows} rows")
    if not 1 <= k <= ranked.shape[1]:
        raise ValueError(
            f"k ({k}) must be from 1 to the {ranked.shape[1]} columns of topk; predict more labels, or fill with -1"
        )
    ranked = ranked.astype(np.int64, copy=False)
    if ranked.min() < -1 or ranked.max() >= num_labels:
        row, rank = np.argwhere((ranked < -1) | (ranked >= num_labels))[0]
        raise ValueError(
            f"topk[{row}, {rank}] ({ranked[row, rank]}) must be -1 (none) or a label id below "
            f"truth's {num_labels} columns"
        )
    ordered = np.sort(ranked, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if repeated.any():
        row, place = np.argwhere(repeated)[0]
        raise ValueError(f"topk[{row}] must not repeat a label id ({ordered[row, place]}); rank each label once")
    return ranked[:, :k]


def _check_truth(truth: csr_matrix | csr_array) -> csr_matrix | csr_array:
    if not issparse(truth) or truth.format != "csr":
        raise TypeError(f"truth ({type(truth).__name__}) must be a scipy csr_matrix or csr_array; call .tocsr()")
    if truth.ndim != 2 or truth.nnz == 0:
        raise ValueError(f"truth {truth.shape} must be (N, L) and hold at least one label; nothing can be scored")
    if not (truth.data == 1).all():
        raise ValueError("truth must hold only ones; call .eliminate_zeros() and set .data to 1")
    ordered = truth if truth.has_sorted_indices else truth.sorted_indices()
    if not ordered.has_canonical_format:
        raise ValueError("truth must not hold a label twice in one row; call .sum_duplicates() and set .data to 1")
    return ordered


def _check_counts(counts: ArrayLike) -> NDArray[np.float64]:
    frequencies = np.asarray(counts, dtype=np.float64)
    if frequencies.ndim != 1:
        raise ValueError(f"counts {frequencies.shape} must be 1-D, one entry per label")
    if not (frequencies >= 0).all():
        raise ValueError(f"counts (down to {frequencies.min():g}) must not be negative or NaN")
    return frequencies


def _check_inverse_propensity(inverse_propensity: ArrayLike, num_labels: int) -> NDArray[np.float64]:
    weights = np.asarray(inverse_propensity, dtype=np.float64)
    if weights.shape != (num_labels,):
        raise ValueError(
            f"inverse_propensity {weights.shape} must be ({num_labels},), one entry per column of truth; "
            "give labels unseen in training the count 0"
        )
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(
            "inverse_propensity must be positive and finite; compute it with inverse_propensity(counts, N)"
        )
    return weights
