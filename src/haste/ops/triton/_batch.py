"""A batch as the kernels take it, prepared on the device without a word to the host."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from haste.ops.triton.kernels.elementwise import prepare_kernel

_BLOCK = 32
_BEYOND = 2**62  # a row of no tile


def compute_dtype(features: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype of the products: the common 16-bit type of features and weights, else float32.

    Raises:
        TypeError: float64, which only the PyTorch kernels know.
    """
    for name, tensor in (("features", features), ("weight", weight)):
        if tensor.dtype == torch.float64:
            raise TypeError(f"{name} ({tensor.dtype}) must be float32 or bfloat16; float64 needs HASTE_KERNELS=torch")
    if features.dtype == weight.dtype and features.dtype in (torch.bfloat16, torch.float16):
        return features.dtype
    return torch.float32


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Features of a batch, transposed and padded.

    xt: (H, leading) in the dtype of the products, zero beyond the batch.
    bad: 0-dim int32, 1 where a feature is NaN or infinite: then no kernel does anything.
    size: B.
    block: points of a tile; leading is a multiple of it.
    """

    xt: Tensor
    bad: Tensor
    size: int
    block: int

    @property
    def leading(self) -> int:
        return self.xt.shape[1]

    @property
    def full(self) -> bool:
        """Whether there is no padding."""
        return self.leading == self.size

    @property
    def flush(self) -> bool:
        """Whether the loss may take the instructions of NVIDIA GPUs."""
        return self.xt.is_cuda and not torch.version.hip

    @property
    def blocks(self) -> int:
        return self.leading // self.block


def prepare(features: Tensor, dtype: torch.dtype, block: int) -> Batch:
    """Transpose features (B, H) into a `Batch`."""
    batch, in_features = features.shape
    leading = -(-batch // block) * block
    if in_features * leading >= 2**31:
        raise ValueError(
            f"features {tuple(features.shape)} must have fewer than 2^31 elements, padded to {leading} rows, for the "
            "triton kernels; split the batch"
        )
    xt = torch.empty((in_features, leading), dtype=dtype, device=features.device)
    bad = torch.zeros((), dtype=torch.int32, device=features.device)
    grid = (triton.cdiv(in_features, _BLOCK), triton.cdiv(leading, _BLOCK))
    prepare_kernel[grid](features, xt, bad, batch, in_features, *features.stride(), leading, BLOCK=_BLOCK)
    return Batch(xt=xt, bad=bad, size=batch, block=block)


@dataclass(frozen=True, kw_only=True)
class SortedPairs:
    """(row, point) pairs of a batch sorted by row: rows int64, points int32, and where each tile's begin, int32."""

    rows: Tensor
    points: Tensor
    bounds: Tensor


def sort_pairs(offsets: Tensor, rows: Tensor, rows_per_tile: int, tiles: int) -> SortedPairs:
    """Sort CSR pairs by row; those beyond offsets[-1], of a buffer of fixed capacity, belong to no tile."""
    position = torch.arange(len(rows), device=rows.device)
    points = torch.searchsorted(offsets, position, right=True) - 1
    ordered, order = torch.where(position < offsets[-1], rows, _BEYOND).sort(stable=True)
    starts = torch.arange(tiles + 1, device=rows.device) * rows_per_tile
    bounds = torch.searchsorted(ordered, starts, out_int32=True)
    return SortedPairs(rows=ordered, points=points[order].to(torch.int32), bounds=bounds)
