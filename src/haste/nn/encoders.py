"""Encoders: what turns a batch of documents into features."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_INITIAL_SCALE = 0.05  # of embeddings: features of unit scale drown what few steps can learn (eurlex57k: -4 P@1)


def _csr(offsets: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(offsets, columns, values, shape, check_invariants=False)


class _BagSum(torch.autograd.Function):
    """sum_t value_t weight[term_t] of every document, with a coalesced row-sparse gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, offsets: Tensor, terms: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(offsets, terms, values)
        ctx.shape = weight.shape
        with torch.autocast(weight.device.type, enabled=False):  # there is no bfloat16 product of CSR matrices
            return _csr(offsets, terms, values, (len(offsets) - 1, len(weight))) @ weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        offsets, terms, values = ctx.saved_tensors
        documents = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=terms.device), offsets.diff())
        by_term, order = terms.sort(stable=True)
        rows, counts = torch.unique_consecutive(by_term, return_counts=True)
        bounds = nn.functional.pad(counts.cumsum(0), (1, 0))
        transposed = _csr(bounds, documents[order], values[order], (len(rows), len(offsets) - 1))
        return (
            torch.sparse_coo_tensor(
                rows[None], transposed @ grads[0], ctx.shape, is_coalesced=True, check_invariants=False
            ),
            None,
            None,
            None,
        )


class Bag(nn.Module):
    """A weighted bag of terms, optionally through one hidden layer.

        h = relu(sum_t value_t embedding[term_t] + bias);  h = relu(W dropout(h) + b) for a hidden layer

    Args:
        num_inputs: V, rows of the embedding.
        features: width of the result.
        hidden: width of the embedding where a layer ``Linear(hidden, features)`` follows; 0 for none.
        dropout: before that layer.
        seed: of the initial values, N(0, 0.05^2) for the embedding.

    The embedding's gradient is row-sparse: only the terms of the batch are updated.
    """

    def __init__(self, num_inputs: int, features: int, hidden: int = 0, dropout: float = 0.0, *, seed: int = 0) -> None:
        super().__init__()
        if num_inputs < 1 or features < 1 or hidden < 0:
            raise ValueError(
                f"num_inputs ({num_inputs}) and features ({features}) must be at least 1, hidden ({hidden}) at least 0"
            )
        generator = torch.Generator().manual_seed(seed)
        width = hidden or features
        self.dropout = dropout
        self.embedding = nn.Parameter(torch.randn((num_inputs, width), generator=generator).mul_(_INITIAL_SCALE))
        self.bias = nn.Parameter(torch.zeros(width))
        self.linear = None
        if hidden:
            self.linear = nn.Linear(hidden, features)
            with torch.no_grad():
                self.linear.weight.normal_(0, (2 / hidden) ** 0.5, generator=generator)
                self.linear.bias.zero_()

    def forward(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Encode (offsets (B + 1,) int64, terms (n,) int64, values (n,) float32), CSR over documents: (B, features).

        Raises:
            ValueError: a term out of range (checked on a CPU).
        """
        _check_terms(batch[1], len(self.embedding))
        h = torch.relu(_BagSum.apply(self.embedding, *batch) + self.bias)
        if self.linear is not None:
            h = torch.relu(self.linear(nn.functional.dropout(h, self.dropout, self.training)))
        return h


def _check_terms(terms: Tensor, num_inputs: int) -> None:
    if terms.device.type != "cpu" or not len(terms):
        return
    low, high = int(terms.min()), int(terms.max())
    if low < 0 or high >= num_inputs:
        raise ValueError(
            f"terms ({low} to {high}) must be in [0, {num_inputs}), num_inputs; encode texts with the vectorizer that "
            "this encoder was trained with"
        )
