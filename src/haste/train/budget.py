"""Settings that fit a memory budget: down a ladder from what was wanted, the cheapest in accuracy first.

What a rung costs on Amazon-670K by HASTE's tables 4 and 13 (arXiv 2606.01117), P@1: groups of 16 to 32 to 64 labels
0.4 and 0.2; fan_in 128 to 64 to 32 1.3 and 0.9. bfloat16 with stochastic rounding cost nothing in ELMO (arXiv
2510.11168). What the others cost depends on the data.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from haste.config import Config
from haste.estimate import (
    DEVICES,
    Estimate,
    Workload,
    device,
    estimate,
    most_labels,
    parts_at_peak,
    size,
    workload_of,
)
from haste.train.preset import Facts, flatten, vocabulary
from haste.train.systems import SYSTEMS, Shared, Sizes, settings_of

CONFIGURED = "configured"  # the settings as they are, whatever system that is

_LEAST_GAIN = 0.01  # of the peak, for which a rung is worth taking
_KEYS = (
    "output.dtype",
    "output.group_size",
    "output.head_ratio",
    "optim.batch_size",
    "output.fan_in",
    "data.max_features",
    "encoder.features",
)
_Settings = Mapping[str, Any]


def fit_settings(
    values: Mapping[str, Any],
    facts: Facts,
    budget: float,
    *,
    fixed: Collection[str] = (),
    systems: Collection[str] = (CONFIGURED,),
    run: bool = True,
) -> tuple[dict[str, Any], list[str]]:
    """Return settings that fit, as nested dictionaries, and lines that say what was changed and why.

    Args:
        values: nested dictionaries of settings; what they lack has its default.
        facts: about the data and the machine.
        budget: bytes, of main memory or of the GPU that facts.device is.
        fixed: dotted keys that stay.
        systems: what is trained with these settings, names as of `system_workload`; all of them are to fit.
        run: as in `haste.estimate.estimate`.

    Raises:
        ValueError: nothing fits; the message names what would.
    """
    where = device("cpu", budget) if facts.device == "cpu" else replace(DEVICES["h200"], memory=budget)
    config = Config.from_dict(dict(values))
    given = flatten(config.to_dict())
    keys = [key for key in _KEYS if key not in fixed]
    start = {key: given[key] for key in _KEYS}
    start["output.fan_in"] = min(start["output.fan_in"], start["encoder.features"] or start["output.fan_in"])
    if config.encoder.kind != "bag" or facts.kind != "text":
        keys = [key for key in keys if key != "data.max_features"]
    else:
        start["data.max_features"] = vocabulary(config, facts)

    def measured(settings: _Settings) -> Estimate:
        lowered = Config.from_dict(_nested(values, settings))
        found = [estimate(system_workload(name, lowered, facts), where, run=run) for name in systems]
        return max(found, key=lambda estimate: estimate.total)

    settings, lines = _descend(start, keys, measured)
    if settings["data.max_features"] == start["data.max_features"]:
        settings["data.max_features"] = given["data.max_features"]  # all terms there are need no limit
    return _nested(values, {key: value for key, value in settings.items() if value != given[key]}), lines


def run_workload(config: Config, facts: Facts, *, checkpointing: bool = False) -> Workload:
    """What a run with these settings trains, on data of which these facts are known."""
    workload = workload_of(
        config,
        num_labels=facts.num_labels,
        num_inputs=vocabulary(config, facts),
        labels_per_document=facts.labels_per_document,
        terms_per_document=facts.words_per_document or 100.0,
        checkpointing=checkpointing,
    )
    return replace(workload, documents=facts.document_bytes)


def system_workload(name: str, config: Config, facts: Facts, *, checkpointing: bool = False) -> Workload:
    """What `haste compare` trains as a system with these settings.

    name: in `haste.train.systems.SYSTEMS`, or CONFIGURED
    Raises: ValueError, TypeError for a setting that the system cannot have.
    """
    workload = run_workload(config, facts, checkpointing=checkpointing)
    if name == CONFIGURED:
        return workload
    sizes = Sizes(inputs=workload.in_features, labels=facts.num_labels, documents=facts.num_documents)
    config = settings_of(SYSTEMS[name], Shared(config=config, sizes=sizes), {})
    return run_workload(config, facts, checkpointing=checkpointing)


def _descend(
    start: _Settings, keys: Collection[str], measured: Callable[[_Settings], Estimate]
) -> tuple[dict[str, Any], list[str]]:
    """Take rungs until it fits, then step back up wherever it still fits."""
    settings, before = dict(start), measured(start)
    wanted, budget, framework = before, before.device.memory, before.framework
    if budget <= framework:
        what = "Python and PyTorch take" if before.device.kind == "cpu" else "CUDA takes"
        raise ValueError(
            f"memory_budget ({size(budget)}) must be above {size(framework)}, which {what} before there is a model; "
            "raise it"
        )
    taken: list[str] = []
    skipped = False
    for key, value in _rungs(start, keys):
        if before.fits:
            break
        lower = {**settings, key: value}
        after = measured(lower)
        if after.peak < before.peak * (1 - _LEAST_GAIN):
            settings, before = lower, after
            taken += [key] if key not in taken else []
        else:
            skipped = True
    if not before.fits:
        shown = ", ".join(f"{key} {_shown(settings[key])}" for key in keys)
        further = "; lowering further gains nothing" if skipped else ""
        most = most_labels(before.workload, before.device)
        fewer = f", or train at most {most:,} labels" if most else ""
        raise ValueError(
            f"memory_budget ({size(budget)}) must be at least {size(before.total)}: so much do the leanest settings "
            f"take ({shown}), {_parts(before)}{further}; raise it{fewer}"
        )
    for key in taken[:-1]:
        higher = {**settings, key: start[key]}
        if measured(higher).fits:
            settings = higher
    taken = [key for key in taken if settings[key] != start[key]]
    lines = [f"memory budget {size(budget)}: what was wanted takes {size(wanted.total)}, {_parts(wanted)}"]
    for key in taken:
        without = measured({**settings, key: start[key]})
        lines.append(f"{key} {_shown(settings[key])}: with {_shown(start[key])} it would take {size(without.total)}")
    if taken:
        lines.append(f"together they take {size(measured(settings).total)}")
    return settings, lines


def _rungs(start: _Settings, keys: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Every change there is, in the order in which they are tried."""
    fan_in = start["output.fan_in"]
    values: dict[str, list[Any]] = {
        "output.dtype": ["bfloat16"] if start["output.dtype"] == "float32" else [],
        "output.group_size": [s for s in (32, 64) if 1 < start["output.group_size"] < s],
        "output.head_ratio": [ratio for ratio in (0.05, 0.02) if ratio < start["output.head_ratio"]],
        "optim.batch_size": _halves(start["optim.batch_size"], 32),
        "data.max_features": _halves(start.get("data.max_features") or 0, 10_000),
        "encoder.features": _halves(start.get("encoder.features") or 0, max(64, fan_in)),
        "output.fan_in": [max(16, value // 16 * 16) for value in _halves(fan_in, 16)],
    }
    for key, found in values.items():
        if key in keys:
            yield from ((key, value) for value in found)


def _halves(value: int, least: int) -> list[int]:
    found = []
    while value // 2 >= least:
        value //= 2
        found.append(value)
    return found


def _nested(values: Mapping[str, Any], changes: _Settings) -> dict[str, Any]:
    found = {name: dict(section) for name, section in values.items()}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        found.setdefault(section, {})[name] = value
    return found


def _parts(found: Estimate) -> str:
    """The largest parts of an estimate in words."""
    parts = parts_at_peak(found)
    largest = sorted(parts, key=lambda name: -parts[name])[:2]
    return "most of it " + " and ".join(f"{name} {size(parts[name])}" for name in largest)


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value}"
