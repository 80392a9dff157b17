"""Which inputs a group reads, and which labels share a group.

Index rows are drawn without duplicates and sorted; labels are ordered so that consecutive rows form groups: the most
frequent first (the head), then the tail in groups of related labels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from haste.ops import _random as random
from haste.ops._rewire import random_keys

if TYPE_CHECKING:
    import scipy.sparse

GROUPINGS = ("semantic", "frequency", "random")
_DRAW = 1 << 21  # random keys drawn at a time
_CHUNK = 1 << 22  # numbers of points or documents taken at a time


def index_dtype(in_features: int) -> torch.dtype:
    """Return the dtype of index rows: int16 up to 32,767 inputs, else int32."""
    return torch.int16 if in_features <= 32_767 else torch.int32


def draw_indices(
    in_features: int,
    num_groups: int,
    fan_in: int,
    *,
    seed: int,
    layer: int = 0,
    first_group: int = 0,
    block: int = 1,
    duplicates: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw ``fan_in`` inputs for every group, uniformly; distinct ones unless ``duplicates``.

    Args:
        in_features, num_groups, fan_in: sizes H, G, F.
        seed, layer: of the random stream.
        first_group: global number of the first group; group k's row depends on seed, layer and first_group + k alone.
        block: inputs are drawn as whole aligned blocks of this many (16: the block-sparse baseline).
        duplicates: draw with replacement, as HASTE's released code does; not with blocks.

    Returns:
        (G, F) int16 or int32 (`index_dtype`), every row sorted, without duplicates unless they are wanted.

    Raises:
        ValueError: fan_in > in_features, or block does not divide both.
    """
    check_fan_in(fan_in, in_features)
    if block < 1:
        raise ValueError(f"block ({block}) must be at least 1")
    if in_features % block or fan_in % block:
        raise ValueError(f"block ({block}) must divide in_features ({in_features}) and fan_in ({fan_in})")
    units, chosen = in_features // block, fan_in // block
    rows = torch.empty((num_groups, fan_in), dtype=index_dtype(in_features), device=device)
    device = rows.device
    if rows.is_meta:
        return rows
    if duplicates:
        length = max(1, _DRAW // fan_in)
        for start in range(0, num_groups, length):
            count = min(length, num_groups - start)
            drawn = random_inputs(
                first_group + start, count, fan_in, in_features, seed=seed, layer=layer, step=0, device=device
            )
            rows[start : start + count] = drawn.sort(dim=1).values.to(rows.dtype)
        return rows
    length = max(1, _DRAW // (4 * units))
    for start in range(0, num_groups, length):
        count = min(length, num_groups - start)
        keys = random_keys(first_group + start, count, units, seed=seed, layer=layer, step=0, device=device)
        drawn = keys.topk(chosen, dim=1, largest=False, sorted=False).indices.sort(dim=1).values
        inputs = drawn[:, :, None] * block + torch.arange(block, device=device)
        rows[start : start + count] = inputs.view(count, fan_in).to(rows.dtype)
    return rows


def random_inputs(
    first: int, groups: int, count: int, in_features: int, *, seed: int, layer: int, step: int, device: torch.device
) -> Tensor:
    """Return ``count`` inputs of every group, drawn with replacement: int64 (groups, count)."""
    words = random.words32(
        first, groups, count, seed=seed, step=step, layer=layer, stream=random.STRUCTURE, device=device
    )
    return (words * in_features) >> 32


def check_fan_in(fan_in: int, in_features: int) -> None:
    """Raise ValueError unless 1 <= fan_in <= in_features."""
    if not 1 <= fan_in <= in_features:
        if fan_in < 1:
            raise ValueError(f"fan_in ({fan_in}) must be at least 1")
        raise ValueError(
            f"fan_in ({fan_in}) must not exceed in_features ({in_features}); lower fan_in or widen the encoder"
        )


def check_indices(indices: Tensor, in_features: int, *, duplicates: bool = False) -> None:
    """Raise ValueError unless every row is sorted, without duplicates (but where allowed), within [0, in_features)."""
    if indices.min() < 0 or indices.max() >= in_features:
        raise ValueError(
            f"indices ({int(indices.min())} to {int(indices.max())}) must lie in [0, {in_features}), the inputs"
        )
    for start in range(0, len(indices), max(1, _DRAW // indices.shape[1])):
        part = indices[start : start + max(1, _DRAW // indices.shape[1])]
        previous = part[:, :-1] - 1 if duplicates else part[:, :-1]
        bad = (part[:, 1:] <= previous).any(dim=1).nonzero()
        if len(bad):
            must = "sorted" if duplicates else "sorted and without duplicates"
            raise ValueError(f"indices of group {start + int(bad[0])} must be {must}")


def num_head_labels(num_labels: int, head_ratio: float, group_size: int) -> int:
    """Return the size of the head: head_ratio of the labels, rounded up to whole groups, at most all."""
    groups = int(np.ceil(num_labels * head_ratio / group_size - 1e-9))
    return min(num_labels, groups * group_size)


def order_labels(
    counts: np.ndarray,
    num_head: int,
    group_size: int,
    grouping: str,
    *,
    embeddings: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Return label_order (L,) int64: the label of every row; the first ``num_head`` rows are the head.

    Args:
        counts: (L,) training frequencies.
        num_head: labels of the head, the most frequent (ties: lower label).
        group_size: S; consecutive tail rows form a group.
        grouping: ``semantic`` (balanced clusters of embeddings), ``frequency`` (consecutive ranks), ``random``.
        embeddings: (L, d) float32, for ``semantic``; labels with a zero row follow the groups by frequency.
        seed: of ``random`` and of the clustering.
    """
    by_frequency = np.argsort(-counts.astype(np.int64), kind="stable")
    head, tail = by_frequency[:num_head], by_frequency[num_head:]
    if grouping == "random":
        tail = np.random.default_rng(seed).permutation(tail)
    elif grouping == "semantic":
        if embeddings is None:
            raise ValueError("grouping (semantic) needs label embeddings; pass them, or use grouping: frequency")
        known = np.any(embeddings, axis=1)[tail]
        clustered = balanced_clusters(embeddings, group_size, points=tail[known], seed=seed)
        tail = np.concatenate((clustered, tail[~known]))
    elif grouping != "frequency":
        raise ValueError(f"grouping ({grouping}) must be one of {', '.join(GROUPINGS)}")
    return np.concatenate((head, tail)).astype(np.int64)


def balanced_clusters(
    embeddings: np.ndarray, group_size: int, *, points: np.ndarray | None = None, seed: int = 0, iterations: int = 4
) -> np.ndarray:
    """Order points so that consecutive runs of ``group_size`` are clusters: balanced recursive bisection.

    Every segment is split where its points, projected on the difference of its halves' means (balanced 2-means from a
    random direction), pass the place that leaves whole groups on both sides. All segments of a level at once:
    O(L log L) time; memory: the order, and the directions and halves of the groups, O(L d / S).

    Args:
        embeddings: (L, d) float32.
        group_size: S. Only the last group may be short.
        points: rows of embeddings to order; default all.
        seed: of the first directions.
        iterations: 2-means iterations of every level.

    Returns:
        (L,) int64 permutation of the points.
    """
    order = np.arange(len(embeddings)) if points is None else points
    num = len(order)
    bounds = np.array([0, num])
    rng = np.random.default_rng(seed)
    while np.diff(bounds).max(initial=0) > group_size:
        sizes = np.diff(bounds)
        groups = -(-sizes // group_size)
        cuts = bounds[:-1] + np.minimum(sizes, -(-groups // 2) * group_size)
        segment = np.repeat(np.arange(len(sizes)), sizes)
        direction = rng.standard_normal((len(sizes), embeddings.shape[1]), dtype=np.float32)
        for _ in range(iterations):
            score = np.empty(num, dtype=np.float32)
            for part in _parts(num, embeddings.shape[1]):
                score[part] = np.einsum("ld,ld->l", embeddings[order[part]], direction[segment[part]])
            order = order[np.lexsort((score, segment))]
            direction = _difference_of_halves(embeddings, order, bounds, cuts)
        bounds = np.unique(np.concatenate((bounds, cuts)))
    return order


def _difference_of_halves(
    embeddings: np.ndarray, order: np.ndarray, bounds: np.ndarray, cuts: np.ndarray
) -> np.ndarray:
    """Return mean(right) - mean(left) of every segment of the order; zero where a segment is not cut."""
    edges = np.unique(np.concatenate((bounds, cuts)))  # the halves, one after another
    totals = np.zeros((len(edges) - 1, embeddings.shape[1]), dtype=np.float64)
    for part in _parts(len(order), embeddings.shape[1]):
        first, last = np.searchsorted(edges, (part.start, part.stop - 1), side="right") - 1
        starts = np.maximum(edges[first : last + 1] - part.start, 0)
        totals[first : last + 1] += np.add.reduceat(embeddings[order[part]], starts, axis=0, dtype=np.float64)
    totals /= np.diff(edges)[:, None]
    whole = cuts == bounds[1:]
    left = np.searchsorted(edges, bounds[:-1])
    difference = totals[np.where(whole, left, left + 1)]
    difference -= totals[left]
    return difference.astype(np.float32)


def _parts(num: int, width: int) -> Iterator[slice]:
    """Yield slices of ``num`` rows that hold a bounded number of values each."""
    length = max(1, _CHUNK // max(1, width))
    for start in range(0, num, length):
        yield slice(start, min(start + length, num))


def mean_cosine(embeddings: np.ndarray, group_size: int) -> float:
    """Return the mean cosine of labels (L, d), unit or zero rows, to the centres of their groups: runs of that size."""
    starts = np.arange(0, len(embeddings), group_size)
    total = 0.0
    for part in _parts(len(starts), group_size * embeddings.shape[1]):
        here = embeddings[part.start * group_size : part.stop * group_size]
        sums = np.add.reduceat(here, starts[part] - starts[part.start], axis=0, dtype=np.float64)
        total += float(np.linalg.norm(sums, axis=1).sum())  # of unit rows: their cosines to the sum, added
    return total / max(1, int(np.any(embeddings, axis=1).sum()))


def label_embeddings(
    features: scipy.sparse.csr_matrix | np.ndarray,
    truth: scipy.sparse.csr_matrix,
    *,
    num_labels: int | None = None,
    dimensions: int = 128,
    sample: int = 10_000,
    seed: int = 0,
) -> np.ndarray:
    """Embed labels as the normalised mean of their positives' features (PIFA), projected to few dimensions.

    Args:
        features: (N, V) document features, sparse or dense; may lie on the disk, read in chunks.
        truth: (N, >= L) sparse positives of the training split.
        num_labels: L, the first columns of truth; default all.
        dimensions: d, at most: a randomised SVD fitted on ``sample`` documents where there are more features.

    Returns:
        (L, d) float32 of unit rows; zero for labels without positives.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize

    num, width = features.shape
    rows = np.random.default_rng(seed).permutation(num)[:sample]
    svd = None
    if width > dimensions:
        svd = TruncatedSVD(max(1, min(dimensions, len(rows) - 1)), n_iter=2, random_state=seed)
        with np.errstate(invalid="ignore"):  # equal documents have no variance to explain
            svd.fit(features[np.sort(rows)])
    num_labels = truth.shape[1] if num_labels is None else num_labels
    embeddings = np.zeros((num_labels, width if svd is None else svd.n_components), dtype=np.float32)
    for part in _parts(num, width if isinstance(features, np.ndarray) else embeddings.shape[1]):
        documents = features[part] if svd is None else svd.transform(features[part])
        documents = documents if isinstance(documents, np.ndarray) else documents.toarray()
        positives = truth[part, :num_labels].tocsc()
        found = np.flatnonzero(np.diff(positives.indptr))
        embeddings[found] += positives[:, found].T.astype(np.float32) @ normalize(documents).astype(np.float32)
    return normalize(embeddings, copy=False)


def initial_weights(target: Tensor, *, dense: bool, seed: int, layer: int, first_row: int, num_labels: int) -> None:
    """Fill weights in place: U(-1/sqrt(F), 1/sqrt(F)), the dense head N(0, 0.02); padded rows 0.

    Args:
        target: (G, S, F) float32, float64 or bfloat16.
        dense: whether F = H.
        seed, layer, first_row: coordinates of the random numbers; the same for any sharding.
        num_labels: rows that are labels.
    """
    fan_in = target.shape[-1]
    if target.is_meta:
        return
    rows = target.view(-1, fan_in)
    length = max(1, (_DRAW >> 3) // fan_in)
    draw = functools.partial(
        random.normal if dense else random.uniform,
        columns=fan_in,
        seed=seed,
        step=0,
        layer=layer,
        stream=random.WEIGHT,
        device=target.device,
    )
    for start in range(0, len(rows), length):
        count = min(length, len(rows) - start)
        values = draw(first_row + start, count)
        values = values.mul_(0.02) if dense else values.sub_(0.5).mul_(2 / fan_in**0.5)
        values[max(0, num_labels - start) :] = 0
        rows[start : start + count] = values.to(target.dtype)
