"""The tables of a comparison."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from haste.metrics import describe_propensity
from haste.train.plan import shown
from haste.train.progress import duration
from haste.train.report_results import (
    Comparison,
    Entrant,
    Result,
    epoch_seconds,
    inputs,
    mean_of,
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
        heads=["system", "fan-in / inputs", "head", "output layer", "encoder", "peak memory", "epoch", "training"],
        rows=[
            [
                e.name,
                _fan_in(e.results[0]),
                _head(e.results[0]),
                _size([r.record["model"]["output"]["bytes"] for r in e.results]),
                _size([r.record["model"]["encoder"]["bytes"] for r in e.results]),
                _size(e.values(lambda r: r.record.get(memory))),
                duration(statistics.fmean(map(epoch_seconds, e.results))),
                duration(statistics.fmean(r.record["seconds"]["train"] for r in e.results)),
            ]
            for e in found
        ],
    )
    parts = step_parts(found)
    steps = Table(
        title="Time of a step",
        note="Milliseconds, mean over the steps of all runs. output = the output layer, forward, backward and update.",
        heads=["system", *(part.replace("_", " ") for part in parts), "sum"],
        rows=[[e.name, *(f"{value:.2f}" for value in times), f"{sum(times):.2f}"] for e, times in _step_times(found)],
    )
    return [accuracy, cost, steps, _by_decile(found, split), *_changes_of_links(found), _settings(comparison)]


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


def _by_decile(entrants: Sequence[Entrant], split: str) -> Table:
    rows = []
    for e in entrants:
        contributions = mean_of(e, lambda result: result.metrics["by_decile"][split]["P@5"])
        rows.append([e.name, *(f"{value:.2f}" for value in contributions), f"{sum(contributions):.2f}"])
    return Table(
        title="P@5 by label frequency",
        note="In percent: what each tenth of the labels, most frequent first, adds to P@5.",
        heads=["system", *(f"{10 * d}-{10 * d + 10} %" for d in range(10)), "sum"],
        rows=rows,
    )


def _changes_of_links(entrants: Sequence[Entrant]) -> list[Table]:
    rows = []
    for e in entrants:
        rewired = [row for result in e.results for row in result.history if row["kind"] == "rewire"]
        measured = [row for r in e.results for row in r.history if row["kind"] == "diagnostics"]
        last = [row for row in measured if row["step"] == max(row["step"] for row in measured)]
        if not any("input_coverage" in row for row in last):
            continue
        times = len(rewired) / len(e.results)
        total = sum(row["fraction"] for row in rewired) / len(e.results)
        # The first time nothing was regrown before: whatever it says of survivors says nothing.
        first = {row["step"] for row in rewired} and min(row["step"] for row in rewired)
        kept = [row["survivors"] for row in rewired if row["step"] != first]
        rows.append(
            [
                e.name,
                f"{times:.0f}",
                f"{total:.2f}",
                f"{statistics.fmean(kept):.2f}" if kept else "-",
                _last(last, "input_coverage"),
                _last(last, "group_overlap"),
                _last(measured, "gradient_head", 4),
                _last(measured, "gradient_tail", 4),
                _last(measured, "gradient_auxiliary", 4),
            ]
        )
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
            heads=[
                "system",
                "rewirings",
                "replaced",
                "survivors",
                "coverage",
                "overlap",
                "gradient from head",
                "gradient from tail",
                "from auxiliary",
            ],
            rows=rows,
        )
    ]


def _last(rows: Sequence[dict[str, Any]], name: str, digits: int = 3) -> str:
    values = [row[name] for row in rows if name in row]
    return f"{statistics.fmean(values):.{digits}f}" if values else "-"


def _step_times(entrants: Sequence[Entrant]) -> list[tuple[Entrant, list[float]]]:
    parts = step_parts(entrants)
    return [(entrant, [step_milliseconds(entrant, part) for part in parts]) for entrant in entrants]


def _mean(values: Sequence[float]) -> str:
    """Mean ± standard deviation, where there are several values."""
    text = f"{statistics.fmean(values):.2f}"
    return f"{text} ± {statistics.stdev(values):.2f}" if len(values) > 1 else text


def _size(values: Sequence[float]) -> str:
    """Mean of bytes, in MiB."""
    if not values:
        return "-"
    mean = statistics.fmean(values) / 2**20
    return f"{mean:.2f}" if mean < 10 else f"{mean:,.0f}"


def _fan_in(result: Result) -> str:
    output, width = result.settings["output"], inputs(result)
    fan_in = output["fan_in"] or width
    return f"{width} / {width}" if fan_in >= width else f"{fan_in} / {width} ({100 * (1 - fan_in / width):.1f} %)"


def _head(result: Result) -> str:
    output = result.settings["output"]
    sparse = 0 < output["fan_in"] < inputs(result)
    return f"{100 * output['head_ratio']:g} %" if sparse else "-"
