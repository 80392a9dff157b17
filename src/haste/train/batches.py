"""Batches of documents: which come in a step, and their tensors on a device, made ahead by a thread.

The documents of a step are a function of the seed, the epoch and the step alone, so a run that is resumed sees the
batches that it would have seen. Those of tokens are bucketed: the documents of some batches in a row are sorted by
their length, cut into batches again, and the batches of the epoch shuffled, so that few pads are needed.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from haste.data.dataset import Documents, Positives, Split
from haste.data.tokens import Tokens

_ORDER, _OTHERS = 1, 3  # streams of random numbers


def epoch_order(
    rows: np.ndarray, size: int, *, seed: int, epoch: int, lengths: np.ndarray | None = None, buckets: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The documents of an epoch and where its batches begin and end.

    Args:
        rows: (num,) documents.
        size: of a batch; one batch, anywhere in the epoch, may be smaller.
        seed, epoch: of the permutation.
        lengths: of documents by row, which are bucketed by them.
        buckets: batches sorted together; 0 or 1 = none.

    Returns:
        order (num,) and bounds (batches + 1,), int64.
    """
    generator = np.random.default_rng((seed, _ORDER, epoch))
    order, num = generator.permutation(rows), len(rows)
    bounds = np.append(np.arange(0, num, size), num)
    if lengths is None or buckets <= 1:
        return order, bounds
    together = buckets * size
    for start in range(0, num, together):
        here = order[start : start + together]
        order[start : start + together] = here[np.argsort(lengths[here], kind="stable")]
    batches = generator.permutation(len(bounds) - 1)
    order = np.concatenate([order[bounds[number] : bounds[number + 1]] for number in batches])
    return order, np.concatenate(([0], np.cumsum(np.diff(bounds)[batches])))


def pad_share(lengths: np.ndarray, order: np.ndarray, bounds: np.ndarray) -> float:
    """Share of pads among the tokens of batches in which every document is as long as the longest."""
    longest = np.maximum.reduceat(lengths[order], bounds[:-1])
    return 1 - float(lengths[order].sum()) / float((longest * np.diff(bounds)).sum())


@dataclass(frozen=True)
class Batch:
    """Some documents and their positives; tokens: of the documents, 0 where they are not tokens."""

    size: int
    documents: Documents
    positives: Positives
    tokens: int = 0


class Batches:
    """The batches of training. While a step computes, a thread makes the next one, in pinned memory for a GPU.

    Args:
        split: all that is trained on.
        size: documents of a batch.
        seed: of their order.
        device: where they are needed.
        buckets: batches of tokens sorted by length together.
        always: the first rows, which every epoch passes over; None = all.
        epoch_size: rows of an epoch; those beyond `always` are others in every epoch, in turn.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        *,
        seed: int,
        device: torch.device,
        buckets: int = 0,
        always: int | None = None,
        epoch_size: int | None = None,
    ) -> None:
        self._split, self._size, self._seed, self._device, self._buckets = split, size, seed, device, buckets
        self._always = len(split) if always is None else always
        self._epoch_size = self._always if epoch_size is None else epoch_size
        self.steps_per_epoch = -(-self._epoch_size // size)
        features = split.features
        self.lengths = features.lengths if isinstance(features, Tokens) else None
        self._epoch: tuple[int, np.ndarray, np.ndarray] = (-1, np.empty(0, np.int64), np.empty(0, np.int64))
        self._thread = ThreadPoolExecutor(max_workers=1, initializer=self._start)
        self._ahead: tuple[int, Future[Batch]] | None = None

    def rows(self, step: int) -> np.ndarray:
        """Documents of the batch that follows `step` completed steps."""
        epoch, place = divmod(step, self.steps_per_epoch)
        known = self._epoch
        if known[0] != epoch:
            known = self._epoch = (epoch, *self._order(epoch, self._buckets))
        _, order, bounds = known
        return order[bounds[place] : bounds[place + 1]]

    def take(self, step: int) -> Batch:
        """The batch that follows `step` completed steps, on the device."""
        ahead = self._ahead
        made = ahead[1].result() if ahead is not None and ahead[0] == step else self._make(step)
        self._ahead = (step + 1, self._thread.submit(self._make, step + 1))
        documents, positives = to_device(made.documents, made.positives, self._device)
        return Batch(made.size, documents, positives, made.tokens)

    def pads(self) -> dict[str, float]:
        """Of tokens: the share of pads in the first epoch, as batches come and as they would without buckets."""
        if self.lengths is None:
            return {}
        shares = {"pads": self._buckets, "pads_without_buckets": 0}
        return {name: pad_share(self.lengths, *self._order(0, buckets)) for name, buckets in shares.items()}

    def _order(self, epoch: int, buckets: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(self._always)
        others, taken = len(self._split) - self._always, self._epoch_size - self._always
        if taken:
            turn = np.random.default_rng((self._seed, _OTHERS)).permutation(others)
            now = turn[np.arange(epoch * taken, (epoch + 1) * taken) % others]
            rows = np.concatenate((rows, self._always + now))
        return epoch_order(rows, self._size, seed=self._seed, epoch=epoch, lengths=self.lengths, buckets=buckets)

    def _start(self) -> None:
        if self._device.type == "cuda" and self._device.index is not None:  # a thread begins on the first GPU
            torch.cuda.set_device(self._device)

    def _make(self, step: int) -> Batch:
        rows = self.rows(step)
        documents, positives = self._split.batch(rows)
        if self._device.type == "cuda":
            documents, positives = _each(documents, Tensor.pin_memory), _each(positives, Tensor.pin_memory)
        tokens = 0 if self.lengths is None else int(self.lengths[rows].sum())
        return Batch(len(rows), documents, positives, tokens)


def batch_of(split: Split, rows: np.ndarray, device: torch.device) -> tuple[Documents, Positives]:
    """Documents and positives of some rows of a split, on a device."""
    return to_device(*split.batch(rows), device)


def to_device(documents: Documents, positives: Positives, device: torch.device) -> tuple[Documents, Positives]:
    """A batch on a device; from pinned memory without waiting."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    return _each(documents, moved), _each(positives, moved)


def _each(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return change(batch) if isinstance(batch, Tensor) else tuple(change(part) for part in batch)


def by_length(split: Split, rows: np.ndarray) -> np.ndarray:
    """Places in `rows`, those of tokens by their length, so that the documents of a batch need few pads."""
    features = split.features
    if not isinstance(features, Tokens):
        return np.arange(len(rows))
    return np.argsort(features.offsets[rows + 1] - features.offsets[rows], kind="stable")
