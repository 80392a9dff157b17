"""A picture of records: times of the variants over the number of labels and case by case, beside the roof."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from haste.bench._variants import LABELS

_LINES = "L="  # cases of paper-kernels that differ in the number of labels alone


def read_records(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the timed records of GPU claims; of the same claim, case and operation the last counts.

    Raises:
        ValueError: a line is not a record, or nothing can be drawn.
    """
    latest: dict[tuple[str, str, str], dict[str, Any]] = {}
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            try:
                record = json.loads(line)
                drawable = bool(record.get("ms")) and "operation" in record and "case" in record
            except (ValueError, AttributeError) as error:
                raise ValueError(f"{file}, line {number}: not a JSON record of a claim ({error})") from error
            if drawable:
                latest[record["claim"], record["case"], record["operation"]] = record
    if not latest:
        names = ", ".join(map(str, files))
        raise ValueError(f"{names}: no timed record of a GPU claim; smoke runs and CPU claims cannot be drawn")
    return list(latest.values())


def panels(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group records by what goes into one panel: title -> records."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        lines = record["claim"] == "paper-kernels" and record["case"].startswith(_LINES)
        kind = "by labels" if lines else "by case"
        found.setdefault(f"{record['claim']}, {record['operation']}, {kind}", []).append(record)
    for title, group in found.items():
        if title.endswith("by labels"):
            group.sort(key=lambda record: record["shape"]["num_labels"])
    return found


def draw(files: Sequence[Path], output: Path) -> None:
    """Draw the records of JSON-lines files; the ending of ``output`` says the format (svg, png, pdf).

    Raises:
        ValueError: nothing to draw, or matplotlib is missing.
    """
    groups = panels(read_records(files))
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("--plot needs matplotlib; install it with pip install haste-xmc[report]") from error
    across = min(2, len(groups))
    down = -(-len(groups) // across)
    figure = Figure(figsize=(7.5 * across, 4.5 * down), layout="constrained")
    names = [name for name in LABELS if any(name in r["ms"] for group in groups.values() for r in group)]
    colours = {name: f"C{number % 10}" for number, name in enumerate(names)}
    legend: dict[str, Any] = {}
    for number, (title, group) in enumerate(groups.items(), 1):
        axes = figure.add_subplot(down, across, number)
        (_draw_lines if title.endswith("by labels") else _draw_points)(axes, group, colours)
        axes.set_title(title)
        axes.set_ylabel("ms")
        axes.set_yscale("log")
        for name, label in zip(*axes.get_legend_handles_labels()[::-1], strict=True):
            legend.setdefault(name, label)
    first = next(iter(groups.values()))[0]
    versions = ", ".join(f"{name} {found}" for name, found in first["versions"].items())
    figure.legend(legend.values(), legend, loc="outside lower center", ncols=4, fontsize="small")
    figure.suptitle(f"{first['device']['name']}; {versions}; commit {first['commit'] or 'unknown'}", fontsize="small")
    figure.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None)


def _floor(record: dict[str, Any], name: str) -> float:
    return record["roofline"][name] * record["ms"][name]


def _draw_lines(axes: Any, group: Sequence[dict[str, Any]], colours: dict[str, str]) -> None:
    for name, colour in colours.items():
        held = [record for record in group if name in record["ms"]]
        if held:
            labels = [record["shape"]["num_labels"] for record in held]
            axes.plot(labels, [r["ms"][name] for r in held], marker="o", color=colour, label=LABELS[name])
            low, high = zip(*(r["spread"][name] for r in held), strict=True)
            axes.fill_between(labels, low, high, color=colour, alpha=0.2, linewidth=0)
            if name == "haste":
                axes.plot(labels, [_floor(r, name) for r in held], color=colour, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlabel("labels; dotted: the roof of haste, the time that bytes and FLOP take at least")


def _draw_points(axes: Any, group: Sequence[dict[str, Any]], colours: dict[str, str]) -> None:
    here = [name for name in colours if any(name in record["ms"] for record in group)]
    for number, name in enumerate(here):
        held = [(place, record) for place, record in enumerate(group) if name in record["ms"]]
        at = [place + 0.8 * (number + 0.5) / len(here) - 0.4 for place, _ in held]
        ms = [record["ms"][name] for _, record in held]
        low, high = zip(*(record["spread"][name] for _, record in held), strict=True)
        axes.vlines(at, low, high, color=colours[name])
        axes.plot(at, ms, "o", color=colours[name], label=LABELS[name])
        floors = [_floor(record, name) for _, record in held]
        axes.plot(at, floors, "_", color=colours[name], markersize=12, label="_")
    axes.set_xticks(range(len(group)), [record["case"] for record in group])
    axes.set_xlabel("dashes: the roof, the time that bytes and FLOP take at least")
