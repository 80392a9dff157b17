"""What every claim shares: check first, then time in one interleaved run."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor


class CheckError(AssertionError):
    """A result differs from the reference: there is nothing to time."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Median and quartiles of one variant, in ms."""

    median: float
    low: float
    high: float


def check(what: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> float:
    """Compare tensors by name; return the largest error relative to the largest expected magnitude.

    Raises:
        CheckError: a tensor is further off than tolerance, or not finite.
    """
    worst = 0.0
    for name, truth in expected.items():
        wide = truth.detach().double()
        error = (found[name].detach().double() - wide).abs().max() / wide.abs().max()
        if not error <= tolerance:
            raise CheckError(
                f"{what}: {name} is off by {error:.2e} of its largest value; at most {tolerance:.0e} passes"
            )
        worst = max(worst, error.item())
    return worst


def interleave(variants: Mapping[str, Callable[[], None]], repeats: int, warmup: int = 2) -> dict[str, Timing]:
    """Time each variant once per round, so that a busy moment of the machine hits all of them alike."""
    spent: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(warmup + repeats):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if turn >= warmup:
                spent[name].append(1e3 * (time.perf_counter() - start))
    timings = {}
    for name, values in spent.items():
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        timings[name] = Timing(median=median, low=low, high=high)
    return timings
