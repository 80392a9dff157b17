"""Fixed fan-in by plain Triton kernels, as the baseline of HASTE's Figure 4 computes it; imported on a GPU only.

A program owns a tile of labels and a tile of the batch. Label by label and link by link it gathers inputs from global
memory; the gradient of the features is scattered with one global atomic for each link and batch row. No tensor cores
can help: neighbouring labels read different inputs. (ECML 2023, arXiv 2306.03725; HASTE, arXiv 2606.01117.)
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from haste.bench._case import Case, make_layer, size_of
from haste.bench._variants import LR, Operands, Variant

TILE_LABELS, TILE_BATCH = 32, 64


@triton.jit
def forward_kernel(
    x, weight, indices, out, batch, labels, stride_b, stride_h,
    FAN_IN: tl.constexpr, TILE_L: tl.constexpr, TILE_B: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * TILE_L + tl.arange(0, TILE_L)
    points = tl.program_id(1) * TILE_B + tl.arange(0, TILE_B)
    live, here = rows < labels, points < batch
    both = here[:, None] & live[None, :]
    links = rows.to(tl.int64) * FAN_IN
    total = tl.zeros((TILE_B, TILE_L), tl.float32)
    for f in range(FAN_IN):
        column = tl.load(indices + links + f, mask=live, other=0).to(tl.int32)
        w = tl.load(weight + links + f, mask=live, other=0).to(tl.float32)
        read = tl.load(x + points[:, None] * stride_b + column[None, :] * stride_h, mask=both, other=0)
        total += read.to(tl.float32) * w[None, :]
    place = points[:, None].to(tl.int64) * labels + rows[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=both)


@triton.jit
def backward_features_kernel(
    g, weight, indices, out, batch, labels, stride_b, stride_h,
    FAN_IN: tl.constexpr, TILE_L: tl.constexpr, TILE_B: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * TILE_L + tl.arange(0, TILE_L)
    points = tl.program_id(1) * TILE_B + tl.arange(0, TILE_B)
    live, here = rows < labels, points < batch
    both = here[:, None] & live[None, :]
    links = rows.to(tl.int64) * FAN_IN
    slopes = tl.load(g + points[:, None].to(tl.int64) * labels + rows[None, :], mask=both, other=0).to(tl.float32)
    for f in range(FAN_IN):
        column = tl.load(indices + links + f, mask=live, other=0).to(tl.int32)
        w = tl.load(weight + links + f, mask=live, other=0).to(tl.float32)
        place = points[:, None] * stride_b + column[None, :] * stride_h
        tl.atomic_add(out + place, slopes * w[None, :], mask=both, sem="relaxed")


@triton.jit
def backward_weights_kernel(
    g, x, indices, out, batch, labels, stride_b, stride_h,
    FAN_IN: tl.constexpr, TILE_L: tl.constexpr, TILE_B: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * TILE_L + tl.arange(0, TILE_L)
    live = rows < labels
    links = rows.to(tl.int64) * FAN_IN
    for f in range(FAN_IN):
        column = tl.load(indices + links + f, mask=live, other=0).to(tl.int32)
        total = tl.zeros((TILE_L,), tl.float32)
        for block in range(BLOCKS):
            points = block * TILE_B + tl.arange(0, TILE_B)
            both = (points < batch)[:, None] & live[None, :]
            slopes = tl.load(g + points[:, None].to(tl.int64) * labels + rows[None, :], mask=both, other=0)
            read = tl.load(x + points[:, None] * stride_b + column[None, :] * stride_h, mask=both, other=0)
            total += tl.sum(slopes.to(tl.float32) * read.to(tl.float32), axis=0)
        tl.store(out + links + f, total.to(out.dtype.element_ty), mask=live)


def _blocks(x: Tensor) -> int:
    return triton.cdiv(len(x), TILE_BATCH)


class FixedFanIn(Variant):
    """Inputs of each label's own, features as they are, (B, H): a row's gathers are H apart."""

    name = "fixed_fan_in"

    def __init__(self, case: Case, device: torch.device, lr: float = LR) -> None:
        super().__init__(case, device, lr)
        layer = make_layer(case, device, group_size=1)
        assert layer.indices is not None
        self.weight, self.indices = layer.weight.detach().squeeze(1), layer.indices
        self.logits_dtype = torch.float32  # as this library's

    @classmethod
    def memory(cls, case: Case, operations: Sequence[str]) -> int:
        return case.links * (2 * case.torch_dtype.itemsize + 2) + 2 * 4 * case.batch * case.num_labels

    def operands(self) -> Operands:
        return self.weight[:, None, :], torch.zeros((len(self.weight), 1), device=self.device), self.indices

    def _laid_out(self, x: Tensor) -> Tensor:
        return x

    def inputs(self, features: Tensor) -> Tensor:
        return self._laid_out(features.detach())

    def _launch(
        self, kernel: Any, first: Tensor, second: Tensor, out: Tensor, like: Tensor, tiles: int, **constants: int
    ) -> None:
        labels, fan_in = self.weight.shape
        kernel[(triton.cdiv(labels, TILE_LABELS), tiles)](
            first, second, self.indices, out, len(like), labels, *like.stride(),
            FAN_IN=fan_in, TILE_L=TILE_LABELS, TILE_B=TILE_BATCH, **constants,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out = torch.empty((len(x), len(self.weight)), dtype=self.logits_dtype, device=self.device)
        self._launch(forward_kernel, x, self.weight, out, x, _blocks(x))
        return out

    def backward_features(self, x: Tensor, g: Tensor) -> Tensor:
        out = torch.zeros_like(x, dtype=torch.float32)  # keeps the layout
        self._launch(backward_features_kernel, g, self.weight, out, out, _blocks(x))
        return out

    def backward_weights(self, x: Tensor, g: Tensor) -> Tensor:
        out = torch.empty_like(self.weight)
        self._launch(backward_weights_kernel, g, x, out, x, 1, BLOCKS=_blocks(x))
        return out[:, None, :]

    def weight_bytes(self) -> int:
        return size_of(self.weight, self.indices)

    def traffic(self, operation: str) -> int:
        logits = 4 * self.case.batch * self.case.num_labels
        indices = size_of(self.indices) * (2 if operation == "backward" else 1)
        return self._traffic(operation, size_of(self.weight), logits, extra=indices, step=0)


class FixedFanInColumns(FixedFanIn):
    """The same with features laid out (H, B), so that what a label gathers for its batch rows is contiguous."""

    name = "fixed_fan_in_columns"

    def _laid_out(self, x: Tensor) -> Tensor:
        return x.t().contiguous().t()
