"""Claim fused-step: one fused training step at the scales of Amazon-3M, Amazon-670K and LF-Paper2Keywords-8.6M.

Beside it, with bfloat16 weights and plain SGD: the dense layer, the dense bottleneck of as many FLOP (as three GEMMs
around one compiled pass, and as autograd code compiled whole), masked dense, CSR, and fixed fan-in of each label's own.
"""

from collections.abc import Iterator
from typing import Any

from haste.bench import _run, _sweep, machine
from haste.bench._baselines import Bottleneck, CompiledBottleneck, Csr, Dense, MaskedDense
from haste.bench._case import Case
from haste.bench._checks import check_timed_step
from haste.bench._run import OURS, Options, Outcome
from haste.bench._variants import Grouped, Ungrouped, Variant

CASES = (
    Case(name="A", batch=128, in_features=768, num_labels=2_812_281, fan_in=128, group_size=64),
    Case(name="B", batch=256, in_features=768, num_labels=670_091, fan_in=64, group_size=32),
    Case(name="P2K", batch=128, in_features=384, num_labels=8_190_000, fan_in=64, group_size=32),
)
TARGETS_MS = {"A": 1.3, "B": 0.35, "P2K": 1.8}  # on an H200
KINDS: tuple[type[Variant], ...] = (Grouped, Bottleneck, CompiledBottleneck, Dense, MaskedDense, Csr, Ungrouped)
_TARGET_DEVICE = "H200"


def records(cases: list[Case], options: Options) -> Iterator[dict[str, Any]]:
    """Check and time; yield one record per case. With ``options.sweep`` only this library's step, by every plan.

    Raises:
        CheckError: the fused step is wrong.
    """
    if options.sweep:
        yield from _sweeps(cases, options)
        return
    for case in cases:
        timed = case.tiny() if options.smoke else case
        outcome = _run.run_case(timed, case.tiny(), KINDS, ("step",), options, check_timed_step)
        for record in _run.records("fused-step", timed, outcome, ("step",), options):
            yield record | {"claims": _claims(case, outcome, record["device"]["name"])}


def _sweeps(cases: list[Case], options: Options) -> Iterator[dict[str, Any]]:
    for case in cases:
        timed = case.tiny() if options.smoke else case
        record = {"claim": "fused-step-sweep", "case": case.name, "operation": "step", "smoke": options.smoke}
        record |= {"shape": timed.shape(), **_sweep.sweep(timed, options)}
        yield record | machine.describe(options.device)


def _claims(case: Case, outcome: Outcome, device: str) -> dict[str, str]:
    """Return the targets of the case, with what was found."""
    timings = outcome.timings.get("step", {})
    if OURS not in timings:
        return {}
    found, claims = timings[OURS].median, {}
    if _TARGET_DEVICE in device:
        target = TARGETS_MS[case.name]
        claims["step"] = f"<= {target} ms on an H200: {found:.3f} ms, {_verdict(found <= target)}"
    if Bottleneck.name in timings:
        other = min(timings[n].median for n in (Bottleneck.name, CompiledBottleneck.name) if n in timings)
        claims["bottleneck"] = f"faster than the dense bottleneck: {other / found:.2f}x, {_verdict(found < other)}"
    return claims


def _verdict(met: bool) -> str:
    return "met" if met else "missed"
