"""The finished runs of a comparison, by system, and numbers of them."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haste.train.compare import changed_settings, read_runs
from haste.train.run_folder import read_yaml
from haste.train.systems import SYSTEMS


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished run.

    seed: of the run
    metrics: metrics.json
    record: run.json
    history: rows of metrics.jsonl, without what is not finite
    settings: config.yaml
    """

    seed: int
    metrics: dict[str, Any]
    record: dict[str, Any]
    history: list[dict[str, Any]]
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A system as it was compared: the same settings with one or more seeds.

    name: for people
    system: name in `SYSTEMS`
    own: dotted keys that were set for this system alone
    results: of its runs, by seed
    """

    name: str
    system: str
    own: Mapping[str, Any]
    results: Sequence[Result]

    def values(self, of: Callable[[Result], float | None]) -> list[float]:
        """A number of every run that has it."""
        return [value for result in self.results if (value := of(result)) is not None]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that a report shows.

    shared: settings of all runs, where a system does not change them
    split: that was evaluated, test where there is one
    entrants: in the order in which they were planned
    missing: runs without a result, and why
    """

    shared: Mapping[str, Any]
    split: str
    entrants: Sequence[Entrant]
    missing: Mapping[str, str]


def read_comparison(output: Path) -> Comparison:
    """Collect the finished runs in the folder of a comparison.

    Raises:
        ValueError: runs with the same settings of the data were trained on different documents.
    """
    rows: dict[str, list[tuple[dict[str, Any], list[Result]]]] = {}  # of runs of before, some may differ in settings
    missing: dict[str, str] = {}
    documents: dict[tuple[Any, ...], tuple[str, str]] = {}  # of the same settings
    for name, entry in read_runs(output).items():
        folder = output / "runs" / name
        if not (folder / "metrics.json").is_file():
            missing[name] = entry.get("failed", "not finished")
            continue
        result = Result(
            seed=entry["seed"],
            metrics=_json(folder / "metrics.json"),
            record=_json(folder / "run.json"),
            history=_rows(folder / "metrics.jsonl"),
            settings=read_yaml(folder / "config.yaml"),
        )
        first = documents.setdefault(_decides_documents(result), (result.record["documents"], name))
        if first[0] != result.record["documents"]:
            raise ValueError(
                f"{output}: {first[1]} and {name} must have been trained on the same documents; restore "
                "the data, or compare into a new folder"
            )
        same = rows.setdefault(_name(entry), [])
        fitting = (found for _, found in same if not changed_settings(found[0].settings, result.settings))
        place = next(fitting, None)
        if place is None:
            same.append((entry, [result]))
        else:
            place.append(result)
    entrants = []
    for name, parts in rows.items():
        for entry, results in parts:
            others = changed_settings(parts[0][1][0].settings, results[0].settings)
            apart = "".join(f" [{key}={value}]" for key, (_, value) in others.items())
            entrants.append(
                Entrant(
                    name=name + apart,
                    system=entry["system"],
                    own=entry.get("own", {}),
                    results=sorted(results, key=lambda result: result.seed),
                )
            )
    order = {name: place for place, name in enumerate(SYSTEMS)}
    entrants.sort(key=lambda entrant: order.get(entrant.system, len(order)))
    everywhere = all("test" in result.metrics for entrant in entrants for result in entrant.results)
    return Comparison(
        shared=read_yaml(output / "config.yaml"),
        split="test" if everywhere else "dev",
        entrants=entrants,
        missing=missing,
    )


def other_documents(comparison: Comparison) -> list[str]:
    """Names of the systems whose settings made other documents, terms or labels of the data than the shared ones."""
    found: dict[int, str] = {}
    shared = {
        result.seed: _decides_documents(result, comparison.shared) for e in comparison.entrants for result in e.results
    }
    results = [(e, result) for e in comparison.entrants for result in e.results]
    for _, result in sorted(results, key=lambda pair: _decides_documents(pair[1]) != shared[pair[1].seed]):
        found.setdefault(result.seed, result.record["documents"])
    return [e.name for e in comparison.entrants if any(r.record["documents"] != found[r.seed] for r in e.results)]


def _decides_documents(result: Result, settings: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
    """What documents, terms and labels of a run follow from; the seed too, for a dev split may be drawn."""
    values = settings or result.settings
    encoder = values["encoder"]
    parts = (values["data"], values.get("label_texts"), encoder["kind"], encoder.get("name"))
    return result.seed, json.dumps(parts, sort_keys=True)


def _name(entry: Mapping[str, Any]) -> str:
    """Of a row, for people."""
    words = [SYSTEMS[entry["system"]].title if entry["system"] in SYSTEMS else entry["system"]]
    words += [f"{100 * entry['sparsity']:g} %"] if entry["sparsity"] is not None else []
    return " ".join([*words, *([f"({entry['change']})"] if entry["change"] else [])])


def step_parts(entrants: Iterable[Entrant]) -> list[str]:
    """Parts of a step that any run has, in their order."""
    return list(dict.fromkeys(part for e in entrants for r in e.results for part in r.record["step_seconds"]))


def step_milliseconds(result: Result, part: str) -> float:
    """Mean time of a part of a step."""
    return float(1000 * result.record["step_seconds"].get(part, 0.0) / max(1, result.record["timed_steps"]))


def epoch_seconds(result: Result) -> float:
    """Mean training time of an epoch; a run may have stopped early."""
    record = result.record
    steps = max((row["step"] for row in result.history), default=record["step"])
    epochs = result.settings["optim"]["epochs"] * steps / record["total_steps"]
    return record["seconds"]["train"] / max(epochs, 1e-9)


def mean_of(entrant: Entrant, of: Callable[[Result], Sequence[float]]) -> list[float]:
    """Element-wise mean over the runs."""
    return [statistics.fmean(values) for values in zip(*map(of, entrant.results), strict=True)]


def series(entrant: Entrant, kind: str, name: str, axis: str = "epoch") -> tuple[list[float], list[float]]:
    """A measured number over training, mean over the seeds: (epochs, values) at places that every seed has."""
    by_place: dict[float, list[float]] = {}
    for result in entrant.results:
        for row in result.history:
            if row["kind"] == kind and name in row:
                by_place.setdefault(row[axis], []).append(row[name])
    kept = sorted(place for place, values in by_place.items() if len(values) == len(entrant.results))
    return kept, [statistics.fmean(by_place[place]) for place in kept]


def inputs(result: Result) -> int:
    """Features that a label beyond the head could read."""
    built = result.record["model"]["output"].get("inputs")
    if built:
        return int(built)
    settings = result.settings  # of a run that did not record what was built
    width: int = settings["output"]["intermediate"] or settings["encoder"]["features"]
    width = width or result.record["data"]["inputs"]
    return width // 2 if settings["output"]["private_features"] == "slice" else width


def sparsity(result: Result) -> float:
    """Part of the inputs that a label beyond the head does not read; 0 of a dense layer."""
    width = inputs(result)
    return 1 - min(result.settings["output"]["fan_in"] or width, width) / width


def links(result: Result) -> dict[str, float]:
    """What happened to the links of the tail, and the gradients that went back, where they were measured.

    Returns:
        rewirings; replaced: links in all of them, over the links there are; survivors: mean part of the regrown links
        that the next rewiring kept; input_coverage and group_overlap at the end; gradient_head, gradient_tail and
        gradient_auxiliary: mean over training (`Diagnostics.collect`).
    """
    found: dict[str, float] = {}
    measured = [row for row in result.history if row["kind"] == "diagnostics"]
    for name in ("input_coverage", "group_overlap"):
        values = [row[name] for row in measured if name in row]
        if values:
            found[name] = values[-1]
    rewired = [row for row in result.history if row["kind"] == "rewire"]
    if found:
        found = {"rewirings": len(rewired), "replaced": sum(row["fraction"] for row in rewired), **found}
    # The first time nothing was regrown before: whatever it says of survivors says nothing.
    kept = [row["survivors"] for row in rewired[1:]]
    found |= {"survivors": statistics.fmean(kept)} if kept else {}
    for part in ("head", "tail", "auxiliary"):
        norms = [row[f"gradient_{part}"] for row in measured if f"gradient_{part}" in row]
        found |= {f"gradient_{part}": statistics.fmean(norms)} if norms else {}
    return found


def final_weights(result: Result) -> list[float] | None:
    """Mean |weight| of each tenth of the labels at the end, the most frequent first."""
    rows = [row["weight_by_decile"] for row in result.history if "weight_by_decile" in row]
    return rows[-1] if rows else None


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [{name: value for name, value in row.items() if _finite(value)} for row in rows]


def _finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_finite, value))
    return value is not None and (not isinstance(value, float) or math.isfinite(value))
