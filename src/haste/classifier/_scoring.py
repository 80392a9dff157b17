"""Scores of documents that a classifier has read: the best, those above zero, or all."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from haste.classifier._inputs import Inputs
from haste.data.dataset import Split
from haste.train.batches import batch_of
from haste.train.evaluate import predict_topk
from haste.train.model_folder import TrainedModel

_BATCH = 256
_FIRST_K = 32  # labels looked at for those above zero
_MOST_SCORES = 2**28  # in a matrix of all scores: 2 GiB


def topk(trained: TrainedModel, inputs: Inputs, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, k) float32 and label ids (N, k) of the best labels; fewer columns where fewer were trained."""
    if k < 1:
        raise ValueError(f"k ({k}) must be at least 1")
    return predict_topk(trained.model, _split(trained, inputs), min(k, trained.labels.num_labels))


def above_zero(trained: TrainedModel, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Every (row, label id) whose score is above 0; nothing of size (N, L) is held."""
    split, num_labels, k = _split(trained, inputs), trained.labels.num_labels, _FIRST_K
    found = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    rows = np.arange(len(split))
    while len(rows):
        part = replace(split, ids=[""] * len(rows), features=split.features[rows], truth=split.truth[rows])
        scores, ids = predict_topk(trained.model, part, min(k, num_labels))
        more = (scores[:, -1] > 0) & (scores.shape[1] < num_labels)
        row, rank = np.nonzero((scores > 0) & ~more[:, None])
        found.append((rows[row], ids[row, rank]))
        rows, k = rows[more], 4 * k
    return np.concatenate([row for row, _ in found]), np.concatenate([ids for _, ids in found])


def all_scores(trained: TrainedModel, inputs: Inputs) -> np.ndarray:
    """(N, L) float64 by label id; of labels without a training document, the log odds of half of one.

    Raises:
        ValueError: N L is beyond 2^28.
    """
    split, model, labels = _split(trained, inputs), trained.model, trained.labels
    if len(split) * len(labels.names) > _MOST_SCORES:
        raise ValueError(
            f"X ({len(split):,} documents) must give at most {_MOST_SCORES:,} scores at a time, with "
            f"{len(labels.names):,} labels; use predict_topk, or fewer documents"
        )
    scores = np.full((len(split), len(labels.names)), -np.log(2 * trained.num_points + 1))
    device = next(model.parameters()).device
    with torch.no_grad():
        for start in range(0, len(split), _BATCH):
            rows = np.arange(start, min(start + _BATCH, len(split)))
            documents, _ = batch_of(split, rows, device)
            scores[rows, : labels.num_labels] = model.output(model.encoder(documents)).double().cpu().numpy()
    return scores


def _split(trained: TrainedModel, inputs: Inputs) -> Split:
    features: Any = inputs if trained.vectorizer is None else trained.vectorizer.transform(inputs)
    truth = csr_matrix((features.shape[0], len(trained.labels.names)), dtype=np.float32)
    return Split("input", [""] * features.shape[0], features, truth, trained.labels.num_labels)
