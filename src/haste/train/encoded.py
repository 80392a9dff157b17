"""Features of documents as an encoder makes them, computed when they are asked for."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from haste.data.dataset import Split
from haste.train.batches import batch_of, by_length

_BATCH = 256


class Encoded:
    """(N, H) float32 features of the documents of a split, of which only those asked for exist.

    Args:
        encoder: in any mode, which it keeps; documents are encoded without dropout.
        split: N documents.
        device: where the encoder is.
        tick: called before every batch; may raise to stop.
    """

    def __init__(
        self, encoder: nn.Module, split: Split, device: torch.device, *, tick: Callable[[], None] = lambda: None
    ) -> None:
        self._encoder, self._split, self._device, self._tick = encoder, split, device, tick
        self.shape = (len(split), int(encoder.out_features))  # type: ignore[arg-type]

    @torch.no_grad()
    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Features of some documents, in their order."""
        rows = np.arange(len(self._split))[rows] if isinstance(rows, slice) else rows
        found = np.zeros((len(rows), self.shape[1]), np.float32)
        order, was_training = by_length(self._split, rows), self._encoder.training
        self._encoder.eval()
        try:
            for start in range(0, len(order), _BATCH):
                self._tick()
                here = order[start : start + _BATCH]
                documents, _ = batch_of(self._split, rows[here], self._device)
                found[here] = self._encoder(documents).float().cpu().numpy()
        finally:
            self._encoder.train(was_training)
        return found
