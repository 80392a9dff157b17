"""The auxiliary objective: a small dense classifier of clusters of labels, beside the output layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from haste import topology
from haste.nn.linear import FanInLinear, Positives

if TYPE_CHECKING:
    import scipy.sparse

_POINTS = 1 << 16  # counted at a time
_GROUP_SIZE = 16  # rows that are computed together; the classifier is dense, so that they share nothing
_LAYER = 2  # of random numbers; the output layer takes 0 and 1


class Auxiliary(nn.Module):
    """A dense classifier whose classes, the meta-labels, are clusters of labels; a point has those of its labels.

        loss = sum softplus(z) - sum over the meta-labels of z,    z = W dropout(features) + b

    Sparse output layers pass the encoder little gradient at first; this passes more, and is dropped later.

    Args:
        in_features: H, width of the features.
        num_labels: L.
        clusters: meta-labels C, at most L.
        dropout: on the features.
        seed: of the initial weights.

    Raises:
        ValueError: sizes out of range.

    Spartex, arXiv 2411.03171, section 3; its released code mixes (1 - s) times a summed loss with s times a mean one,
    here both are sums.
    """

    cluster_of_label: Tensor

    def __init__(
        self,
        in_features: int,
        num_labels: int,
        clusters: int,
        *,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 1 <= clusters <= num_labels:
            raise ValueError(f"clusters ({clusters}) must lie between 1 and num_labels ({num_labels})")
        self.num_labels, self.clusters, self.dropout = num_labels, clusters, dropout
        self.layer = FanInLinear(in_features, clusters, None, _GROUP_SIZE, seed=seed, layer=_LAYER)
        self.register_buffer("cluster_of_label", clusters_in_order(torch.arange(num_labels), clusters))

    def set_order(self, order: np.ndarray) -> None:
        """Cut an order of the labels, (L,), in which neighbours are related, into clusters of about one size."""
        found = clusters_in_order(torch.from_numpy(order).to(self.cluster_of_label.device), self.clusters)
        self.cluster_of_label.copy_(found)

    def initialize_bias(self, truth: scipy.sparse.csr_matrix) -> None:
        """Start the biases from how often the meta-labels occur in (N, >= L) training positives."""
        counts, device = np.zeros(self.clusters, dtype=np.int64), self.cluster_of_label.device
        for start in range(0, truth.shape[0], _POINTS):
            part = truth[start : start + _POINTS, : self.num_labels]
            offsets, labels = (torch.from_numpy(x).to(device, torch.int64) for x in (part.indptr, part.indices))
            found = self.meta_labels((offsets, labels))[1]
            counts += torch.bincount(found, minlength=self.clusters).cpu().numpy()
        self.layer.initialize_bias(counts, truth.shape[0])

    def meta_labels(self, positives: Positives) -> Positives:
        """Return CSR labels of a batch as CSR meta-labels, each once a point."""
        offsets, labels = positives
        counts = offsets.diff()
        points = torch.repeat_interleave(torch.arange(len(counts), device=labels.device), counts)
        keys = torch.unique(points * self.clusters + self.cluster_of_label[labels])
        starts = torch.arange(len(offsets), device=keys.device) * self.clusters
        return torch.searchsorted(keys, starts), keys % self.clusters

    def loss(self, features: Tensor, positives: Positives) -> Tensor:
        """Return the summed loss of a batch; differentiable. positives are labels."""
        read = nn.functional.dropout(features, self.dropout, self.training)
        return self.layer.loss(read, self.meta_labels(positives))


def clusters_in_order(order: Tensor, clusters: int) -> Tensor:
    """Return the cluster of every label, (L,) int64: ``clusters`` runs of the order, as even as can be."""
    found = torch.empty_like(order, dtype=torch.int64)
    found[order] = torch.arange(len(order), device=order.device) * clusters // len(order)
    return found


def cluster_order(embeddings: np.ndarray | None, num_labels: int, clusters: int, *, seed: int) -> np.ndarray:
    """Return an order of the labels for `Auxiliary.set_order`: related ones together, or any without embeddings."""
    if embeddings is None:
        return np.random.default_rng(seed).permutation(num_labels)
    return topology.balanced_clusters(embeddings, -(-num_labels // clusters), seed=seed)
