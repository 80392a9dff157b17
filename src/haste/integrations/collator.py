"""Batches whose labels are CSR positives."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def csr_positives(labels: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return label ids of every document of a batch as CSR: offsets (B + 1,) and labels (P,), int64."""
    counts = torch.tensor([0, *map(len, labels)])
    return counts.cumsum(0), torch.tensor([label for row in labels for label in row], dtype=torch.int64)


class Collator:
    """A collate function: the batch of another one, and ``positives`` of the examples' labels.

    Never (B, L): a document's labels are a list of ids, whatever their number.

    Args:
        collate: makes a dictionary of tensors of the examples without labels, such as transformers'
            ``DataCollatorWithPadding(tokenizer)``.
        labels: key of an example's label ids, distinct integers.
    """

    def __init__(self, collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]], labels: str = "labels") -> None:
        self.collate, self.labels = collate, labels

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return what ``collate`` makes, with positives (offsets (B + 1,), labels (P,)).

        Raises:
            ValueError: an example without labels: they were dropped before they came here.
        """
        if any(self.labels not in example for example in examples):
            raise ValueError(
                f"examples must hold {self.labels}, lists of label ids; with Hugging Face's Trainer set "
                "TrainingArguments(remove_unused_columns=False), or it drops them"
            )
        rest = [{key: value for key, value in example.items() if key != self.labels} for example in examples]
        return {**self.collate(rest), "positives": csr_positives([example[self.labels] for example in examples])}
