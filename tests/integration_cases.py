"""A small text model and its data, for training loops of other packages."""

from typing import Any

import torch
from torch import Tensor, nn

from haste.nn import HeadTail
from haste.optim import SGD, ChainedOptimizer

NUM_LABELS, WIDTH = 40, 16


class TinyModel(nn.Module):
    """Mean of word embeddings; its features go to a head of 4 labels and a tail in groups of 4."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(50, WIDTH)
        self.output = HeadTail(WIDTH, NUM_LABELS, num_head_labels=4, fan_in=6, group_size=4, seed=seed)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[:, :, None].float()
        return (self.embedding(input_ids) * mask).sum(dim=1) / mask.sum(dim=1)


def documents(number: int = 32) -> list[dict[str, list[int]]]:
    """Token ids of 2 to 5 words and 1 to 3 labels that follow from them."""
    found = []
    for i in range(number):
        words = [(7 * i + 3 * j) % 49 + 1 for j in range(2 + i % 4)]
        labels = sorted({word % NUM_LABELS for word in words[: 1 + i % 3]})
        found.append({"input_ids": words, "labels": labels})
    return found


def pad(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Batch of token ids, padded, with its mask."""
    longest = max(len(example["input_ids"]) for example in examples)
    ids = [example["input_ids"] + [0] * (longest - len(example["input_ids"])) for example in examples]
    return {"input_ids": torch.tensor(ids), "attention_mask": (torch.tensor(ids) > 0).long()}


def optimizers(model: TinyModel, momentum: float = 0.9) -> tuple[ChainedOptimizer, SGD]:
    """AdamW of the encoder and SGD of the output layer, chained; and the latter."""
    update = SGD(model.output.layer_parameters(), lr=0.02, momentum=momentum)
    return ChainedOptimizer(torch.optim.AdamW(model.embedding.parameters(), lr=0.01), update), update


def same(left: nn.Module, right: nn.Module) -> bool:
    """Whether two models are equal bit by bit."""
    pairs = zip(left.state_dict().items(), right.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
