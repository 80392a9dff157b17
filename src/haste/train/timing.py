"""Where the time and the memory of a step go: data, encoder, output layer, optimizer."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from haste.estimate._memory import forget_peak, peak


class StepTimes:
    """Seconds of the parts of a step, summed over steps, and the memory that each takes at most.

    On a GPU they are taken from events on its stream and read only in `take`, so that no step waits for the device;
    elsewhere from the clock. The first time that a part is entered after each `take` its peak of memory is noted: on
    a GPU of PyTorch's allocator, elsewhere of the process, on Linux only.

    Args:
        device: where the steps compute.

    Attributes:
        peak: bytes at most before the last part that was watched began; watching makes the system forget them.
    """

    def __init__(self, device: torch.device) -> None:
        self._events: list[tuple[str, Any, Any]] | None = [] if device.type == "cuda" else None
        self._seconds: dict[str, float] = {}
        self._steps = 0
        self.device, self._peaks = device, dict[str, int]()
        self._tells = True
        self.peak = 0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of what is entered to a part."""
        with self._watched(name), self._timed(name):
            yield

    @contextmanager
    def _watched(self, name: str) -> Iterator[None]:
        if name in self._peaks or not self._tells:
            yield
            return
        try:
            self.peak = max(self.peak, peak(self.device))
            forget_peak(self.device)
        except OSError:  # a system that does not tell, or not this process
            self._tells = False
            yield
            return
        yield
        self._peaks[name] = peak(self.device)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        if self._events is None:
            started = time.perf_counter()
            yield
            self._add(name, time.perf_counter() - started)
        else:
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record()
            yield
            events[1].record()
            self._events.append((name, *events))

    def take(self) -> tuple[dict[str, float], dict[str, int], int]:
        """Seconds and peak bytes of every part since the last call, and how many steps they are; waits for a GPU."""
        for name, start, end in self._events or ():
            end.synchronize()
            self._add(name, start.elapsed_time(end) / 1000)
        if self._events:
            self._events.clear()
        taken = self._seconds, self._peaks, self._steps
        self._seconds, self._peaks, self._steps = {}, {}, 0
        return taken

    def end_step(self) -> None:
        """Count a step."""
        self._steps += 1

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
