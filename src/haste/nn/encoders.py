"""Encoders: what turns a batch of documents into features."""

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# (B, D) float32; CSR: offsets (B + 1,), columns, values; or tokens: ids (B, T) and, where some are pads, mask (B, T),
# int64 both
Documents: TypeAlias = Tensor | tuple[Tensor, Tensor, Tensor] | tuple[Tensor, Tensor] | tuple[Tensor]
MOST_DENSE_COLUMNS = 65_536  # of a sparse batch that is made dense: 64 MiB for 256 documents
_INITIAL_SCALE = 0.05  # of embeddings: features of unit scale drown what few steps can learn (eurlex57k: -4 P@1)
_TINY = torch.finfo(torch.float32).tiny


def _csr(offsets: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(offsets, columns, values, shape, check_invariants=False)


class _BagSum(torch.autograd.Function):
    """sum_t value_t weight[term_t] of every document, with a coalesced row-sparse gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, offsets: Tensor, terms: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(offsets, terms, values)
        ctx.shape, ctx.dtype = weight.shape, weight.dtype
        with torch.autocast(weight.device.type, enabled=False):  # there is no bfloat16 product of CSR matrices
            if weight.dtype == torch.bfloat16:
                rows, terms = terms.unique(return_inverse=True)
                weight = weight[rows].float()
            return (_csr(offsets, terms, values, (len(offsets) - 1, len(weight))) @ weight).to(ctx.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        offsets, terms, values = ctx.saved_tensors
        documents = _rows(offsets, len(terms))
        by_term, order = terms.sort(stable=True)
        rows, counts = torch.unique_consecutive(by_term, return_counts=True)
        bounds = nn.functional.pad(counts.cumsum(0), (1, 0))
        transposed = _csr(bounds, documents[order], values[order], (len(rows), len(offsets) - 1))
        by_row = (transposed @ grads[0].to(values.dtype)).to(ctx.dtype)
        return (
            torch.sparse_coo_tensor(rows[None], by_row, ctx.shape, is_coalesced=True, check_invariants=False),
            None,
            None,
            None,
        )


class Bag(nn.Module):
    """A weighted bag of terms, optionally through one hidden layer.

        h = relu(sum_t value_t embedding[term_t] + bias);  h = relu(W dropout(h) + b) for a hidden layer

    Args:
        num_inputs: V, rows of the embedding: terms, or columns of given features.
        features: width of the result.
        hidden: width of the embedding where a layer ``Linear(hidden, features)`` follows; 0 for none.
        dropout: before that layer.
        normalize: scale the values of every document to unit length.
        seed: of the initial values, N(0, 0.05^2) for the embedding.

    The embedding's gradient is row-sparse: only the terms of the batch are updated.
    """

    def __init__(
        self,
        num_inputs: int,
        features: int,
        hidden: int = 0,
        dropout: float = 0.0,
        *,
        normalize: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_inputs < 1 or features < 1 or hidden < 0:
            raise ValueError(
                f"num_inputs ({num_inputs}) and features ({features}) must be at least 1, hidden ({hidden}) at least 0"
            )
        generator = torch.Generator().manual_seed(seed)
        width = hidden or features
        self.num_inputs, self.out_features = num_inputs, features
        self.dropout, self.normalize = dropout, normalize
        self.embedding = nn.Parameter(torch.randn((num_inputs, width), generator=generator).mul_(_INITIAL_SCALE))
        self.bias = nn.Parameter(torch.zeros(width))
        self.linear = _linear(hidden, features, (2 / hidden) ** 0.5, generator) if hidden else None

    def forward(self, batch: Documents) -> Tensor:
        """Encode (offsets (B + 1,) int64, terms (n,) int64, values (n,) float32), CSR over documents: (B, features).

        Raises:
            ValueError: a term out of range (checked on a CPU), or rows of numbers instead of CSR.
        """
        if isinstance(batch, Tensor):
            raise ValueError(f"documents {tuple(batch.shape)} must be CSR for a bag; use encoder.kind: features")
        if len(batch) != 3:
            raise ValueError("documents (tokens) must be CSR for a bag; use encoder.kind: transformer")
        offsets, terms, values = batch
        _check_columns(terms, self.num_inputs)
        if self.normalize:
            values = _unit_values(offsets, values)
        h = torch.relu(_BagSum.apply(self.embedding, offsets, terms, values) + self.bias)
        if self.linear is not None:
            h = torch.relu(self.linear(nn.functional.dropout(h, self.dropout, self.training)))
        return h


class Features(nn.Module):
    """Given features, straight to the output layer or through one or two layers.

        h = x;  h = relu(W x + b) for features > 0;  h = relu(W2 dropout(relu(W1 x + b1)) + b2) for hidden > 0 too

    Args:
        num_inputs: D, numbers of a document.
        features: width of the result; 0 = D, without any parameter.
        hidden: width of the layer before the last; 0 for none.
        dropout: between the two layers.
        normalize: scale every document to unit length first; a document of zeros stays zero.
        seed: of the initial values, N(0, 0.05^2) for the first layer's weights.

    Raises:
        ValueError: sizes that do not fit.
    """

    def __init__(
        self,
        num_inputs: int,
        features: int = 0,
        hidden: int = 0,
        dropout: float = 0.0,
        *,
        normalize: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_inputs < 1 or features < 0 or hidden < 0 or (hidden and not features):
            raise ValueError(
                f"num_inputs ({num_inputs}) must be at least 1, features ({features}) and hidden ({hidden}) at least "
                "0, and hidden 0 where features is 0"
            )
        generator = torch.Generator().manual_seed(seed)
        self.num_inputs, self.out_features = num_inputs, features or num_inputs
        self.dropout, self.normalize = dropout, normalize
        self.first = self.linear = None
        if features:
            self.first = _linear(num_inputs, hidden or features, _INITIAL_SCALE, generator)
        if hidden:
            self.linear = _linear(hidden, features, (2 / hidden) ** 0.5, generator)

    def forward(self, batch: Documents) -> Tensor:
        """Encode (B, D) float32, or CSR over documents, which is made dense: (B, features).

        Raises:
            ValueError: not D columns, or more than 65,536 of a sparse batch.
        """
        x = self._dense(batch)
        if self.normalize:
            x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64).clamp_(min=_TINY).to(x.dtype)
        if self.first is not None:
            x = torch.relu(self.first(x.to(self.first.weight.dtype)))
        if self.linear is not None:
            x = torch.relu(self.linear(nn.functional.dropout(x, self.dropout, self.training)))
        return x

    def _dense(self, batch: Documents) -> Tensor:
        if isinstance(batch, Tensor):
            if batch.dim() != 2 or batch.shape[1] != self.num_inputs:
                raise ValueError(
                    f"documents {tuple(batch.shape)} must have shape (batch, {self.num_inputs}), num_inputs; give the "
                    "features that this encoder was trained with"
                )
            return batch
        if len(batch) != 3:
            raise ValueError("documents (tokens) must be rows of features; use encoder.kind: transformer")
        check_dense_columns(self.num_inputs)
        offsets, columns, values = batch
        _check_columns(columns, self.num_inputs)
        documents, size = _rows(offsets, len(columns)), len(offsets) - 1
        if values.device.type == "cpu":  # the output layer reads (D, B) there: transposing would take twice as long
            dense = values.new_zeros((self.num_inputs, size))
            return dense.index_put_((columns, documents), values, accumulate=True).t()
        dense = values.new_zeros((size, self.num_inputs))
        return dense.index_put_((documents, columns), values, accumulate=True)


def check_dense_columns(num_inputs: int) -> None:
    """Raise ValueError where sparse rows are too wide to be made dense."""
    if num_inputs > MOST_DENSE_COLUMNS:
        raise ValueError(
            f"num_inputs ({num_inputs:,}) must not exceed {MOST_DENSE_COLUMNS:,} for encoder.kind: features on sparse "
            "documents, which it makes dense; use encoder.kind: bag"
        )


def _linear(inputs: int, outputs: int, scale: float, generator: torch.Generator) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    with torch.no_grad():
        linear.weight.normal_(0, scale, generator=generator)
        linear.bias.zero_()
    return linear


def _rows(offsets: Tensor, length: int) -> Tensor:
    """The document of every value."""
    return torch.repeat_interleave(
        torch.arange(len(offsets) - 1, device=offsets.device), offsets.diff(), output_size=length
    )


def _unit_values(offsets: Tensor, values: Tensor) -> Tensor:
    squares = values.double().square()
    norms = torch.segment_reduce(squares, "sum", offsets=offsets, initial=0).sqrt_().clamp_(min=_TINY)
    return values / norms.to(values.dtype)[_rows(offsets, len(values))]


def _check_columns(columns: Tensor, num_inputs: int) -> None:
    if columns.device.type != "cpu" or not len(columns):
        return
    low, high = int(columns.min()), int(columns.max())
    if low < 0 or high >= num_inputs:
        raise ValueError(
            f"columns ({low} to {high}) must be in [0, {num_inputs}), num_inputs; give the features, or encode texts "
            "with the vectorizer, that this encoder was trained with"
        )
