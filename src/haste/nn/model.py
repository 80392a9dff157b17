"""A text model: an encoder and an output layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from haste import topology
from haste.config import Config
from haste.nn.auxiliary import Auxiliary, cluster_order
from haste.nn.encoders import Bag, Documents, Features, check_dense_columns
from haste.nn.inputs import telling_inputs
from haste.nn.linear import Positives
from haste.nn.output import HeadTail
from haste.nn.transformer import Transformer, build_transformer, check_transformer
from haste.optim._rule import RuleOptimizer

if TYPE_CHECKING:
    import scipy.sparse

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Model(nn.Module):
    """An encoder followed by a `HeadTail` output layer, perhaps after an intermediate layer of its own.

    Args:
        encoder: maps a batch to features (B, H).
        output: maps features to labels.
    """

    def __init__(self, encoder: Bag | Features | Transformer, output: HeadTail) -> None:
        super().__init__()
        self.encoder, self.output = encoder, output

    def loss(self, batch: Documents, positives: Positives) -> Tensor:
        """Return the summed loss of a batch; differentiable."""
        return self.output.loss(self.encoder(batch), positives)

    def step(self, batch: Documents, positives: Positives, update: RuleOptimizer) -> Tensor:
        """Update the output layer in one fused pass; ``backward`` of the result reaches the encoder."""
        return self.output.step(self.encoder(batch), positives, update)

    @torch.no_grad()
    def topk(self, batch: Documents, k: int, exclude: Positives | None = None) -> tuple[Tensor, Tensor]:
        """Return (scores, labels) of the k best labels, in the mode (training or not) that the module is in."""
        return self.output.topk(self.encoder(batch), k, exclude)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return what trains by ordinary backward: encoder or adapters, projections and the intermediate layer."""
        trained = (parameter for parameter in self.encoder.parameters() if parameter.requires_grad)
        return [*trained, *self.output.projection_parameters()]


def build_model(
    config: Config,
    *,
    num_inputs: int,
    num_labels: int,
    dense_inputs: bool = False,
    architecture: dict[str, Any] | None = None,
) -> Model:
    """Return the model of a configuration, initialised from its seed, rows in label order 0 .. num_labels - 1.

    Args:
        config: keys encoder, output, run.seed.
        num_inputs: terms or tokens of the vocabulary, or columns of given features.
        num_labels: labels with a training positive.
        dense_inputs: whether documents are rows of numbers, not CSR.
        architecture: of a transformer, as it was saved with a model; None = load encoder.name.

    Raises:
        ValueError: an encoder that cannot read such documents, or a fan_in above its width.
    """
    settings = config.encoder
    if settings.kind == "bag" and dense_inputs:
        raise ValueError("encoder.kind (bag) must be features for dense features; set encoder.kind: features")
    if settings.kind == "features" and not dense_inputs:
        check_dense_columns(num_inputs)
    if settings.kind != "transformer":
        _check_read(config, settings.features or num_inputs)
    encoder = build_encoder(config, num_inputs, architecture)
    width = encoder.out_features
    _check_read(config, width)
    output = HeadTail(
        width,
        num_labels,
        num_head_labels=topology.num_head_labels(num_labels, config.output.head_ratio, config.output.group_size),
        fan_in=config.output.fan_in,
        group_size=config.output.group_size,
        private_features=config.output.private_features,
        dropout=config.encoder.dropout,
        loss=config.output.loss,
        dtype=_DTYPES[config.output.dtype],
        seed=config.run.seed,
        block=config.output.block,
        duplicates=config.output.duplicates,
        intermediate=config.output.intermediate,
        activation=config.output.activation,
    )
    for module in (output.head_projection, output.tail_projection, output.intermediate):
        if module is not None:
            module.to(_DTYPES[settings.dtype])
    return Model(encoder, output)


def build_encoder(
    config: Config, num_inputs: int, architecture: dict[str, Any] | None = None
) -> Bag | Features | Transformer:
    """Return the encoder of a configuration; arguments as `build_model`."""
    settings, dtype = config.encoder, _DTYPES[config.encoder.dtype]
    if settings.kind == "transformer":
        transformer = build_transformer(config, num_inputs, architecture)
        transformer.cast(dtype)
        return transformer
    kind = Bag if settings.kind == "bag" else Features
    return kind(
        num_inputs,
        settings.features,
        settings.hidden,
        settings.dropout,
        normalize=settings.normalize,
        seed=config.run.seed,
    ).to(dtype)


def check_encoder(config: Config) -> None:
    """Raise ValueError for an encoder that cannot be trained; looks at no document, and at no weights."""
    if config.encoder.kind == "transformer":
        _check_read(config, check_transformer(config))


def _check_read(config: Config, width: int) -> None:
    """Raise ValueError where the output layer would read more than there is."""
    read = config.output.intermediate or width
    if config.output.fan_in > read:
        raise ValueError(
            f"output.fan_in ({config.output.fan_in}) must not exceed the {read} features that labels read; lower "
            "output.fan_in, or set encoder.features to a number above it"
        )


def initialize_output(
    model: Model,
    config: Config,
    *,
    features: scipy.sparse.csr_matrix | np.ndarray,
    truth: scipy.sparse.csr_matrix,
    counts: np.ndarray,
    alike: tuple[Any, scipy.sparse.csr_matrix] | None = None,
    num_points: int | None = None,
    ranking_counts: np.ndarray | None = None,
    sample: int = 10_000,
    auxiliary: Auxiliary | None = None,
) -> dict[str, float]:
    """Give the rows their labels, in groups, and the biases their start; call before training.

    Args:
        model: fresh from `build_model`.
        config: keys output.grouping, output.inputs, output.bias_init, run.seed.
        features: (N, V) training documents, sparse or dense, for semantic groups and their inputs; texts of labels too.
            Rows are asked for in chunks.
        truth: (N, >= L) training positives.
        counts: (L,) training frequencies.
        alike: features and positives by which labels are alike; default those two.
        num_points: documents that they were counted in; default N.
        ranking_counts: (L,) frequencies that head and groups go by; default counts.
        sample: documents that their projection to few dimensions is fitted on.
        auxiliary: gets its clusters and biases: of related labels where grouping is semantic, else of any.

    Returns:
        Of semantic groups: cosine, the mean similarity of a tail label to the centre of its group, and cosine_random,
        that of groups drawn at random; otherwise nothing.
    """
    output, num_labels = model.output, len(counts)
    grouping, embeddings = config.output.grouping, None
    if grouping == "semantic":
        shared = output.tail is not None and output.tail.indices is not None and output.tail.group_size > 1
        if shared or auxiliary is not None:
            embeddings = topology.label_embeddings(
                *(alike or (features, truth)), num_labels=num_labels, sample=sample, seed=config.run.seed
            )
        if not shared:
            grouping = "frequency"  # labels that share no inputs gain nothing from clustering
    if auxiliary is not None:
        auxiliary.set_order(cluster_order(embeddings, num_labels, auxiliary.clusters, seed=config.run.seed))
        auxiliary.initialize_bias(truth)
    ranking_counts = counts if ranking_counts is None else ranking_counts
    output.set_label_order(order_of_labels(output, config, ranking_counts, grouping, embeddings))
    if config.output.inputs == "positives":
        _read_telling_inputs(output, config, features, truth)
    if config.output.bias_init == "prior":
        output.initialize_bias(counts, features.shape[0] if num_points is None else num_points)
    return _similarity(output, config, embeddings) if grouping == "semantic" else {}


def _similarity(output: HeadTail, config: Config, embeddings: np.ndarray | None) -> dict[str, float]:
    tail = output.label_order[output.num_head_labels :].cpu().numpy()
    if embeddings is None or not len(tail):
        return {}
    orders = {"cosine": tail, "cosine_random": np.random.default_rng(config.run.seed).permutation(tail)}
    size = config.output.group_size
    return {name: topology.mean_cosine(embeddings[order], size) for name, order in orders.items()}


def _read_telling_inputs(
    output: HeadTail, config: Config, features: scipy.sparse.csr_matrix | np.ndarray, truth: scipy.sparse.csr_matrix
) -> None:
    tail = output.tail
    if tail is None or tail.indices is None:
        return
    labels = output.label_order[output.num_head_labels :].cpu().numpy()
    sizes = {"fan_in": tail.fan_in, "group_size": tail.group_size}
    found = telling_inputs(features, truth, labels, **sizes, normalize=config.encoder.normalize)
    tail.indices.copy_(torch.from_numpy(found))


def order_of_labels(
    output: HeadTail, config: Config, counts: np.ndarray, grouping: str, embeddings: np.ndarray | None
) -> Tensor:
    """Return the label of every row, (L,) int64: the most frequent first, the tail in groups of the configuration."""
    sizes = output.num_head_labels, config.output.group_size
    return torch.from_numpy(
        topology.order_labels(counts, *sizes, grouping, embeddings=embeddings, seed=config.run.seed)
    )
