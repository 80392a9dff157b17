"""What a claim measures: sizes, a layer of those sizes with random numbers in it, and a batch."""

from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from haste.nn import FanInLinear

POSITIVES = 5  # of each row
_DRAW = 1 << 27  # random keys drawn at a time

Positives: TypeAlias = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes of one measurement: B, H, L, F, S, labels to return (0: none), and the dtype of weights and features."""

    name: str
    batch: int
    in_features: int
    num_labels: int
    fan_in: int
    group_size: int
    k: int = 0
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.num_labels < POSITIVES:
            raise ValueError(f"num_labels ({self.num_labels}) must be at least {POSITIVES}, the positives of a row")

    def __str__(self) -> str:
        sizes = f"B={self.batch} H={self.in_features} L={self.num_labels:,} F={self.fan_in} S={self.group_size}"
        return f"{self.name}: {sizes}{f' k={self.k}' if self.k else ''} {self.dtype}"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype, as PyTorch has it."""
        return getattr(torch, self.dtype)

    @property
    def links(self) -> int:
        """L F: weights of the sparse layer, without padding."""
        return self.num_labels * self.fan_in

    @property
    def num_groups(self) -> int:
        """G."""
        return -(-self.num_labels // self.group_size)

    def shape(self) -> dict[str, Any]:
        """Return the sizes for a record."""
        return {name: value for name, value in asdict(self).items() if name != "name" and (name != "k" or value)}

    def tiny(self) -> "Case":
        """Return a case that divides nothing, for smoke runs and comparisons with the reference."""
        labels = 6 * self.group_size + 11
        return replace(self, batch=18, in_features=80, num_labels=labels, fan_in=32, k=min(self.k, 7))


def make_layer(case: Case, device: torch.device, *, group_size: int | None = None, seed: int = 0) -> FanInLinear:
    """Return a layer of the case's sizes with random weights, bias and inputs, made on the device.

    Other numbers than `FanInLinear` draws: its Philox streams would take minutes for 10^7 groups.
    """
    size = group_size or case.group_size
    layer = FanInLinear(
        case.in_features, case.num_labels, case.fan_in, size, dtype=case.torch_dtype, device="meta"
    ).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        layer.weight.normal_(0, case.fan_in**-0.5, generator=generator)
        layer.bias.normal_(-1, 0.1, generator=generator)
        for parameter in (layer.weight, layer.bias):
            parameter.view(layer.num_groups * size, -1)[case.num_labels :] = 0
    if layer.indices is not None and layer.regrown is not None:
        draw_inputs(layer.indices, case.in_features, generator)
        layer.regrown.zero_()
    return layer


def draw_inputs(indices: Tensor, in_features: int, generator: torch.Generator) -> None:
    """Fill indices (G, F) with sorted, distinct inputs of every row, uniformly drawn."""
    rows, fan_in = indices.shape
    length = max(1, _DRAW // in_features)
    for start in range(0, rows, length):
        keys = torch.rand(
            (min(length, rows - start), in_features), generator=generator, device=indices.device, dtype=torch.float32
        )
        chosen = keys.topk(fan_in, dim=1, sorted=False).indices.sort(dim=1).values
        indices[start : start + len(keys)] = chosen.to(indices.dtype)


def make_batch(
    batch: int, in_features: int, num_labels: int, *, device: torch.device | str = "cpu", dtype: str = "float32"
) -> tuple[Tensor, Positives]:
    """Return random features (B, H) that require gradients, and positives distinct within each row."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((batch, in_features), generator=generator)
    first = torch.randint(num_labels, (batch, 1), generator=generator)
    labels = (first + torch.arange(POSITIVES) * (num_labels // POSITIVES)) % num_labels
    offsets = torch.arange(0, labels.numel() + 1, POSITIVES)
    features = features.to(device, getattr(torch, dtype)).requires_grad_()
    return features, (offsets.to(device), labels.flatten().to(device))


def batch_of(case: Case, device: torch.device) -> tuple[Tensor, Positives]:
    """Return the batch of a case (`make_batch`)."""
    return make_batch(case.batch, case.in_features, case.num_labels, device=device, dtype=case.dtype)


def rows_of(positives: Positives) -> tuple[Tensor, Tensor]:
    """Return (batch row, label) of every positive."""
    offsets, labels = positives
    points = torch.arange(len(offsets) - 1, device=labels.device)
    return points.repeat_interleave(offsets.diff(), output_size=len(labels)), labels


def size_of(*held: Tensor | nn.Module | None) -> int:
    """Return the bytes of tensors and of the parameters and buffers of modules."""
    total = 0
    for thing in held:
        if isinstance(thing, nn.Module):
            total += size_of(*thing.parameters(), *thing.buffers())
        elif thing is not None:
            total += thing.numel() * thing.element_size()
    return total
