"""A layer as the kernels take it: tiles of rows, and where its updates go."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from haste.ops.triton import plans
from haste.ops.triton._batch import SortedPairs, sort_pairs
from haste.ops.triton.kernels.elementwise import numbers_kernel

_LOG_ZERO = -1e30  # 2^(t x) is 0 with it, as beta^t for beta = 0


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Weights cut into tiles of rows.

    weight (G, S, F), bias (G, S), indices (G, F) or None, contiguous; layout of `plans.layout_of`.
    """

    weight: Tensor
    bias: Tensor
    indices: Tensor | None
    num_labels: int
    layout: str

    @property
    def group_size(self) -> int:
        return self.weight.shape[1]

    @property
    def fan_in(self) -> int:
        return self.weight.shape[2]

    @property
    def num_rows(self) -> int:
        """Rows of the weight, padding included."""
        return self.weight.shape[0] * self.weight.shape[1]

    @property
    def rows(self) -> int:
        """Rows of a tile."""
        return plans.tile_rows(self.group_size, self.layout)

    @property
    def tiles(self) -> int:
        return -(-self.num_rows // self.rows)

    @property
    def index_pointer(self) -> Tensor:
        return self.bias if self.indices is None else self.indices

    def sort(self, offsets: Tensor, labels: Tensor) -> SortedPairs:
        """Sort CSR pairs (point, row) by row."""
        return sort_pairs(offsets, labels, self.rows, self.tiles)


def make_layer(weight: Tensor, bias: Tensor, indices: Tensor | None, num_labels: int) -> Layer:
    """Return the layer.

    Raises:
        ValueError: a shape that no kernel takes, or tensors that are not contiguous.
    """
    layout = plans.layout_of(weight.shape[1], gathered=indices is not None)
    plans.check_shape(weight.shape[1], weight.shape[2], layout)
    for name, tensor in (("weight", weight), ("bias", bias), ("indices", indices)):
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} (strides {tensor.stride()}) must be contiguous; call .contiguous() first")
    return Layer(weight=weight, bias=bias, indices=indices, num_labels=num_labels, layout=layout)


@dataclass(frozen=True, kw_only=True)
class Sink:
    """What becomes of the gradients of weight and bias.

    rule: ``grad`` (written to weight_state[0] and bias_state[0]), ``sgd``, ``momentum`` or ``adamw``.
    weight_state, bias_state: the rule's tensors, or the gradients.
    rates: of the weight's rows, float32, contiguous; None is 1 throughout.
    numbers: (2, 8) float32 of `numbers_kernel`.
    step: 0-dim int64.
    """

    rule: str
    weight_state: Sequence[Tensor]
    bias_state: Sequence[Tensor]
    numbers: Tensor
    step: Tensor
    seed: int = 0
    layer: int = 0
    first_row: int = 0
    rates: Tensor | None = None

    def pointers(self, layer: Layer) -> tuple[Tensor, ...]:
        """Return weight, its two states, bias, its two states, rates; what is absent repeats what it belongs to."""
        pointers: list[Tensor] = []
        for tensor, state in ((layer.weight, self.weight_state), (layer.bias, self.bias_state)):
            pointers += [tensor, *state, *(tensor,) * (2 - len(state))]
        return *pointers, layer.weight if self.rates is None else self.rates


def gradients(grad_weight: Tensor, grad_bias: Tensor) -> Sink:
    """Return the sink that keeps the gradients."""
    return Sink(
        rule="grad",
        weight_state=[grad_weight],
        bias_state=[grad_bias],
        numbers=grad_bias,
        step=torch.zeros((), dtype=torch.int64, device=grad_weight.device),
    )


def on_device(value: Tensor, device: torch.device) -> Tensor:
    """Return a 0-dim tensor on the device; one on the host is read there, without waiting for the device."""
    return value if value.device == device else torch.full((), value.item(), dtype=value.dtype, device=device)


def numbers_of(
    rule: str, lr: Tensor, bias_lr: Tensor, step: Tensor, hyper: Sequence[float], bias_hyper: Sequence[float]
) -> Tensor:
    """Return the numbers of a rule (2, 8) from 0-dim device tensors lr and step: live in a CUDA graph."""
    numbers = torch.empty((2, 8), dtype=torch.float32, device=step.device)
    columns = zip(_constants(rule, hyper), _constants(rule, bias_hyper), strict=True)
    constants = [value for pair in columns for value in pair]
    numbers_kernel[(2,)](numbers, lr, bias_lr, step, *constants, RULE=rule, num_warps=1)
    return numbers


def _constants(rule: str, hyper: Sequence[float]) -> tuple[float, ...]:
    """Return decay, then (beta, 1 - beta, log2 beta) of both moments, then eps, of a rule's hyperparameters."""
    if rule != "adamw":
        momentum, decay = hyper
        return decay, momentum, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    first, second, eps, decay = hyper
    return decay, *_of_beta(first), *_of_beta(second), eps


def _of_beta(beta: float) -> tuple[float, float, float]:
    return beta, 1 - beta, torch.tensor(beta, dtype=torch.float64).log2().item() if beta > 0 else _LOG_ZERO


def rule_name(rule: str, state: Sequence[Tensor]) -> str:
    """Return the kernels' name of a rule: ``sgd`` with a state is ``momentum``."""
    return "momentum" if rule == "sgd" and state else rule


def grid_of(programs: int, tiles: int) -> tuple[int]:
    """Return the grid of a kernel whose programs walk over tiles; 0 programs is one for every tile."""
    return (min(programs, tiles) if programs else tiles,)


def padded_batch(batch: int, block: int) -> int:
    """Return the batch rounded up to whole blocks."""
    return triton.cdiv(batch, block) * block
