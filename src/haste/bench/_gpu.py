"""Time on a GPU: events around each call, L2 flushed before it, variants taking turns; and the roofs of the device."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from haste.bench._harness import Timing

_SLEEP_MS = 1.0  # the device waits while the call is enqueued, so that no launch gap is measured
_LIMIT_MS = 1500.0  # of one variant's timed calls together, where they are slow
_WARMUP, _FEWEST = 3, 5
_KNOWN = {"H200": (4.3e12, 790e12)}  # bytes/s copied and bfloat16 FLOP/s of a GEMM on random numbers, measured


class NoGpuError(RuntimeError):
    """The claim needs a CUDA GPU, and there is none."""


@dataclass(frozen=True, kw_only=True)
class GpuTiming(Timing):
    """Median and quartiles of the device's time in ms, and the host's median to enqueue the call."""

    host: float
    repeats: int


@dataclass(frozen=True, kw_only=True)
class Roofs:
    """What the device can do at most."""

    bytes_per_s: float
    flop_per_s: float
    source: str

    def floor(self, traffic: float, flop: float) -> float:
        """Return the time, ms, below which moving so many bytes and multiplying so much cannot fall."""
        return 1e3 * max(traffic / self.bytes_per_s, flop / self.flop_per_s)


def require_gpu(claim: str) -> torch.device:
    """Return the CUDA device.

    Raises:
        NoGpuError: there is none.
    """
    if not torch.cuda.is_available():
        raise NoGpuError(
            f"claim {claim} needs a CUDA GPU, and PyTorch {torch.__version__} finds none; "
            "--smoke runs it on tiny shapes on the CPU, untimed"
        )
    return torch.device("cuda", torch.cuda.current_device())


@lru_cache(maxsize=1)
def roofs(device: torch.device) -> Roofs:
    """Return the roofs of a known GPU; measure those of another: a copy of 2 GB, a GEMM of side 8192."""
    name = torch.cuda.get_device_name(device)
    for known, (moved, flop) in _KNOWN.items():
        if known in name:
            return Roofs(bytes_per_s=moved, flop_per_s=flop, source=f"known of {known}")
    size = min(1 << 30, torch.cuda.mem_get_info(device)[0] // 8)
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    a, b = (torch.randn((8192, 8192), device=device).to(torch.bfloat16) for _ in range(2))
    c = torch.empty_like(a)
    measured = measure({"copy": lambda: _ignore(target.copy_(source)), "gemm": lambda: _ignore(torch.mm(a, b, out=c))})
    return Roofs(
        bytes_per_s=2 * size / (1e-3 * measured["copy"].median),
        flop_per_s=2 * 8192**3 / (1e-3 * measured["gemm"].median),
        source="measured in this run",
    )


def _ignore(_: Any) -> None:
    pass


def measure(
    calls: Mapping[str, Callable[[], None]], repeats: int = 20, limit_ms: float = _LIMIT_MS
) -> dict[str, GpuTiming]:
    """Time calls on the current GPU, once per round each.

    A call slow enough to exceed ``limit_ms`` over all rounds is timed in fewer rounds, five at least.
    """
    flush = torch.zeros(_flush_bytes() // 8, dtype=torch.int64, device="cuda")
    cycles = int(_SLEEP_MS * _cycles_per_ms())
    rounds: dict[str, int] = {}
    for name, call in calls.items():
        for _ in range(_WARMUP):
            device_ms, _ = _once(call, flush, 0)
        rounds[name] = max(min(_FEWEST, repeats), min(repeats, int(limit_ms / max(device_ms, 1e-3))))
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(repeats):
        for name, call in calls.items():
            if turn < rounds[name]:
                spent[name].append(_once(call, flush, cycles))
    timings = {}
    for name, values in spent.items():
        low, median, high = np.quantile([device for device, _ in values], (0.25, 0.5, 0.75)).tolist()
        host = float(np.median([host for _, host in values]))
        timings[name] = GpuTiming(median=median, low=low, high=high, host=host, repeats=len(values))
    return timings


def _once(call: Callable[[], None], flush: torch.Tensor, cycles: int) -> tuple[float, float]:
    """Return (device ms, host ms) of one call."""
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    flush.sum()  # read, not written: what it leaves in L2 need not be written back while the call runs
    if cycles:
        torch.cuda._sleep(cycles)
    start.record()
    began = time.perf_counter()
    call()
    host = 1e3 * (time.perf_counter() - began)
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop), host


def _flush_bytes() -> int:
    return max(1 << 28, 4 * getattr(torch.cuda.get_device_properties("cuda"), "L2_cache_size", 0))


@lru_cache(maxsize=1)
def _cycles_per_ms() -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(1_000_000)
    start.record()
    torch.cuda._sleep(10_000_000)
    stop.record()
    torch.cuda.synchronize()
    return 10_000_000 / start.elapsed_time(stop)
