"""Ways to compute one output layer: this library's, and those it is compared with.

Each holds its own weights for a case, and offers what the claims time: ``forward`` (logits), ``backward`` (gradients of
given dloss/dlogits) in one call or in two parts, ``step`` (loss, feature gradient, weights updated by SGD), ``topk``.
What the comparisons do is never more than they must: no bias, no stochastic rounding, no optimizer state.

Byte counts are what an operation, as it is written here, must at least move between device memory and the chip.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from haste.bench._case import Case, Positives, make_layer, size_of
from haste.optim import SGD

LR = 1e-4  # while timing: the same batch over and over must not drive dloss/dlogits to zero
OPERATIONS = ("forward", "backward", "backward_features", "backward_weights", "step", "topk")

LABELS = {  # in tables and pictures
    "haste": "haste",
    "bottleneck": "dense bottleneck (F inputs)",
    "bottleneck_compiled": "bottleneck, autograd + torch.compile",
    "dense": "dense",
    "masked_dense": "masked dense",
    "csr": "unstructured CSR (float32)",
    "group1": "haste, group_size 1",
    "fixed_fan_in": "fixed fan-in, features (B, H)",
    "fixed_fan_in_columns": "fixed fan-in, features (H, B)",
    "materialised": "torch.topk of all logits",
    "chunked": "torch.topk, chunk by chunk",
}

Operands = tuple[Tensor, Tensor, Tensor | None]  # weight (G, S, F), bias (G, S), indices (G, F) or None


class NotRunError(RuntimeError):
    """A variant cannot do what was asked of it; says why."""


class Variant(ABC):
    """One way to compute the layer of a case; it raises NotRunError for an operation that it does not offer."""

    name: ClassVar[str]
    logits_dtype: torch.dtype

    def __init__(self, case: Case, device: torch.device, lr: float = LR) -> None:
        self.case, self.device, self.lr = case, device, lr
        self.logits_dtype = case.torch_dtype

    @classmethod
    @abstractmethod
    def memory(cls, case: Case, operations: Sequence[str]) -> int:
        """Return about how many bytes the variant holds at most, with what the operations take."""

    def inputs(self, features: Tensor) -> Tensor:
        """Return what the variant reads in place of features (B, H)."""
        return features

    @abstractmethod
    def operands(self) -> Operands:
        """Return the layer it computes, as `haste.ops.reference` takes it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, L)."""
        raise NotRunError("offers no logits")

    def backward(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradients of features (B, H), and of the weight in the layout of `operands`."""
        return self.backward_features(x, g), self.backward_weights(x, g)

    def backward_features(self, x: Tensor, g: Tensor) -> Tensor:
        """Return the gradient of the features alone."""
        raise NotRunError("offers no gradient of the features alone")

    def backward_weights(self, x: Tensor, g: Tensor) -> Tensor:
        """Return the gradient of the weight alone."""
        raise NotRunError("offers no gradient of the weight alone")

    def step(self, x: Tensor, positives: Positives) -> tuple[Tensor, Tensor]:
        """Update the weights; return loss and the gradient of the features."""
        raise NotRunError("offers no step")

    def topk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and labels (B, k) of the case's k best."""
        found = self.forward(x).topk(self.case.k, dim=1)
        return found.values, found.indices

    @abstractmethod
    def weight_bytes(self) -> int:
        """Return the bytes of weights, indices and bias."""

    @abstractmethod
    def traffic(self, operation: str) -> int:
        """Return the bytes an operation must move."""

    def flop(self, operation: str) -> int:
        """Return the floating-point operations of the matrix products."""
        return products(operation) * 2 * self.case.batch * self.case.links

    def _traffic(self, operation: str, weight: int, logits: int, *, extra: int = 0, step: int) -> int:
        """Weights read and gradients written once, logits or their gradient once per product; ``step`` given."""
        if operation == "step":
            return step
        counts = {"backward": (2, 2), "topk": (1, 2)}  # of topk: logits written, and read again
        weights, planes = counts.get(operation, (1, 1))
        return weights * weight + planes * logits + extra


def products(operation: str) -> int:
    """Return how many matrix products of the size of the forward pass an operation takes."""
    return {"step": 3, "backward": 2}.get(operation, 1)


class Grouped(Variant):
    """This library's layer, with whatever kernels are in force."""

    name = "haste"
    group_size: int | None = None

    def __init__(self, case: Case, device: torch.device, lr: float = LR) -> None:
        super().__init__(case, device, lr)
        self.layer = make_layer(case, device, group_size=self.group_size)
        self.update = SGD(self.layer.parameters(), lr=lr)
        self.logits_dtype = torch.float32
        self._arguments = (self.layer.weight.detach(), self.layer.bias.detach(), self.layer.indices)

    @classmethod
    def memory(cls, case: Case, operations: Sequence[str]) -> int:
        size = cls.group_size or case.group_size
        held = 2 * case.links * case.torch_dtype.itemsize + 3 * case.links // size + 4 * case.num_labels
        planes = 0 if set(operations) <= {"step", "topk"} else 3  # logits, their gradient and a copy
        return held + planes * 4 * case.batch * case.num_labels

    def operands(self) -> Operands:
        return self._arguments

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.haste.fan_in(x, *self._arguments, self.case.num_labels)

    def backward(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        grads = torch.ops.haste.fan_in_backward(g, x, *self._arguments)
        return grads[0], grads[1]

    def backward_features(self, x: Tensor, g: Tensor) -> Tensor:
        raise NotRunError("computes both gradients in one pass")

    def backward_weights(self, x: Tensor, g: Tensor) -> Tensor:
        raise NotRunError("computes both gradients in one pass")

    def step(self, x: Tensor, positives: Positives) -> tuple[Tensor, Tensor]:
        x.grad = None
        loss = self.layer.step(x, positives, self.update)
        loss.backward()
        assert x.grad is not None
        return loss.detach(), x.grad

    def topk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer.topk(x, self.case.k)

    def weight_bytes(self) -> int:
        return size_of(*self._arguments)

    def traffic(self, operation: str) -> int:
        case, layer = self.case, self.layer
        weight, indices = size_of(layer.weight), size_of(layer.indices)
        logits = case.batch * case.num_labels * self.logits_dtype.itemsize
        ends = case.batch * case.in_features * (case.torch_dtype.itemsize + 4)
        if operation == "step":  # weights read and written once, in one pass
            return 2 * (weight + size_of(layer.bias)) + indices + ends
        if operation == "backward":  # in one pass: weights read, their gradients written
            return 2 * weight + indices + logits + ends
        if operation == "topk":  # running, logits are never stored
            return weight + indices + ends
        return weight + indices + logits + ends


class Ungrouped(Grouped):
    """This library's layer with inputs of each label's own."""

    name, group_size = "group1", 1
