"""What an output layer holds, for how long, and what a step of it computes and moves.

Sizes follow the code: the layout of `haste.nn.FanInLinear` and `HeadTail`, on a CPU the chunks of
`haste.ops._chunks`, on a GPU the buffers that docs/kernels.md names. Bytes unless said.
"""

from dataclasses import dataclass
from math import ceil

import torch

from haste import topology
from haste.ops._chunks import groups_per_chunk

MB = 1e6
_BYTES = {"float32": 4, "bfloat16": 2}
_LINK_SORT = 28  # bytes a link: score, order and its keys, while rewiring ranks the links of each group
_CPU_REWIRE = 28 * MB  # one run of groups while links are moved, measured
_GPU_REWIRE = 300 * MB  # 2^26 numbers of float32, one run of groups
_ROUNDING = 32  # bytes a weight of a chunk: random bits and the copies that stochastic rounding makes, CPU
_CPU_CONSTRUCTION = 28 * MB  # random numbers of one run of rows, which the C library keeps; measured
# As `haste.ops.triton.plans`, which only machines with triton can import.
_GPU_SLOPES = 16 << 20  # gradient of the logits of one chunk of tiles
_GPU_TILE_ROWS = {"dense": 64, "rows": 32}
_GPU_TILE = 32  # bytes a tile: losses, their double precision copy, where its positives begin
_GPU_COPIES = 8  # partial sums of a dense layer's gradient of the features


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One fixed fan-in layer: L labels that each read F of H inputs, S labels sharing theirs.

    dtype: of the weights. states: float32 numbers that the optimizer keeps for each weight. rates: whether it keeps one
    for each label.
    """

    num_labels: int
    inputs: int
    fan_in: int
    group_size: int
    dtype: str
    states: int
    rates: bool = False

    @property
    def dense(self) -> bool:
        """Whether every label reads all inputs."""
        return self.fan_in == self.inputs

    @property
    def groups(self) -> int:
        """G, the last one padded."""
        return ceil(self.num_labels / self.group_size)

    @property
    def rows(self) -> int:
        """Labels with padding."""
        return self.groups * self.group_size

    @property
    def links(self) -> int:
        """Inputs of all groups, (G, F); 0 for a dense layer."""
        return 0 if self.dense else self.groups * self.fan_in

    @property
    def weight_bytes(self) -> int:
        """Of the weights alone."""
        return self.rows * self.fan_in * _BYTES[self.dtype]

    @property
    def _rate_bytes(self) -> int:
        return 4 * self.rows * self.rates

    def held(self) -> dict[str, float]:
        """Bytes from the first step to the last, by part."""
        index_bytes = torch.empty((), dtype=topology.index_dtype(self.inputs)).element_size()
        return {
            "output weights": self.weight_bytes,
            "output biases": 4 * self.rows,
            "output indices": self.links * (index_bytes + 1),  # and whether the link came with the last rewiring
            "output optimizer": 4 * self.states * self.rows * (self.fan_in + 1) + self._rate_bytes,
        }

    def step_buffers(self, batch: int, device: str) -> float:
        """Temporaries of one fused pass beyond the features and their gradient."""
        if device != "cpu":
            return self._gpu_buffers(batch)
        weight = torch.empty((1, self.group_size, self.fan_in))
        groups = min(self.groups, groups_per_chunk(weight, batch, None if self.dense else torch.empty(0)))
        weights, logits = groups * self.group_size * self.fan_in, groups * self.group_size * batch
        gathered = 0 if self.dense else 2 * groups * self.fan_in * batch if self.group_size > 1 else 6 * weights
        numbers = 3 * logits + gathered + weights
        if self.dtype == "float32":
            return 4 * numbers
        return 4 * (numbers + (2 + self.states) * weights) + _ROUNDING * weights

    def _gpu_buffers(self, batch: int) -> float:
        layout = "dense" if self.dense else "rows" if self.group_size == 1 else "gathered"
        tiles = ceil(self.rows / _GPU_TILE_ROWS.get(layout, self.group_size))
        rows = min(self.rows, _GPU_SLOPES / (batch * _BYTES[self.dtype]))  # of one chunk
        found = _GPU_TILE * tiles + rows * batch * _BYTES[self.dtype]
        if layout == "dense":
            found += 4.0 * (_GPU_COPIES - 1) * self.inputs * batch
        return found + (4 * rows * self.fan_in if layout == "rows" else 0)

    def rewire_buffers(self, regrow: str, device: str) -> float:
        """Temporaries of one rewiring; 0 where links never change."""
        if self.dense or regrow == "none":
            return 0.0
        return _LINK_SORT * self.links + (_CPU_REWIRE if device == "cpu" else _GPU_REWIRE)

    def construction(self, device: str) -> float:
        """Temporaries while initial weights and inputs are drawn."""
        return _CPU_CONSTRUCTION

    def flop(self, batch: int) -> float:
        """Of one step: logits, gradient of the features, gradient of the weights, 2 B L F each."""
        return 6.0 * batch * self.rows * self.fan_in

    def traffic(self, batch: int) -> float:
        """Bytes that one fused step must move: weights and state read and written, indices read."""
        held = self.held()
        kept = held["output weights"] + held["output biases"] + held["output optimizer"]
        return 2 * kept - self._rate_bytes + held["output indices"] * 2 / 3 + 12 * batch * self.inputs


def weight_gradient(layer: Layer) -> float:
    """What ordinary training with `loss` holds in ``.grad`` and the fused pass does not."""
    return layer.weight_bytes + 4.0 * layer.rows
