"""A text model: an encoder and an output layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from haste import topology
from haste.config import Config
from haste.nn.encoders import Bag
from haste.nn.linear import Positives
from haste.nn.output import HeadTail
from haste.optim._rule import RuleOptimizer

if TYPE_CHECKING:
    import scipy.sparse

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Model(nn.Module):
    """An encoder followed by a `HeadTail` output layer.

    Args:
        encoder: maps a batch to features (B, H).
        output: maps features to labels.
    """

    def __init__(self, encoder: Bag, output: HeadTail) -> None:
        super().__init__()
        self.encoder, self.output = encoder, output

    def loss(self, batch: tuple[Tensor, ...], positives: Positives) -> Tensor:
        """Return the summed loss of a batch; differentiable."""
        return self.output.loss(self.encoder(batch), positives)

    def step(self, batch: tuple[Tensor, ...], positives: Positives, update: RuleOptimizer) -> Tensor:
        """Update the output layer in one fused pass; ``backward`` of the result reaches the encoder."""
        return self.output.step(self.encoder(batch), positives, update)

    @torch.no_grad()
    def topk(self, batch: tuple[Tensor, ...], k: int, exclude: Positives | None = None) -> tuple[Tensor, Tensor]:
        """Return (scores, labels) of the k best labels, in the mode (training or not) that the module is in."""
        return self.output.topk(self.encoder(batch), k, exclude)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that train by ordinary backward: the encoder's and the projections'."""
        return [*self.encoder.parameters(), *self.output.projection_parameters()]


def build_model(config: Config, *, num_inputs: int, num_labels: int, dense_inputs: bool = False) -> Model:
    """Return the model of a configuration, initialised from its seed, rows in label order 0 .. num_labels - 1.

    Args:
        config: keys encoder, output, run.seed.
        num_inputs: terms of the vocabulary, or columns of given features.
        num_labels: labels with a training positive.
        dense_inputs: whether the features are given as rows of numbers, not as CSR.
    """
    encoder = Bag(
        num_inputs,
        config.encoder.features,
        config.encoder.hidden,
        config.encoder.dropout,
        seed=config.run.seed,
    )
    output = HeadTail(
        config.encoder.features,
        num_labels,
        num_head_labels=topology.num_head_labels(num_labels, config.output.head_ratio, config.output.group_size),
        fan_in=config.output.fan_in,
        group_size=config.output.group_size,
        private_features=config.output.private_features,
        dropout=config.encoder.dropout,
        loss=config.output.loss,
        dtype=_DTYPES[config.output.dtype],
        seed=config.run.seed,
    )
    return Model(encoder, output)


def initialize_output(
    model: Model,
    config: Config,
    *,
    features: scipy.sparse.csr_matrix,
    truth: scipy.sparse.csr_matrix,
    counts: np.ndarray,
) -> None:
    """Give the rows their labels, in groups, and the biases their start; call before training.

    Args:
        model: fresh from `build_model`.
        config: keys output.grouping, output.bias_init, run.seed.
        features: (N, V) training documents, for semantic groups.
        truth: (N, >= L) training positives.
        counts: (L,) training frequencies.
    """
    output, num_labels = model.output, len(counts)
    grouping, embeddings = config.output.grouping, None
    if grouping == "semantic":
        if output.tail is None or output.tail.indices is None:
            grouping = "frequency"  # labels that share no inputs gain nothing from clustering
        else:
            embeddings = topology.label_embeddings(features, truth[:, :num_labels], seed=config.run.seed)
    order = topology.order_labels(
        counts,
        output.num_head_labels,
        config.output.group_size,
        grouping,
        embeddings=embeddings,
        seed=config.run.seed,
    )
    output.set_label_order(torch.from_numpy(order))
    if config.output.bias_init == "prior":
        output.initialize_bias(counts, features.shape[0])
