"""Where the time of a step goes: data, encoder, output layer, optimizer."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class StepTimes:
    """Seconds of the parts of a step, summed over steps.

    On a GPU they are taken from events on its stream and read only in `take`, so that no step waits for the device;
    elsewhere from the clock.

    Args:
        device: where the steps compute.
    """

    def __init__(self, device: torch.device) -> None:
        self._events: list[tuple[str, Any, Any]] | None = [] if device.type == "cuda" else None
        self._seconds: dict[str, float] = {}
        self._steps = 0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of what is entered to a part."""
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

    def take(self) -> tuple[dict[str, float], int]:
        """Seconds of every part since the last call, and how many steps they are; waits for a GPU."""
        for name, start, end in self._events or ():
            end.synchronize()
            self._add(name, start.elapsed_time(end) / 1000)
        if self._events:
            self._events.clear()
        taken, self._seconds, self._steps = (self._seconds, self._steps), {}, 0
        return taken

    def end_step(self) -> None:
        """Count a step."""
        self._steps += 1

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
