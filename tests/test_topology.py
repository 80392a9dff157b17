from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from haste import topology
from haste.topology import balanced_clusters, check_indices, draw_indices, label_embeddings, order_labels

SIZES = [(37, 50, 11), (37, 5, 37), (16, 9, 1), (768, 20, 128), (40_000, 3, 100)]


@pytest.mark.parametrize(("in_features", "num_groups", "fan_in"), SIZES)
def test_rows_are_sorted_distinct_inputs(in_features: int, num_groups: int, fan_in: int) -> None:
    rows = draw_indices(in_features, num_groups, fan_in, seed=3)
    assert rows.shape == (num_groups, fan_in)
    assert rows.dtype == (torch.int16 if in_features <= 32_767 else torch.int32)
    for row in rows.tolist():
        assert row == sorted(set(row))
        assert row[0] >= 0
        assert row[-1] < in_features
    check_indices(rows, in_features)


@pytest.mark.parametrize(("in_features", "dtype"), [(32_767, torch.int16), (32_768, torch.int32)])
def test_the_dtype_holds_every_input(in_features: int, dtype: torch.dtype) -> None:
    assert topology.index_dtype(in_features) == dtype
    assert in_features - 1 <= torch.iinfo(dtype).max


def test_inputs_are_drawn_uniformly() -> None:
    counts = torch.bincount(draw_indices(20, 20_000, 5, seed=1).long().flatten(), minlength=20)
    share = 0.25
    standard_error = (20_000 * share * (1 - share)) ** 0.5
    assert ((counts - 20_000 * share).abs() < 5 * standard_error).all()


@pytest.mark.parametrize("block", [1, 4])
def test_rows_depend_on_seed_layer_and_group_alone(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(**settings: int) -> torch.Tensor:
        return draw_indices(40, **({"num_groups": 30, "fan_in": 8, "seed": 3, "block": block} | settings))

    whole = draw()
    for elements in (1, 700, 1 << 21):
        monkeypatch.setattr(topology, "_DRAW", elements)
        assert torch.equal(draw(), whole)
    assert torch.equal(torch.cat((draw(num_groups=13), draw(num_groups=17, first_group=13))), whole)
    assert not torch.equal(draw(seed=4), whole)
    assert not torch.equal(draw(layer=1), whole)


@pytest.mark.parametrize("dense", [True, False])
def test_initial_weights_depend_on_the_row_alone(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(groups: int, first_row: int = 0, num_labels: int = 50) -> torch.Tensor:
        weight = torch.empty(groups, 4, 11)
        topology.initial_weights(weight, dense=dense, seed=3, layer=1, first_row=first_row, num_labels=num_labels)
        return weight

    whole = fill(13)
    assert not whole.flatten(0, 1)[50:].any()
    for elements in (1, 8 * 100):
        monkeypatch.setattr(topology, "_DRAW", elements)
        assert torch.equal(fill(13), whole)
    assert torch.equal(torch.cat((fill(5, num_labels=20), fill(8, first_row=20, num_labels=30))), whole)


def test_blocks_are_whole_and_aligned() -> None:
    rows = draw_indices(64, 50, 24, seed=1, block=8).long().view(50, 3, 8)
    assert (rows[:, :, 0] % 8 == 0).all()
    assert torch.equal(rows, rows[:, :, :1] + torch.arange(8))
    assert len(rows[:, :, 0].unique()) == 8


@pytest.mark.parametrize(
    ("in_features", "fan_in", "block", "message"),
    [
        (384, 512, 1, r"fan_in \(512\) must not exceed in_features \(384\); lower fan_in or widen the encoder"),
        (384, 0, 1, r"fan_in \(0\) must be at least 1"),
        (40, 12, 8, r"block \(8\) must divide in_features \(40\) and fan_in \(12\)"),
        (40, 8, 0, r"block \(0\) must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit(in_features: int, fan_in: int, block: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_indices(in_features, 3, fan_in, seed=0, block=block)


@pytest.mark.parametrize("length", [1, 1 << 21])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, 3, 3], "indices of group 4 must be sorted and without duplicates"),
        ([0, 5, 3], "indices of group 4 must be sorted and without duplicates"),
        ([0, 5, 9], r"indices \(0 to 9\) must lie in \[0, 9\), the inputs"),
        ([-1, 5, 8], r"indices \(-1 to 8\) must lie in \[0, 9\), the inputs"),
    ],
)
def test_rows_that_are_none(row: list[int], message: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "_DRAW", length)
    rows = torch.tensor([[0, 1, 8]] * 6, dtype=torch.int16)
    check_indices(rows, 9)
    rows[4] = torch.tensor(row)
    with pytest.raises(ValueError, match=message):
        check_indices(rows, 9)


# Labels to rows


@pytest.mark.parametrize(
    ("num_labels", "ratio", "group_size", "expected"),
    [(1000, 0.1, 16, 112), (1000, 0.0, 16, 0), (1000, 1.0, 16, 1000), (1000, 0.16, 16, 160), (5, 0.5, 16, 5)],
)
def test_the_head_is_whole_groups(num_labels: int, ratio: float, group_size: int, expected: int) -> None:
    assert topology.num_head_labels(num_labels, ratio, group_size) == expected


def _planted(groups: int, group_size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return unit embeddings of well separated clusters in random order, and the cluster of every label."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((groups, 24))
    cluster = rng.permutation(np.repeat(np.arange(groups), group_size))
    points = centres[cluster] + 0.15 * rng.standard_normal((len(cluster), 24))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), cluster


def _purity(cluster: np.ndarray, group_size: int) -> float:
    """Return the share of labels in the most common cluster of their group."""
    groups = [cluster[start : start + group_size] for start in range(0, len(cluster), group_size)]
    return sum(np.bincount(group).max() for group in groups) / len(cluster)


@pytest.mark.parametrize("num", [0, 1, 7, 8, 9, 100, 101, 1000])
@pytest.mark.parametrize("group_size", [1, 8])
def test_clusters_are_a_permutation(num: int, group_size: int) -> None:
    embeddings = np.random.default_rng(0).standard_normal((num, 5)).astype(np.float32)
    order = balanced_clusters(embeddings, group_size)
    assert sorted(order.tolist()) == list(range(num))
    assert np.array_equal(order, balanced_clusters(embeddings, group_size))


@pytest.mark.parametrize("groups", [2, 8, 13])
def test_planted_clusters_are_recovered(groups: int) -> None:
    embeddings, cluster = _planted(groups, 16)
    order = balanced_clusters(embeddings, 16, seed=1)
    assert _purity(cluster[order], 16) > 0.85
    assert _purity(cluster, 16) < 0.65


def _within(embeddings: np.ndarray, group_size: int) -> float:
    """Return the mean squared length of group means of unit embeddings: 1 where groups are points."""
    whole = len(embeddings) // group_size * group_size
    means = embeddings[:whole].reshape(-1, group_size, embeddings.shape[1]).mean(axis=1)
    return float((means**2).sum(axis=1).mean())


@pytest.mark.parametrize("num", [500, 1003])
def test_groups_are_closer_than_random_ones(num: int) -> None:
    points = np.random.default_rng(2).standard_normal((num, 3)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    order = balanced_clusters(points, 10)
    assert _within(points[order], 10) > 0.8
    assert _within(points, 10) < 0.3


def test_equal_points_still_make_full_groups() -> None:
    order = balanced_clusters(np.ones((50, 4), dtype=np.float32), 8)
    assert sorted(order.tolist()) == list(range(50))


COUNTS = np.array([3, 9, 1, 9, 4, 0, 7, 2, 2, 8])


def test_the_head_is_the_most_frequent_and_ties_go_to_the_lower_label() -> None:
    order = order_labels(COUNTS, 4, 2, "frequency")
    assert order.tolist() == [1, 3, 9, 6, 4, 0, 7, 8, 2, 5]
    assert order.dtype == np.int64
    for grouping in ("random", "semantic"):
        other = order_labels(COUNTS, 4, 2, grouping, embeddings=np.eye(10, dtype=np.float32))
        assert other[:4].tolist() == [1, 3, 9, 6]
        assert sorted(other.tolist()) == list(range(10))


def test_a_random_tail_follows_the_seed() -> None:
    counts = np.arange(100)
    first, again, other = (order_labels(counts, 10, 4, "random", seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, order_labels(counts, 10, 4, "frequency"))


def test_a_semantic_tail_groups_what_belongs_together() -> None:
    embeddings, cluster = _planted(8, 16)
    counts = np.random.default_rng(3).integers(1, 50, len(embeddings))
    order = order_labels(counts, 0, 16, "semantic", embeddings=embeddings)
    assert _purity(cluster[order], 16) > 0.85


def test_labels_without_an_embedding_follow_by_frequency() -> None:
    embeddings = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
    unknown = [5, 7, 0]
    embeddings[unknown] = 0
    order = order_labels(COUNTS, 2, 2, "semantic", embeddings=embeddings)
    assert order[:2].tolist() == [1, 3]
    assert order[-3:].tolist() == [0, 7, 5]
    none = order_labels(COUNTS, 2, 2, "semantic", embeddings=np.zeros((10, 4), dtype=np.float32))
    assert np.array_equal(none, order_labels(COUNTS, 2, 2, "frequency"))


def test_a_head_of_all_labels() -> None:
    for grouping in topology.GROUPINGS:
        order = order_labels(COUNTS, 10, 2, grouping, embeddings=np.ones((10, 4), dtype=np.float32))
        assert sorted(order.tolist()) == list(range(10))


@pytest.mark.parametrize(
    ("grouping", "message"),
    [
        ("alphabetic", r"grouping \(alphabetic\) must be one of semantic, frequency, random"),
        ("semantic", r"grouping \(semantic\) needs label embeddings; pass them, or use grouping: frequency"),
    ],
)
def test_groupings_that_do_not_fit(grouping: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        order_labels(COUNTS, 2, 2, grouping)


def _documents(num_labels: int = 30, per_label: int = 6) -> tuple[scipy.sparse.csr_matrix, scipy.sparse.csr_matrix]:
    """Return documents and truth: labels 5 j .. 5 j + 4 share the words of topic j; the last label has no positives."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_labels - 1), per_label)
    words = np.zeros((len(labels), 200))
    for row, label in enumerate(labels):
        words[row, 20 * (label // 5) + rng.choice(20, 8, replace=False)] = rng.random(8) + 0.5
        words[row, 120 + rng.choice(80, 3, replace=False)] = 0.3
    truth = scipy.sparse.csr_matrix((np.ones(len(labels)), (np.arange(len(labels)), labels)), (len(labels), num_labels))
    return scipy.sparse.csr_matrix(words), truth


def test_label_embeddings_are_unit_means_of_their_documents() -> None:
    features, truth = _documents()
    embeddings = label_embeddings(features, truth, dimensions=16)
    assert embeddings.shape == (30, 16)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings[:-1], axis=1), 1, rtol=1e-5)
    assert not embeddings[-1].any()
    similarity = embeddings[:-1] @ embeddings[:-1].T
    topic = np.arange(29) // 5
    same = topic[:, None] == topic[None]
    assert similarity[same].min() > similarity[~same].max() + 0.1
    assert np.array_equal(embeddings, label_embeddings(features, truth, dimensions=16))


def test_label_embeddings_of_little_data() -> None:
    """Features that are few already are not projected."""
    features, truth = scipy.sparse.csr_matrix(np.eye(3)), scipy.sparse.csr_matrix(np.ones((3, 2)))
    for rows in (features, features.toarray()):
        np.testing.assert_allclose(label_embeddings(rows, truth, dimensions=128), np.full((2, 3), 3**-0.5), rtol=1e-6)
    assert label_embeddings(features, truth, dimensions=2).shape == (2, 2)
    assert label_embeddings(features, truth, dimensions=2, sample=2).shape == (2, 1)
    assert label_embeddings(features, truth, dimensions=2, sample=1).shape == (2, 1)


@pytest.mark.parametrize("dimensions", [16, 500])
def test_label_embeddings_of_dense_features_and_in_chunks(
    monkeypatch: pytest.MonkeyPatch, dimensions: int, tmp_path: Path
) -> None:
    features, truth = _documents()
    expected = label_embeddings(features, truth, num_labels=28, dimensions=dimensions)
    assert expected.shape == (28, min(dimensions, 200))
    np.save(tmp_path / "x.npy", features.toarray().astype(np.float32))
    dense = np.load(tmp_path / "x.npy", mmap_mode="r")
    monkeypatch.setattr(topology, "_CHUNK", 1000)  # of 174 documents
    for rows in (features, dense):
        found = label_embeddings(rows, truth, num_labels=28, dimensions=dimensions)
        np.testing.assert_allclose(np.abs(found @ expected.T), np.abs(expected @ expected.T), atol=1e-4)


@pytest.mark.parametrize("chunk", [7, 64, 640])
def test_clusters_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    embeddings = np.random.default_rng(0).standard_normal((201, 5)).astype(np.float32)
    expected = balanced_clusters(embeddings, 8)
    monkeypatch.setattr(topology, "_CHUNK", chunk)
    assert np.array_equal(balanced_clusters(embeddings, 8), expected)
    half = np.arange(0, 201, 2)
    assert np.array_equal(balanced_clusters(embeddings, 8, points=half), half[balanced_clusters(embeddings[half], 8)])
