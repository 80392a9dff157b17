"""Devices: how much they hold, and their roofs. A time from a roof is a floor, never a prediction."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

_CONTEXT = 0.5e9  # of CUDA and its libraries' code, beside what PyTorch counts; not measured
_PYTHON = 0.42e9  # of Python, PyTorch and haste after a first step, on Linux; measured


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device.

    memory: bytes it has.
    bandwidth: bytes a second to and from its memory.
    bfloat16, float32: FLOP a second of matrix products.
    framework: bytes taken before anything of a model is.
    source: of the figures.
    """

    name: str
    memory: float
    bandwidth: float
    bfloat16: float
    float32: float
    framework: float = _CONTEXT
    source: str

    @property
    def kind(self) -> str:
        """cpu or cuda."""
        return "cpu" if self.name == "cpu" else "cuda"


_SHEET = "vendor's data sheet, without sparsity"
DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        device.name: device
        for device in (
            Device(
                name="h200",
                memory=141e9,
                bandwidth=4.3e12,
                bfloat16=790e12,
                float32=67e12,
                source="bandwidth of a copy and bfloat16 rate of a product measured on one; float32: data sheet",
            ),
            Device(
                name="h100", memory=80e9, bandwidth=3.35e12, bfloat16=989e12, float32=67e12, source=f"SXM, {_SHEET}"
            ),
            Device(
                name="a100",
                memory=80e9,
                bandwidth=2.039e12,
                bfloat16=312e12,
                float32=19.5e12,
                source=f"SXM 80 GB, {_SHEET}",
            ),
            Device(name="l4", memory=24e9, bandwidth=0.3e12, bfloat16=121e12, float32=30.3e12, source=_SHEET),
        )
    }
)


def device(name: str, memory: float | None = None) -> Device:
    """Return a device of the table, or this machine's CPU, whose roofs are measured now (a quarter of a second).

    Args:
        name: h200, h100, a100, l4 or cpu, in any case.
        memory: bytes of the CPU that may be used; for others the table's.

    Raises:
        ValueError: it is not known.
    """
    name = name.lower()
    if name == "cpu":
        return _cpu(memory or 0.0)
    if name not in DEVICES:
        raise ValueError(f"device ({name}) must be one of cpu, {', '.join(DEVICES)}")
    return DEVICES[name]


def _cpu(memory: float) -> Device:
    copied = torch.ones(1 << 24)
    target = torch.empty_like(copied)
    matrix = torch.ones((768, 768))
    product = torch.empty_like(matrix)
    copy = _fastest(lambda: target.copy_(copied))
    multiply = _fastest(lambda: torch.mm(matrix, matrix, out=product))
    rate = 2 * 768**3 / multiply
    return Device(
        name="cpu",
        memory=memory,
        bandwidth=2 * copied.nbytes / copy,
        bfloat16=rate,  # weights are widened, all arithmetic is float32
        float32=rate,
        framework=_PYTHON,
        source=f"a copy and a product measured just now, {torch.get_num_threads()} threads",
    )


def _fastest(run: object) -> float:
    assert callable(run)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
