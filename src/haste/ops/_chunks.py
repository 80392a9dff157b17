"""Chunks of groups: the three products of the layer on a run of groups that fits the cache.

Everything is transposed, (label, batch), so that a gathered input is one contiguous row of ``features_t`` (H, B).
For groups k of a chunk, with x_k = features_t[indices[k]] (F, B):

    logits          z_k  = weight_k @ x_k + bias_k                (S, B)
    grad_weight     dW_k = g_k @ x_k^T                            (S, F)
    grad_features   features_t.grad[indices[k]] += weight_k^T @ g_k

Three layouts of one interface: gathered groups (batched GEMM), one row a group (CSR products), dense (no gather).
"""

import math
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

_CACHE = {"cpu": 1 << 21}  # elements of the temporaries of one chunk; a GPU takes 8 times as many


# The first CSR tensor of a process warns that they are in beta, which users can do nothing about.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0], [], [], (0, 0))


def accumulate_dtype(features: Tensor) -> torch.dtype:
    """Return the dtype of all arithmetic: float32, or float64 for float64 features (checks of gradients)."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def groups_per_chunk(weight: Tensor, batch: int, indices: Tensor | None) -> int:
    """Return how many groups one chunk holds: a pure function of shapes and device type."""
    _, group_size, fan_in = weight.shape
    if indices is None:
        temporaries = group_size * (batch + fan_in)
    elif group_size == 1:
        temporaries = 2 * batch + 6 * fan_in
    else:
        temporaries = group_size * (batch + fan_in) + 2 * fan_in * batch
    return max(1, _CACHE.get(weight.device.type, 1 << 24) // temporaries)


class Workspace:
    """Buffers that the chunks of one pass share: fresh memory would cost a page fault every 4 KiB."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return an uninitialised tensor of this shape, valid until the name is taken again."""
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = self._like.new_empty(size)
        return self._buffers[name][:size].view(shape)


class Chunk:
    """Groups [start, stop) of a layer: weights widened, inputs gathered.

    What the methods return lives in the workspace and is overwritten by the next chunk.
    """

    def __init__(
        self,
        start: int,
        stop: int,
        weight: Tensor,
        bias: Tensor,
        indices: Tensor | None,
        features_t: Tensor,
        workspace: Workspace,
    ) -> None:
        self.workspace = workspace
        self.start, self.stop = start, stop
        self.group_size, self.fan_in = weight.shape[1:]
        self.first_row = start * self.group_size
        self.weight_view, self.bias_view = weight[start:stop], bias[start:stop]
        self.weight = self.weight_view
        if weight.dtype != features_t.dtype:
            self.weight = workspace.take("weight", *self.weight_view.shape).copy_(self.weight_view)
        self.bias = self.bias_view.to(features_t.dtype)
        self.features_t = features_t
        self._setup(None if indices is None else indices[start:stop])

    def _setup(self, indices: Tensor | None) -> None:
        raise AssertionError("one of the layouts below")

    @property
    def _groups(self) -> int:
        return self.stop - self.start

    def logits(self) -> Tensor:
        """Return logits of the chunk, (n, S, B)."""
        out = self.workspace.take("logits", self._groups, self.group_size, self.features_t.shape[1])
        self._multiply(out)
        return out.add_(self.bias[:, :, None])

    def _multiply(self, out: Tensor) -> None:
        raise AssertionError("one of the layouts below")

    def grad_weight(self, grad: Tensor) -> Tensor:
        """Return dW (n, S, F) of dloss/dlogits ``grad`` (n, S, B)."""
        raise AssertionError("one of the layouts below")

    def add_grad_features(self, grad: Tensor, out: Tensor) -> None:
        """Add dloss/dfeatures of ``grad`` (n, S, B) to ``out`` (H, B)."""
        raise AssertionError("one of the layouts below")


class _Dense(Chunk):
    def _setup(self, indices: Tensor | None) -> None:
        self._rows = self.weight.view(-1, self.fan_in)

    def _multiply(self, out: Tensor) -> None:
        torch.mm(self._rows, self.features_t, out=out.view(len(self._rows), -1))

    def grad_weight(self, grad: Tensor) -> Tensor:
        out = self.workspace.take("grad_weight", *self._rows.shape)
        torch.mm(grad.view(len(self._rows), -1), self.features_t.t(), out=out)
        return out.view_as(self.weight)

    def add_grad_features(self, grad: Tensor, out: Tensor) -> None:
        out.addmm_(self._rows.t(), grad.view(len(self._rows), -1))


class _Gathered(Chunk):
    def _setup(self, indices: Tensor | None) -> None:
        assert indices is not None
        self._inputs = indices.reshape(-1).to(torch.int64)
        x = self.workspace.take("x", len(self._inputs), self.features_t.shape[1])
        torch.index_select(self.features_t, 0, self._inputs, out=x)
        self._x = x.view(self._groups, self.fan_in, -1)

    def _multiply(self, out: Tensor) -> None:
        torch.bmm(self.weight, self._x, out=out)

    def grad_weight(self, grad: Tensor) -> Tensor:
        out = self.workspace.take("grad_weight", *self.weight.shape)
        return torch.bmm(grad, self._x.transpose(1, 2), out=out)

    def add_grad_features(self, grad: Tensor, out: Tensor) -> None:
        parts = self.workspace.take("parts", *self._x.shape)
        parts = torch.bmm(self.weight.transpose(1, 2), grad, out=parts).view(len(self._inputs), -1)
        out.index_add_(0, self._inputs, parts)


class _Rows(Chunk):
    """group_size 1: every row has inputs of its own, so the chunk is a CSR matrix (n, H)."""

    def _setup(self, indices: Tensor | None) -> None:
        assert indices is not None
        self._columns = indices.reshape(-1).to(torch.int32)
        self._crow = torch.arange(
            0, self._columns.numel() + 1, self.fan_in, dtype=torch.int32, device=self.features_t.device
        )

    def _csr(self, values: Tensor) -> Tensor:
        shape = (self._groups, len(self.features_t))
        return torch.sparse_csr_tensor(self._crow, self._columns, values.reshape(-1), shape, check_invariants=False)

    def _multiply(self, out: Tensor) -> None:
        torch.mm(self._csr(self.weight), self.features_t, out=out.view(self._groups, -1))

    def grad_weight(self, grad: Tensor) -> Tensor:
        pattern = self._csr(torch.zeros_like(self.weight))
        products = torch.sparse.sampled_addmm(pattern, grad.view(self._groups, -1), self.features_t.t(), beta=0.0)
        return products.values().view_as(self.weight)

    def add_grad_features(self, grad: Tensor, out: Tensor) -> None:
        by_input = self._columns.sort(stable=True)
        bounds = torch.searchsorted(
            by_input.values, torch.arange(len(out) + 1, dtype=torch.int32, device=out.device), out_int32=True
        )
        rows = by_input.indices.div(self.fan_in, rounding_mode="floor").to(torch.int32)
        values = self.weight.reshape(-1)[by_input.indices]
        transposed = torch.sparse_csr_tensor(bounds, rows, values, (len(out), self._groups), check_invariants=False)
        out.add_(transposed @ grad.view(self._groups, -1))


def chunks(
    features_t: Tensor, weight: Tensor, bias: Tensor, indices: Tensor | None, *, per_chunk: int | None = None
) -> Iterator[Chunk]:
    """Yield the groups of a layer chunk by chunk, in order.

    Args:
        features_t: (H, B), contiguous, in the dtype of all arithmetic.
        weight: (G, S, F), any floating dtype.
        bias: (G, S).
        indices: (G, F) integers, or None where F = H.
        per_chunk: groups of one chunk; default `groups_per_chunk`.
    """
    layout = _Dense if indices is None else _Rows if weight.shape[1] == 1 else _Gathered
    size = per_chunk or groups_per_chunk(weight, features_t.shape[1], indices)
    workspace = Workspace(features_t)
    for start in range(0, len(weight), size):
        yield layout(start, min(start + size, len(weight)), weight, bias, indices, features_t, workspace)


class SortedPositives:
    """The positives of a batch sorted by row of the layer, so that a chunk finds its own in one slice."""

    def __init__(self, offsets: Tensor, labels: Tensor, weight: Tensor, per_chunk: int) -> None:
        counts = offsets.diff()
        labels = labels[: int(offsets[-1])]  # a buffer on a GPU may hold more
        points = torch.repeat_interleave(torch.arange(len(counts), device=labels.device), counts)
        self._labels, order = labels.sort(stable=True)
        self._points = points[order]
        self._rows_per_chunk = per_chunk * weight.shape[1]
        ends = torch.arange(-(-len(weight) // per_chunk) + 1, device=labels.device) * self._rows_per_chunk
        self._bounds = torch.searchsorted(self._labels, ends).tolist()

    def of(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Return (rows relative to the chunk, batch points) of the positives in a chunk, both int64."""
        number = chunk.first_row // self._rows_per_chunk
        here = slice(self._bounds[number], self._bounds[number + 1])
        return self._labels[here] - chunk.first_row, self._points[here]
