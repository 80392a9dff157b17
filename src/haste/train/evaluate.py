"""Metrics of a model on a split, and predictions for new texts; nothing of size (N, L) exists."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.special import expit

from haste import metrics
from haste.data.dataset import Labels, Split, split_for
from haste.data.source import DataError, Record
from haste.data.tokens import Tokens
from haste.nn import Model
from haste.train.batches import batch_of, by_length
from haste.train.diagnostics import deciles
from haste.train.model_folder import TrainedModel, load_model

K = 5
PROPENSITY = (0.55, 1.5)  # a, b of Jain et al. (2016) for data without constants of its own
_BATCH = 256
CHUNK = 16 * _BATCH  # documents of a prediction in memory at a time


def predict_topk(
    model: Model, split: Split, k: int, *, tick: Callable[[], None] = lambda: None
) -> tuple[np.ndarray, np.ndarray]:
    """Rank labels for every document of a split; those its filter names are left out before the ranking.

    Args:
        model: in any mode, which it keeps.
        split: N documents.
        k: labels a document.
        tick: called before every batch; may raise to stop.

    Returns:
        scores (N, k) float32 and label ids (N, k) int64; -inf and -1 where there are fewer than k labels.
    """
    device = next(model.parameters()).device
    scores = np.full((len(split), k), -np.inf, dtype=np.float32)
    ids = np.full((len(split), k), -1, dtype=np.int64)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            order = by_length(split, np.arange(len(split)))
            for start in range(0, len(split), _BATCH):
                tick()
                rows = order[start : start + _BATCH]
                documents, _ = batch_of(split, rows, device)
                exclude = split.exclude(rows)
                if exclude is not None:
                    exclude = exclude[0].to(device), exclude[1].to(device)
                values, labels = model.topk(documents, k, exclude)
                scores[rows, : values.shape[1]] = values.float().cpu().numpy()
                ids[rows, : labels.shape[1]] = labels.cpu().numpy()
    finally:
        model.train(was_training)
    return scores, ids


def evaluate_split(
    model: Model,
    split: Split,
    labels: Labels,
    *,
    num_points: int,
    propensity: tuple[float, float] = PROPENSITY,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Metrics at 1, 3 and 5 in percent.

    Args:
        model, split, labels: what to evaluate on what; labels without a training positive count as missed.
        num_points: documents in train, for the propensities.
        propensity: a and b of the propensity-scored metrics.
        tick: called before every batch; may raise to stop.

    Returns:
        P@k, nDCG@k, R@k, RP@k, PSP@k and PSnDCG@k for k in 1, 3, 5.
    """
    _, ids = predict_topk(model, split, K, tick=tick)
    return score_ranking(ids, split.truth, labels, num_points=num_points, propensity=propensity)


def score_ranking(
    ids: np.ndarray,
    truth: csr_matrix,
    labels: Labels,
    *,
    num_points: int,
    propensity: tuple[float, float] = PROPENSITY,
) -> dict[str, float]:
    """Metrics in percent of ranked label ids (N, at least 5) against the truth (N, all labels)."""
    counts = _all_counts(truth, labels)
    inverse = metrics.inverse_propensity(counts, num_points, *propensity)
    result = metrics.evaluate(ids, truth, k=K, inverse_propensity=inverse)
    return {name: float(value) for name, value in metrics.as_percent(result).items()}


def score_deciles(ids: np.ndarray, truth: csr_matrix, labels: Labels) -> dict[str, list[float]]:
    """How labels of each frequency fare, in ten sets of equally many labels, the most frequent first.

    Args:
        ids, truth, labels: as `score_ranking`.

    Returns:
        P@k for k in 1, 3, 5: ten contributions in percent that sum to it; positives: true labels a document, of each.
    """
    counts = _all_counts(truth, labels)
    found = 100 * metrics.per_decile(ids, truth, counts, k=K)
    positives = np.bincount(deciles(counts)[truth.indices], minlength=10) / truth.shape[0]
    return {**{f"P@{k}": found[:, k - 1].tolist() for k in (1, 3, 5)}, "positives": positives.tolist()}


def _all_counts(truth: csr_matrix, labels: Labels) -> np.ndarray:
    """Training documents of every label that has a name, 0 for those unseen in training."""
    counts = np.zeros(truth.shape[1], dtype=np.int64)
    counts[: labels.num_labels] = labels.counts
    return counts


def evaluate_run(
    run: Path | TrainedModel,
    split: str = "test",
    *,
    path: str | None = None,
    propensity: tuple[float, float] | None = None,
    use_filter: bool = True,
    device: str = "auto",
) -> dict[str, float]:
    """Metrics of a finished run's model on a split of its data.

    Args:
        run: run folder, model folder, or a model that is loaded already.
        split: train, dev or test.
        path: data to use instead of the run's `data.path`.
        propensity: a and b of the propensity-scored metrics; None = the run's `data.propensity`.
        use_filter: never predict what the data's filter files list.
        device: where to compute.

    Raises:
        ValueError: the run has no model, or the data no such split.
    """
    trained = run if isinstance(run, TrainedModel) else load_model(find_model(run), device=device)
    documents = read_split(trained, split, path)
    if not use_filter:
        documents = replace(documents, filter=None)
    constants = trained.config.data.propensity
    propensity = propensity or (constants.a, constants.b)
    return evaluate_split(
        trained.model, documents, trained.labels, num_points=trained.num_points, propensity=propensity
    )


def predict(
    run: Path | TrainedModel, records: Iterable[Record], k: int = 10, *, device: str = "auto"
) -> Iterator[dict[str, Any]]:
    """Best labels of new documents, in their order, a batch at a time.

    Args:
        run: run folder, model folder, or a model that is loaded already.
        records: documents; their labels are not looked at.
        k: labels a document.
        device: where to compute.

    Yields:
        {"id": ..., "labels": [{"label": ..., "probability": ...}, ...]}, best first; "score" instead of
        "probability" where the loss was squared_hinge, and the label's "text" where it has one.
    """
    trained = run if isinstance(run, TrainedModel) else load_model(find_model(run), device=device)
    remaining = iter(records)
    while chunk := list(islice(remaining, CHUNK)):
        yield from _predict_chunk(trained, chunk, k)


def _predict_chunk(trained: TrainedModel, records: list[Record], k: int) -> Iterator[dict[str, Any]]:
    split = as_split(records, trained)
    scores, ids = predict_topk(trained.model, split, min(k, trained.labels.num_labels))
    probable = trained.config.output.loss == "bce"
    values = expit(scores.astype(np.float64)) if probable else scores
    name = "probability" if probable else "score"
    for record, row, row_values in zip(records, ids, values, strict=True):
        yield {"id": record.id, "labels": describe(trained.labels, row, row_values, name)}


def describe(labels: Labels, ids: np.ndarray, values: np.ndarray, name: str) -> list[dict[str, Any]]:
    """What a prediction says of ranked labels of a document, ids (k,) and values (k,); -1 is no label."""
    return [
        {"label": labels.names[label], **_text_of(labels, label), name: float(value)}
        for label, value in zip(ids, values, strict=True)
        if label >= 0
    ]


def _text_of(labels: Labels, label: int) -> dict[str, str]:
    text = labels.texts[label] if labels.texts else ""
    return {"text": text} if text else {}


def find_model(run: Path) -> Path:
    """The model folder of a run folder, or the folder itself where it is a model folder."""
    if (run / "config.json").is_file():
        return run
    if (run / "model" / "config.json").is_file():
        return run / "model"
    if not run.is_dir():
        raise ValueError(f"{run} must be a run folder or a model folder; there is no such folder")
    if (run / "config.yaml").is_file():
        raise ValueError(f"{run} has no model yet; finish the run with: haste train {run / 'config.yaml'} --resume")
    raise ValueError(f"{run} must be a run folder or a model folder; it has neither config.json nor model/")


def read_split(trained: TrainedModel, split: str, path: str | None = None) -> Split:
    """A split of a data set in the terms and labels of a model.

    Args:
        trained: the model.
        split: train, dev or test.
        path: the data; None = the data that the model was trained on.

    Raises:
        ValueError: there is no such split, or it cannot be read.
    """
    data = trained.config.data
    if path is not None:
        # The folder of a model may come from elsewhere: where files are written is not for it to say.
        data = replace(data, path=path, dev=None, test=None, cache=None)
    seed = trained.config.run.seed
    found = split_for(data, split, trained.labels, trained.vectorizer, inputs=trained.inputs, seed=seed)
    _check_width(found, trained, data.path)
    return found


def _check_width(split: Split, trained: TrainedModel, where: str) -> None:
    if split.features.shape[1] != trained.num_inputs:
        raise DataError(
            f"{where}: has {split.features.shape[1]} features, the model reads {trained.num_inputs}; "
            "make them as those it was trained on"
        )


def as_split(records: list[Record], trained: TrainedModel) -> Split:
    """New documents in the terms of a model, without labels."""
    truth = csr_matrix((len(records), len(trained.labels.names)), dtype=np.float32)
    ids = [record.id for record in records]
    return Split("input", ids, _features(records, trained), truth, trained.labels.num_labels)


def _features(records: list[Record], trained: TrainedModel) -> csr_matrix | np.ndarray | Tokens:
    if trained.vectorizer is not None:
        return trained.vectorizer.transform(record.text for record in records)
    if trained.inputs == "dense":
        return np.stack([_given(record, record.dense) for record in records])
    columns = [_given(record, record.columns) for record in records]
    offsets = np.cumsum([0, *map(len, columns)])
    values = np.concatenate([_given(record, record.values) for record in records])
    rows = csr_matrix((values, np.concatenate(columns), offsets), shape=(len(records), trained.num_inputs))
    rows.sort_indices()
    return rows


def _given(record: Record, array: np.ndarray | None) -> np.ndarray:
    if array is None:
        raise DataError(f"document {record.id}: must have given features, as those that the model was trained on")
    return array
