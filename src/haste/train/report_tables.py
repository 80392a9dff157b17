"""The tables of a comparison."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from haste.metrics import describe_propensity
from haste.train.plan import shown
from haste.train.progress import duration
from haste.train.report_results import (
    Comparison,
    Entrant,
    Result,
    epoch_seconds,
    inputs,
    links,
    sparsity,
    step_milliseconds,
    step_parts,
)
from haste.train.report_settings import changes_of, rates

ACCURACY = ("P@1", "P@3", "P@5", "nDCG@3", "nDCG@5", "PSP@1", "PSP@3", "PSP@5")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a report.

    title, note: above and below it
    heads: of the columns
    rows: cells, the first of them a name
    words: cells hold words rather than numbers
    """

    title: str
    note: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False


def tables(comparison: Comparison) -> list[Table]:
    """Accuracy, cost, time of a step, accuracy by frequency, links, and the settings of each system."""
    found, split = comparison.entrants, comparison.split
    if not found:
        return []
    several = any(len(entrant.results) > 1 for entrant in found)
    spread = "Mean over seeds ± standard deviation. " if several else ""
    a, b = (found[0].results[0].metrics["propensity"][name] for name in "ab")
    accuracy = Table(
        title=f"Accuracy on {split}",
        note=f"In percent. {spread}PSP with {describe_propensity(a, b)}.",
        heads=["system", "seeds", *ACCURACY],
        rows=[
            [e.name, str(len(e.results)), *(_mean(e.values(lambda r, m=m: r.metrics[split][m])) for m in ACCURACY)]  # type: ignore[misc]
            for e in found
        ],
    )
    on_gpu = any("peak_device_memory_bytes" in e.results[0].record for e in found)
    memory = "peak_device_memory_bytes" if on_gpu else "peak_memory_bytes"
    cost = Table(
        title="Cost",
        note=(
            "Labels beyond the head read fan-in of the inputs. Sizes in MiB, with indices; peak memory is "
            + ("the GPU's." if on_gpu else "the whole process's, Python, libraries and data included.")
            + " Training leaves out reading data, evaluation and checkpoints."
        ),
        heads=[
            "system",
            "fan-in / inputs",
            "sparsity",
            "head",
            "output layer",
            "encoder",
            "peak memory",
            "epoch",
            "training",
        ],
        rows=[
            [
                e.name,
                _fan_in(e.results[0]),
                _sparsity(e.results[0]),
                _head(e.results[0]),
                _size([r.record["model"]["output"]["bytes"] for r in e.results]),
                _size([r.record["model"]["encoder"]["bytes"] for r in e.results]),
                _size(e.values(lambda r: r.record.get(memory))),
                _time(e.values(epoch_seconds)),
                _time(e.values(lambda r: r.record["seconds"]["train"])),
            ]
            for e in found
        ],
    )
    parts = step_parts(found)
    steps = Table(
        title="Time of a step",
        note=f"Milliseconds. {spread}output = the output layer, forward, backward and update.",
        heads=["system", *(part.replace("_", " ") for part in parts), "sum"],
        rows=[[e.name, *(_mean(times) for times in _step_times(e, parts))] for e in found],
    )
    return [accuracy, cost, steps, _by_decile(found, split, spread), *_changes_of_links(found), _settings(comparison)]


def _settings(comparison: Comparison) -> Table:
    rows = []
    for e in comparison.entrants:
        settings = e.results[0].settings
        changes = [f"{key} {shown(new)} ({shown(old)})" for key, (old, new) in changes_of(e, comparison).items()]
        own = [f"{key}={shown(value)}" for key, value in e.own.items()]
        rows.append([e.name, *rates(settings), ", ".join(own) or "-", ", ".join(changes) or "none"])
    return Table(
        title="Settings of each system",
        note=(
            "Learning rates, what --set gave this system alone, and all in which its settings are not the shared ones, "
            "with those in brackets. --vary is part of the name."
        ),
        heads=["system", "lr of encoder", "lr of output layer", "lr of auxiliary", "--set", "changes"],
        rows=rows,
        words=True,
    )


def _by_decile(entrants: Sequence[Entrant], split: str, spread: str) -> Table:
    rows = []
    for e in entrants:
        of_runs = [result.metrics["by_decile"][split]["P@5"] for result in e.results]
        rows.append([e.name, *map(_mean, zip(*of_runs, strict=True)), _mean([sum(values) for values in of_runs])])
    return Table(
        title="P@5 by label frequency",
        note=f"In percent: what each tenth of the labels, most frequent first, adds to P@5. {spread}".rstrip(),
        heads=["system", *(f"{10 * d}-{10 * d + 10} %" for d in range(10)), "sum"],
        rows=rows,
    )


_LINKS = {
    "rewirings": ("rewirings", 0),
    "replaced": ("replaced", 2),
    "survivors": ("survivors", 2),
    "coverage": ("input_coverage", 3),
    "overlap": ("group_overlap", 3),
    "gradient from head": ("gradient_head", 4),
    "gradient from tail": ("gradient_tail", 4),
    "from auxiliary": ("gradient_auxiliary", 4),
}


def _changes_of_links(entrants: Sequence[Entrant]) -> list[Table]:
    rows = []
    for e in entrants:
        found = [links(result) for result in e.results]
        if any("input_coverage" in numbers for numbers in found):
            cells = (
                ([numbers[name] for numbers in found if name in numbers], digits) for name, digits in _LINKS.values()
            )
            rows.append([e.name, *(_mean(values, digits) for values, digits in cells)])
    if not rows:
        return []
    return [
        Table(
            title="Links of the tail",
            note=(
                "replaced: links replaced in all of training, over the links there are; survivors: part of the regrown "
                "links that the next rewiring kept; coverage: part of the inputs that any group reads, overlap: inputs "
                "two groups share over those either reads, both at the end; gradients: norm of what each sends "
                "back, mean over documents and training."
            ),
            heads=["system", *_LINKS],
            rows=rows,
        )
    ]


def _step_times(entrant: Entrant, parts: Sequence[str]) -> list[list[float]]:
    """Milliseconds of every part, and of all, a number a run."""
    times = [[step_milliseconds(result, part) for result in entrant.results] for part in parts]
    return [*times, [sum(values) for values in zip(*times, strict=True)]]


def _mean(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation, where there are several values; - where there is none."""
    if not values:
        return "-"
    text = f"{statistics.fmean(values):,.{digits}f}"
    return f"{text} ± {statistics.stdev(values):,.{digits}f}" if len(values) > 1 else text


def _size(values: Sequence[float]) -> str:
    """Mean of bytes, in MiB."""
    mib = [value / 2**20 for value in values]
    text = _mean(mib, 2 if mib and statistics.fmean(mib) < 10 else 0)
    return text if len(set(mib)) > 1 else text.partition(" ±")[0]  # a layer is as large with every seed


def _time(values: Sequence[float]) -> str:
    """Mean of seconds, for people."""
    mean = statistics.fmean(values)
    if mean < 1:
        return _mean([1000 * value for value in values], 0) + " ms"
    if mean < 60:
        return _mean(values, 1) + " s"
    return duration(mean) + (f" ± {_time([statistics.stdev(values)])}" if len(values) > 1 else "")


def _fan_in(result: Result) -> str:
    output, width = result.settings["output"], inputs(result)
    fan_in = output["fan_in"] or width
    return f"{min(fan_in, width)} / {width}"


def _sparsity(result: Result) -> str:
    """Of the layer as it was built: a fan-in is a whole number, so it may be more than was asked for."""
    found = sparsity(result)
    return f"{100 * found:.1f} %" if found else "-"


def _head(result: Result) -> str:
    return f"{100 * result.settings['output']['head_ratio']:g} %" if sparsity(result) else "-"
