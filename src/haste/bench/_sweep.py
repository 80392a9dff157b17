"""Every plan of the Triton step, checked and timed at one shape: who wins, and by how much.

Plans are compiled ahead of the timing by several processes, into Triton's cache on disk, since one compilation takes
seconds. A plan that does not compile, does not run or is wrong is noted with the reason.
"""

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from importlib import import_module
from typing import Any

import torch

from haste.bench import _gpu
from haste.bench._case import Case, Positives, batch_of
from haste.bench._checks import check_timed_step
from haste.bench._run import Options, first_line, release
from haste.bench._variants import Grouped

_ALIKE = 256  # groups: sizes that agree modulo this many compile to the same kernels
_SMOKE_PLANS = 3


def sweep(case: Case, options: Options) -> dict[str, Any]:
    """Return the table of plans: {"plans": [...], "chosen": plan}, fastest first; `table` lays it out.

    Every entry holds ``plan`` (its settings that differ from the chosen plan's), and ``ms``, ``spread`` or ``not_run``.

    Raises:
        ValueError: this version, or this device, has no plans to choose from.
    """
    plans = load_plans()
    found = plans.candidates(**_shape(case, plans, options.device))
    if options.smoke:
        found = found[:_SMOKE_PLANS]
    elif options.device.type == "cuda":
        _compile_ahead(case, found, options.limit)
    started, entries = time.monotonic(), [_entry(plan, found[0]) for plan in found]
    ours, (features, positives) = Grouped(case, options.device), batch_of(case, options.device)
    calls: dict[str, Callable[[], None]] = {}
    for number, (plan, entry) in enumerate(zip(found, entries, strict=True)):
        if options.limit is not None and time.monotonic() - started > options.limit:
            entry["not_run"] = f"not tried: out of time ({options.limit:.0f} s)"
            continue
        call = _call(plans, plan, ours, features, positives)
        try:
            with plans.using(plan):
                entry["largest_error"] = check_timed_step(ours)
            call()
        except Exception as error:  # noqa: BLE001 - that a plan does not run is a result
            entry["not_run"] = f"{type(error).__name__}: {first_line(error)}"
            continue
        calls[str(number)] = call
    if not options.smoke:
        for name, timing in _gpu.measure(calls, options.repeats).items():
            entries[int(name)] |= {"ms": timing.median, "spread": [timing.low, timing.high]}
    release(options.device)
    entries.sort(key=lambda entry: entry.get("ms", float("inf")))
    return {"plans": entries, "chosen": dataclasses.asdict(found[0])}


def table(swept: Mapping[str, Any]) -> str:
    """Lay the outcome of `sweep` out for people, fastest first."""
    lines = [f"chosen: {_settings(swept['chosen'])}"]
    for entry in swept["plans"]:
        what = _settings(entry["plan"]) or "the chosen plan"
        if "ms" in entry:
            low, high = entry["spread"]
            lines.append(f"{entry['ms']:9.3f} ms  {low:.3f} .. {high:.3f}  {what}")
        else:
            lines.append(f"{'':12}  {what}: {entry.get('not_run', 'ran, not timed')}")
    return "\n".join(lines)


def load_plans() -> Any:
    """Return the module of plans.

    Raises:
        ValueError: there is none, or triton is missing.
    """
    try:
        return import_module("haste.ops.triton.plans")
    except ImportError as error:
        raise ValueError(f"--sweep needs the Triton kernels (haste.ops.triton.plans): {error}") from error


def _shape(case: Case, plans: Any, device: torch.device) -> dict[str, Any]:
    return {
        "batch": case.batch,
        "in_features": case.in_features,
        "group_size": case.group_size,
        "fan_in": case.fan_in,
        "dtype": case.torch_dtype,
        "layout": plans.layout_of(case.group_size, gathered=True),
        "target": plans.target_of(device),
    }


def _entry(plan: Any, chosen: Any) -> dict[str, Any]:
    base = dataclasses.asdict(chosen)
    return {"plan": {name: value for name, value in dataclasses.asdict(plan).items() if value != base[name]}}


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _call(plans: Any, plan: Any, ours: Grouped, features: torch.Tensor, positives: Positives) -> Callable[[], None]:
    def step() -> None:
        with plans.using(plan):
            ours.step(features, positives)

    return step


def small_alike(case: Case) -> Case:
    """Return a case of few labels for which Triton compiles the same kernels."""
    unit = _ALIKE * case.group_size
    return dataclasses.replace(case, num_labels=unit + case.num_labels % unit)


def _compile_ahead(case: Case, found: Sequence[Any], limit: float | None) -> None:
    workers = max(1, min(12, (os.cpu_count() or 2) - 1))
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    wait([pool.submit(_compile, small_alike(case), plan) for plan in found], timeout=limit)
    pool.shutdown(wait=True, cancel_futures=True)  # what still ran would disturb the timing


def _compile(case: Case, plan: Any) -> None:
    """Run one step under a plan, in a process of its own; what goes wrong shows when the plan is tried for good."""
    plans, device = load_plans(), torch.device("cuda")
    _call(plans, plan, Grouped(case, device), *batch_of(case, device))()
    torch.cuda.synchronize(device)
