"""Several models as one: the mean of their log-probabilities."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from haste.data.dataset import Split
from haste.data.source import Record
from haste.train.evaluate import CHUNK, K, as_split, batch_of, describe, find_model, read_split, score_ranking
from haste.train.model_folder import TrainedModel, load_model

_CANDIDATES = 50  # best labels of every model: what all of them rank lower is not looked at
_BATCH = 256


def load_together(runs: Sequence[Path], *, device: str = "auto") -> list[TrainedModel]:
    """Load the models of runs; several must know the same labels and give probabilities.

    Raises:
        ValueError: they do not.
    """
    models = [load_model(find_model(run), device=device) for run in runs]
    if len(models) == 1:
        return models
    known = set(_known(models[0]))
    for run, model in zip(runs, models, strict=True):
        if model.config.output.loss != "bce":
            raise ValueError(
                f"{run}: output.loss ({model.config.output.loss}) must be bce, whose scores can be averaged"
            )
        if set(_known(model)) != known:
            odd = len(known.symmetric_difference(_known(model)))
            raise ValueError(
                f"{run}: its labels must be those of {runs[0]}, {odd:,} are not; train both on the same documents"
            )
    return models


def rank_together(
    models: Sequence[TrainedModel], splits: Sequence[Split], k: int, *, tick: Callable[[], None] = lambda: None
) -> tuple[np.ndarray, np.ndarray]:
    """Rank labels by the mean over models m of log sigmoid(z_m), among the 50 best of every model.

    Args:
        models: of the same labels, see `load_together`.
        splits: the same N documents, in the terms of each model.
        k: labels a document, 50 at most.
        tick: called before every batch; may raise to stop.

    Returns:
        mean log-probabilities (N, k) float32 and label ids of the first model (N, k) int64; -inf and -1 where there
        are fewer than k labels.
    """
    size = len(splits[0])
    scores, ids = np.full((size, k), -np.inf, np.float32), np.full((size, k), -1, np.int64)
    to_first = [_ids_in(models[0], model) for model in models]
    for model in models:
        model.model.eval()
    for start in range(0, size, _BATCH):
        tick()
        rows = np.arange(start, min(start + _BATCH, size))
        scores[rows], ids[rows] = _rank_batch(models, splits, rows, to_first, k)
    return scores, ids


@torch.no_grad()
def _rank_batch(
    models: Sequence[TrainedModel], splits: Sequence[Split], rows: np.ndarray, to_first: list[np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    labels = len(to_first[0])
    features, found = [], []
    for trained, split, first in zip(models, splits, to_first, strict=True):
        device = next(trained.model.parameters()).device
        documents, _ = batch_of(split, rows, device)
        features.append(trained.model.encoder(documents))
        excluded = split.exclude(rows)
        if excluded is not None:
            excluded = excluded[0].to(device), excluded[1].to(device)
        best = trained.model.output.topk(features[-1], min(_CANDIDATES, labels), excluded)[1].cpu().numpy()
        document = np.broadcast_to(np.arange(len(rows))[:, None], best.shape)
        held = best >= 0
        found.append(document[held] * labels + first[best[held]])
    document, label = np.divmod(np.unique(np.concatenate(found)), labels)
    offsets = torch.from_numpy(np.concatenate([[0], np.bincount(document, minlength=len(rows)).cumsum()]))
    total = np.zeros(len(label))
    for trained, x, first in zip(models, features, to_first, strict=True):
        own = torch.from_numpy(np.argsort(first)[label])
        logits = trained.model.output.scores(x, (offsets.to(x.device), own.to(x.device)))
        total += torch.nn.functional.logsigmoid(logits).double().cpu().numpy()
    total = (total / len(models)).astype(np.float32)
    order = np.lexsort((label, -total, document))
    place = np.arange(len(order)) - offsets.numpy()[document[order]]
    order, place = order[place < k], place[place < k]
    scores, ids = np.full((len(rows), k), -np.inf, np.float32), np.full((len(rows), k), -1, np.int64)
    scores[document[order], place], ids[document[order], place] = total[order], label[order]
    return scores, ids


def evaluate_together(
    models: Sequence[TrainedModel],
    split: str = "test",
    *,
    path: str | None = None,
    propensity: tuple[float, float] | None = None,
    use_filter: bool = True,
) -> dict[str, float]:
    """Metrics of several models as one, as `haste.train.evaluate.evaluate_run`; constants of the first.

    Raises:
        ValueError: the data has no such split, or not the same one for all.
    """
    first = models[0]
    splits = [read_split(model, split, path) for model in models]
    for other in splits[1:]:
        if list(other.ids) != list(splits[0].ids):
            raise ValueError(
                f"split ({split}) must have the same documents for all models; dev documents that are drawn from train "
                "differ with run.seed and data.dev_fraction: use --split test, or --data"
            )
    if not use_filter:
        splits = [replace(part, filter=None) for part in splits]
    ids = rank_together(models, splits, K)[1]
    a_b = propensity or (first.config.data.propensity.a, first.config.data.propensity.b)
    return score_ranking(ids, splits[0].truth, first.labels, num_points=first.num_points, propensity=a_b)


def predict_together(
    models: Sequence[TrainedModel], records: Iterable[Record], k: int = 10
) -> Iterator[dict[str, Any]]:
    """Best labels of new documents by several models as one, as `haste.train.evaluate.predict`.

    The probability is the geometric mean of theirs.

    Raises:
        ValueError: k above 50.
    """
    if k > _CANDIDATES:
        raise ValueError(f"top_k ({k}) must not exceed {_CANDIDATES} for several models; lower it")
    remaining = iter(records)
    while chunk := list(islice(remaining, CHUNK)):
        splits = [as_split(chunk, model) for model in models]
        scores, ids = rank_together(models, splits, min(k, models[0].labels.num_labels))
        for record, row, values in zip(chunk, ids, np.exp(scores.astype(np.float64)), strict=True):
            yield {"id": record.id, "labels": describe(models[0].labels, row, values, "probability")}


def _known(model: TrainedModel) -> list[str]:
    """Labels that the model can predict."""
    return model.labels.names[: model.labels.num_labels]


def _ids_in(first: TrainedModel, model: TrainedModel) -> np.ndarray:
    """The first model's id of every label of another."""
    places = {name: number for number, name in enumerate(_known(first))}
    return np.array([places[name] for name in _known(model)], np.int64)
