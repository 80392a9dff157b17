"""The plots of a comparison: accuracy, memory, time, label frequency, and what happens in the sparse layer."""

import statistics
from collections.abc import Callable, Sequence

from haste.train.report_results import (
    Comparison,
    Entrant,
    Result,
    final_weights,
    mean_of,
    series,
    step_milliseconds,
    step_parts,
)
from haste.train.report_svg import Line, bars, lines, points, stacks


def plots(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Return name -> (caption, SVG) of every plot that there is data for."""
    found = comparison.entrants
    if not found:
        return {}
    drawn = {
        "accuracy": _accuracy(comparison),
        "frequency": _frequency(comparison),
        "training": _history(found, "dev", "nDCG@5", "nDCG@5 on dev during training", "percent"),
        "memory": _memory(comparison),
        "step": _steps(found),
        "rewired": _history(found, "rewire", "fraction", "Links replaced at each rewiring", "part of all links", True),
        "survivors": _survivors(found),
        "coverage": _history(
            found, "diagnostics", "input_coverage", "Inputs that any group reads", "part of the inputs", True
        ),
        "overlap": _history(
            found, "diagnostics", "group_overlap", "Inputs that two groups share", "mean Jaccard index", True
        ),
        "weights": _weights(found),
        "gradients": _gradients(found),
    }
    return {name: drawn_plot for name, drawn_plot in drawn.items() if drawn_plot is not None}


def _accuracy(comparison: Comparison) -> tuple[str, str]:
    cutoffs, split = ("P@1", "P@3", "P@5"), comparison.split

    def values(entrant: Entrant, of: Callable[[Sequence[float]], float]) -> list[float]:
        return [of([r.metrics[split][name] for r in entrant.results]) for name in cutoffs]

    caption = f"Precision on {split}"
    names = [entrant.name for entrant in comparison.entrants]
    means = [values(entrant, statistics.fmean) for entrant in comparison.entrants]
    spreads = [values(entrant, lambda v: statistics.stdev(v) if len(v) > 1 else 0.0) for entrant in comparison.entrants]
    return caption, bars(caption, "percent", cutoffs, names, means, spreads, zero=False)


def _frequency(comparison: Comparison) -> tuple[str, str]:
    """Recall rather than contributions to precision: frequent labels have most positives and would hide the rest."""
    split = comparison.split

    def recall(result: Result) -> list[float]:
        by = result.metrics["by_decile"][split]
        pairs = zip(by["P@5"], by["positives"], strict=True)
        return [5 * part / positives if positives else 0.0 for part, positives in pairs]

    caption = f"True labels found among the first five, by frequency ({split})"
    places = [float(decile) for decile in range(1, 11)]
    drawn = [Line(name=e.name, x=places, y=mean_of(e, recall)) for e in comparison.entrants]
    return caption, lines(caption, "tenth of the labels, most frequent first", "percent", drawn, zero=True)


def _memory(comparison: Comparison) -> tuple[str, str]:
    caption = f"Output layer and accuracy ({comparison.split})"
    drawn = [
        Line(
            name=e.name,
            x=[r.record["model"]["output"]["bytes"] / 2**20 for r in e.results],
            y=[r.metrics[comparison.split]["P@1"] for r in e.results],
        )
        for e in comparison.entrants
    ]
    return caption, points(caption, "MiB of the output layer", "P@1, percent", drawn)


def _steps(entrants: Sequence[Entrant]) -> tuple[str, str]:
    caption, parts = "Time of a step", step_parts(entrants)
    values = [[statistics.fmean(step_milliseconds(r, part) for r in e.results) for e in entrants] for part in parts]
    return caption, stacks(
        caption, "milliseconds", [e.name for e in entrants], [p.replace("_", " ") for p in parts], values
    )


def _history(
    entrants: Sequence[Entrant], kind: str, name: str, caption: str, label: str, zero: bool = False
) -> tuple[str, str] | None:
    drawn = [Line(name=e.name, x=x, y=y) for e in entrants for x, y in [series(e, kind, name)] if x]
    return (caption, lines(caption, "epoch", label, drawn, zero=zero)) if drawn else None


def _survivors(entrants: Sequence[Entrant]) -> tuple[str, str] | None:
    """From the second rewiring on: before the first nothing was regrown."""
    caption = "Regrown links that the next rewiring kept"
    drawn = [
        Line(name=e.name, x=x[1:], y=y[1:]) for e in entrants for x, y in [series(e, "rewire", "survivors")] if x[1:]
    ]
    return (caption, lines(caption, "epoch", "part of them", drawn, zero=True)) if drawn else None


def _weights(entrants: Sequence[Entrant]) -> tuple[str, str] | None:
    caption, places = "Mean |weight| by label frequency, at the end", [float(decile) for decile in range(1, 11)]
    drawn = []
    for e in entrants:
        rows = [found for found in map(final_weights, e.results) if found is not None]
        if len(rows) == len(e.results):
            drawn.append(Line(name=e.name, x=places, y=[statistics.fmean(v) for v in zip(*rows, strict=True)]))
    label = "tenth of the labels, most frequent first"
    return (caption, lines(caption, label, "mean |weight|", drawn, zero=True)) if drawn else None


def _gradients(entrants: Sequence[Entrant]) -> tuple[str, str] | None:
    caption, drawn = "Gradient that goes back to the features", []
    for e in entrants:
        parts = {part: series(e, "diagnostics", f"gradient_{part}") for part in ("head", "tail", "auxiliary")}
        parts = {part: found for part, found in parts.items() if found[0]}
        for part, (x, y) in parts.items():
            drawn.append(Line(name=e.name if len(parts) == 1 else f"{e.name}: {part}", x=x, y=y))
    return (caption, lines(caption, "epoch", "norm, mean of the documents", drawn, zero=True)) if drawn else None
