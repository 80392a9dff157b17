"""The run of one case: variants built as memory allows, checked at a small shape, then timed together; one record."""

import dataclasses
import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from haste.bench import _gpu, machine
from haste.bench._case import Case, batch_of
from haste.bench._checks import check_small
from haste.bench._harness import CheckError
from haste.bench._variants import Grouped, NotRunError, Variant

_SPARE = 0.9  # of the free memory, at most, is planned for

OURS = Grouped.name


@dataclass(frozen=True, kw_only=True)
class Options:
    """How claims are run: on which device, timed or only walked through (smoke), how often.

    sweep: time all plans of the fused step; limit: seconds for each half of that, compiling and trying; None is none.
    variants: names of those to run; none named, all.
    """

    device: torch.device
    smoke: bool = False
    repeats: int = 20
    sweep: bool = False
    limit: float | None = None
    variants: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Outcome:
    """What one case gave, by operation and variant."""

    timings: dict[str, dict[str, _gpu.GpuTiming]] = field(default_factory=dict)
    ran: dict[str, list[str]] = field(default_factory=dict)
    not_run: dict[str, dict[str, str]] = field(default_factory=dict)
    traffic: dict[str, dict[str, int]] = field(default_factory=dict)
    flop: dict[str, dict[str, int]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)  # that should have run, or were wrong

    def merge(self, other: "Outcome") -> None:
        """Take over what another run of the same case gave."""
        for operation, timings in other.timings.items():
            self.timings.setdefault(operation, {}).update(timings)
        for operation, reasons in other.not_run.items():
            self.not_run.setdefault(operation, {}).update(reasons)
        for counts, added in ((self.traffic, other.traffic), (self.flop, other.flop)):
            for operation, numbers in added.items():
                counts.setdefault(operation, {}).update(numbers)
        for operation, names in other.ran.items():
            self.ran.setdefault(operation, []).extend(names)
        self.errors.update(other.errors)
        self.failed += other.failed


def variants(*, fixed_fan_in: bool, device: torch.device, chosen: Sequence[type[Variant]]) -> list[type[Variant]]:
    """Return the variants of a claim; the Triton baseline only where it can be imported."""
    found = list(chosen)
    if fixed_fan_in and device.type == "cuda":
        from haste.bench._fixed_fan_in import FixedFanIn, FixedFanInColumns

        found += [FixedFanIn, FixedFanInColumns]
    return found


def run_case(
    case: Case,
    small: Case,
    kinds: Sequence[type[Variant]],
    operations: Sequence[str],
    options: Options,
    check_timed: Callable[[Grouped], float] | None = None,
) -> Outcome:
    """Check every variant at ``small``, this library's at the timed shape too, and time them.

    A variant that does not fit, does not run or fails its check is noted with the reason.

    Args:
        case: what to time.
        small: sizes for the comparison with the reference.
        kinds: variants; this library's among them.
        operations: of `haste.bench._variants.OPERATIONS`.
        options: device and so on.
        check_timed: checks this library's layer at the timed shape; returns the largest error.

    Raises:
        CheckError: this library's layer is wrong: there is nothing to time.
    """
    outcome = Outcome()
    fitting: list[type[Variant]] = []
    for kind in kinds:
        if options.variants and kind.name not in options.variants:
            continue
        if options.device.type == "cuda" and kind.memory(case, operations) > _free(options.device) * _SPARE:
            needed, free = kind.memory(case, operations) / 1e9, _free(options.device) / 1e9
            _refuse(outcome, operations, kind.name, f"needs about {needed:.0f} GB, {free:.0f} GB are free")
            continue
        with noting(outcome, operations, kind.name):
            for dtype in (case.dtype, "float32") if kind is Grouped else (case.dtype,):
                what = kind.name if dtype == case.dtype else f"{kind.name}_{dtype}"
                tiny = replace(small, name="", dtype=dtype)
                outcome.errors[what] = check_small(kind, tiny, tuple(operations), options.device)
            fitting.append(kind)
    for pack in _packs(fitting, case, operations, options.device):
        _time_pack(pack, case, operations, options, check_timed, outcome)
    release(options.device, compiled=True)
    return outcome


def _time_pack(
    kinds: Sequence[type[Variant]],
    case: Case,
    operations: Sequence[str],
    options: Options,
    check_timed: Callable[[Grouped], float] | None,
    outcome: Outcome,
) -> None:
    built: dict[str, Variant] = {}
    for kind in kinds:
        with noting(outcome, operations, kind.name):
            built[kind.name] = kind(case, options.device)
            if kind is Grouped and check_timed is not None:
                outcome.errors["timed_shape"] = check_timed(built[kind.name])  # type: ignore[arg-type]
    features, positives = batch_of(case, options.device)
    for operation in operations:
        calls: dict[str, Callable[[], None]] = {}
        for name, variant in list(built.items()):
            with noting(outcome, (operation,), name):
                call = bind(variant, operation, features, positives)
                call()  # compiles, and shows whether it runs
                calls[name] = call
                outcome.traffic.setdefault(operation, {})[name] = variant.traffic(operation)
                outcome.flop.setdefault(operation, {})[name] = variant.flop(operation)
        outcome.ran.setdefault(operation, []).extend(calls)
        if not options.smoke:
            outcome.timings.setdefault(operation, {}).update(_gpu.measure(calls, options.repeats))
    built.clear()
    release(options.device)


def bind(variant: Variant, operation: str, features: Tensor, positives: tuple[Tensor, Tensor]) -> Callable[[], None]:
    """Return a call that runs an operation on a batch; what it reads is made here, not in the call."""
    x = variant.inputs(features)
    if operation == "step":
        return lambda: _drop(variant.step(x, positives))
    x = x.detach()
    if operation in ("forward", "topk"):
        read = getattr(variant, operation)
        return lambda: _drop(read(x))
    # laid out as the variant's own logits are
    g = torch.randn_like(variant.forward(x)) * 0.1
    method = getattr(variant, operation)
    return lambda: _drop(method(x, g))


def _drop(_: Any) -> None:
    pass


def records(
    claim: str, case: Case, outcome: Outcome, operations: Sequence[str], options: Options, **more: Any
) -> Iterator[dict[str, Any]]:
    """Yield one record per operation; a smoke run's holds no times."""
    limits = None if options.smoke else _gpu.roofs(options.device)
    for operation in operations:
        timings = outcome.timings.get(operation, {})
        traffic, flop = outcome.traffic.get(operation, {}), outcome.flop.get(operation, {})
        record: dict[str, Any] = {
            "claim": claim,
            "case": case.name,
            "operation": operation,
            "smoke": options.smoke,
            "shape": case.shape(),
            "largest_error": outcome.errors,
            "ran": outcome.ran.get(operation, []),
            "not_run": outcome.not_run.get(operation, {}),
            "failed": sorted(set(outcome.failed)),
            "bytes": traffic,
            "flop": flop,
        }
        if limits is not None:
            ours = timings.get(OURS)
            record |= {
                "ms": {name: timing.median for name, timing in timings.items()},
                "spread": {name: [timing.low, timing.high] for name, timing in timings.items()},
                "host_ms": {name: timing.host for name, timing in timings.items()},
                "repeats": {name: timing.repeats for name, timing in timings.items()},
                "roofline": {name: limits.floor(traffic[name], flop[name]) / t.median for name, t in timings.items()},
                "over_haste": {name: t.median / ours.median for name, t in timings.items()} if ours else {},
                "roofs": dataclasses.asdict(limits),
            }
        yield record | more | machine.describe(options.device)


def table(record: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Lay a record out for people."""
    device = record["device"]
    case = Case(name=f"{record['claim']} {record['case']}", **record["shape"])
    errors = ", ".join(f"{name} {error:.0e}" for name, error in record["largest_error"].items())
    lines = [f"{case}, {record['operation']}, {device['name']}, kernels {device['kernels']}"]
    lines.append(f"checked, largest errors: {errors}")
    if record["smoke"]:
        lines.append(f"smoke run, nothing timed; ran: {', '.join(record['ran'])}")
    else:
        lines.append(f"{'':<38}{'ms':>9}{'quartiles':>20}{'of the roof':>13}{'over haste':>12}{'host ms':>9}")
        for name, ms in sorted(record["ms"].items(), key=lambda item: item[1]):
            low, high = record["spread"][name]
            over = record["over_haste"].get(name)
            lines.append(
                f"{labels.get(name, name):<38}{ms:>9.3f}{f'{low:.3f} .. {high:.3f}':>20}"
                f"{record['roofline'][name]:>12.0%} {'' if over is None else f'{over:.2f}x':>11}"
                f"{record['host_ms'][name]:>9.2f}"
            )
    lines += [f"{labels.get(name, name):<38}not run: {reason}" for name, reason in record["not_run"].items()]
    for name, peak in record.get("peak", {}).items():
        lines.append(
            f"{labels.get(name, name):<38}weights {peak['weights']:,.0f} MB, a step beyond {peak['beyond']:,.0f} MB"
        )
    for name, text in record.get("claims", {}).items():
        lines.append(f"claim {name}: {text}")
    return "\n".join(lines)


def release(device: torch.device, *, compiled: bool = False) -> None:
    """Give freed memory back to the device; with ``compiled`` what torch.compile holds on to as well."""
    if compiled and "torch._dynamo" in sys.modules and device.type == "cuda":
        torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def first_line(error: BaseException) -> str:
    """Return the first line of an error, cut to 200 characters."""
    return (str(error).strip().splitlines() or [""])[0][:200]


def _free(device: torch.device) -> int:
    release(device)
    return torch.cuda.mem_get_info(device)[0]


def _packs(
    kinds: Sequence[type[Variant]], case: Case, operations: Sequence[str], device: torch.device
) -> list[list[type[Variant]]]:
    """Split variants into as few runs as memory demands, in order."""
    if device.type != "cuda":
        return [list(kinds)]
    packs: list[list[type[Variant]]] = []
    room, left = _free(device) * _SPARE, 0.0
    for kind in kinds:
        if not packs or kind.memory(case, operations) > left:
            packs.append([])
            left = room
        packs[-1].append(kind)
        left -= kind.memory(case, operations)
    return packs


def _refuse(outcome: Outcome, operations: Sequence[str], name: str, reason: str) -> None:
    for operation in operations:
        outcome.not_run.setdefault(operation, {})[name] = reason


@contextmanager
def noting(outcome: Outcome, operations: Sequence[str], name: str) -> Iterator[None]:
    """Turn a failure into a note; but a wrong result of this library's is raised."""
    try:
        yield
    except CheckError as error:
        if name == OURS:
            raise
        outcome.failed.append(name)
        _refuse(outcome, operations, name, f"wrong: {error}")
    except NotRunError as error:
        _refuse(outcome, operations, name, str(error))
    except torch.OutOfMemoryError as error:
        outcome.failed.append(name)
        _refuse(outcome, operations, name, f"out of memory: {first_line(error)}")
    except Exception as error:  # noqa: BLE001 - that something does not run is a result
        outcome.failed.append(name)
        _refuse(outcome, operations, name, f"{type(error).__name__}: {first_line(error)}")
