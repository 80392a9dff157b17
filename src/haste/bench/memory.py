"""Claim memory: what a training step takes beyond weights, features and their gradient; and 100 million labels."""

from collections.abc import Iterator
from typing import Any

import torch

from haste.bench import _run, fused_step
from haste.bench._case import Case, batch_of, size_of
from haste.bench._checks import check_timed_step
from haste.bench._run import OURS, Options, Outcome
from haste.bench._variants import Variant

_MB = 1e6
CASES = (
    fused_step.CASES[0],
    Case(name="100M", batch=128, in_features=768, num_labels=100_000_000, fan_in=64, group_size=64),
)
TARGETS_MB = {"A": 256}


def records(cases: list[Case], options: Options) -> Iterator[dict[str, Any]]:
    """Check, measure peaks, time; yield one record per case.

    ``peak`` holds MB of ``weights`` (with indices) and what a step takes ``beyond`` weights, features and gradient.

    Raises:
        CheckError: the fused step is wrong.
    """
    for case in cases:
        timed = case.tiny() if options.smoke else case
        peaks: dict[str, dict[str, float]] = {}
        outcome = Outcome()
        for kind in fused_step.KINDS:  # one at a time: the largest of them leave no room for another
            part = _run.run_case(timed, case.tiny(), [kind], ("step",), options, check_timed_step)
            outcome.merge(part)
            if kind.name in part.ran.get("step", []) and options.device.type == "cuda":
                with _run.noting(outcome, ("step",), kind.name):
                    peaks[kind.name] = _peak(kind, timed, options.device)
        for record in _run.records("memory", timed, outcome, ("step",), options):
            yield record | {"peak": peaks, "claims": _claims(case, peaks)} if not options.smoke else record


def _peak(kind: type[Variant], case: Case, device: torch.device) -> dict[str, float]:
    """Return MB of weights, and of what a step takes beyond weights, features and their gradient."""
    _run.release(device)
    variant, (features, positives) = kind(case, device), batch_of(case, device)
    x = variant.inputs(features)
    _run.release(device)
    before = torch.cuda.memory_allocated(device)
    variant.step(x, positives)  # compiles; buffers kept from now on count
    if features.grad is not None:
        features.grad = None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    variant.step(x, positives)
    torch.cuda.synchronize(device)
    extra = torch.cuda.max_memory_allocated(device) - before - size_of(x)
    return {"weights": variant.weight_bytes() / _MB, "beyond": extra / _MB}


def _claims(case: Case, peaks: dict[str, dict[str, float]]) -> dict[str, str]:
    if OURS not in peaks or case.name not in TARGETS_MB:
        return {}
    found, target = peaks[OURS]["beyond"], TARGETS_MB[case.name]
    return {"extra memory": f"<= {target} MB: {found:.0f} MB, {'met' if found <= target else 'missed'}"}
