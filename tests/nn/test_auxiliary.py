import numpy as np
import pytest
import scipy.sparse
import torch

from haste import optim
from haste.nn import Auxiliary
from haste.nn.auxiliary import cluster_order
from layer_cases import random_positives

L, C, H = 23, 5, 12


def _ready() -> tuple[Auxiliary, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    auxiliary = Auxiliary(H, L, C, seed=3)
    auxiliary.set_order(np.random.default_rng(0).permutation(L))
    generator = torch.Generator().manual_seed(1)
    return auxiliary, torch.randn(9, H, generator=generator), random_positives(9, L, generator)


def test_every_cluster_has_labels_and_about_as_many() -> None:
    auxiliary, _, _ = _ready()
    sizes = torch.bincount(auxiliary.cluster_of_label, minlength=C)
    assert sizes.tolist() == [5, 5, 4, 5, 4]


def test_meta_labels_are_the_distinct_clusters_of_a_points_labels() -> None:
    auxiliary, _, (offsets, labels) = _ready()
    starts, found = auxiliary.meta_labels((offsets, labels))
    for point in range(9):
        own = labels[offsets[point] : offsets[point + 1]]
        assert found[starts[point] : starts[point + 1]].tolist() == sorted(
            {int(auxiliary.cluster_of_label[label]) for label in own}
        )
    assert offsets[1] == 0  # a point without labels
    assert len(found) < len(labels)


def test_the_loss_is_that_of_a_dense_layer_on_meta_labels() -> None:
    auxiliary, features, positives = _ready()
    starts, found = auxiliary.meta_labels(positives)
    truth = torch.zeros(9, C)
    truth[torch.repeat_interleave(torch.arange(9), starts.diff()), found] = 1
    logits = auxiliary.layer(features)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
    torch.testing.assert_close(auxiliary.loss(features, positives), expected)


def test_biases_start_from_the_frequencies_of_clusters() -> None:
    auxiliary, _, (offsets, labels) = _ready()
    ones = np.ones(len(labels), np.float32)
    truth = scipy.sparse.csr_matrix((ones, labels.numpy(), offsets.numpy()), shape=(9, L + 4))
    auxiliary.initialize_bias(truth)
    counts = torch.bincount(auxiliary.meta_labels((offsets, labels))[1], minlength=C).double()
    expected = torch.log((counts + 0.5) / (9 - counts + 0.5)).float()
    torch.testing.assert_close(auxiliary.layer.bias.detach().flatten()[:C], expected)


def test_it_learns_and_gives_the_features_a_gradient() -> None:
    auxiliary, features, positives = _ready()
    features.requires_grad_()
    update = optim.SGD(auxiliary.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        loss = auxiliary.loss(features, positives)
        loss.backward()
        update.step()
        update.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert features.grad is not None
    assert features.grad.abs().min() > 0


def test_related_labels_share_a_cluster() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(4, 8, dtype=np.float32)
    of_label = rng.permutation(np.repeat(np.arange(4), 6))
    embeddings = centres[of_label] + 0.01 * rng.standard_normal((24, 8)).astype(np.float32)
    auxiliary = Auxiliary(H, 24, 4)
    auxiliary.set_order(cluster_order(embeddings, 24, 4, seed=0))
    clusters = auxiliary.cluster_of_label.numpy()
    assert len({(a, b) for a, b in zip(clusters, of_label, strict=True)}) == 4
    assert sorted(cluster_order(None, 24, 4, seed=0)) == list(range(24))


@pytest.mark.parametrize("clusters", [0, 24])
def test_as_many_clusters_as_labels_at_most(clusters: int) -> None:
    with pytest.raises(ValueError, match=rf"clusters \({clusters}\) must lie between 1 and num_labels \(23\)"):
        Auxiliary(H, L, clusters)
