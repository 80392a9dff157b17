"""What the runs of a comparison had in common, and what each system changed."""

from collections.abc import Mapping
from typing import Any

from haste.train.compare import changed_settings
from haste.train.report_results import Comparison, Entrant, other_documents

_LISTED = 3  # runs in a line


def changes_of(entrant: Entrant, comparison: Comparison) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (shared, its own) of all settings in which a system is not as the comparison's."""
    return changed_settings(comparison.shared, entrant.results[0].settings)


def rates(settings: Mapping[str, Any]) -> list[str]:
    """Learning rates of encoder, output layer and auxiliary classifier, for people."""
    optim, auxiliary = settings["optim"], settings["auxiliary"]
    of_auxiliary = optim["output"]["lr"] if auxiliary["lr"] is None else auxiliary["lr"]
    return [
        f"{optim['encoder']['lr']:g}",
        f"{optim['output']['lr']:g}",
        f"{of_auxiliary:g}" if auxiliary["clusters"] else "-",
    ]


def conditions(comparison: Comparison) -> list[str]:
    """What the runs had in common, a line each, and which had something else."""
    first, shared = comparison.entrants[0].results[0], comparison.shared
    environment, data = first.record["environment"], first.record["data"]
    optim, encoder = shared["optim"], shared["encoder"]
    splits = ", ".join(f"{data[name]:,} {name}" for name in ("train", "dev", "test") if name in data)
    return [
        f"data: {shared['data']['path']}, {splits} documents, {data['labels']:,} labels",
        f"encoder: {encoder['kind']}, {encoder['features'] or data['inputs']} features, dropout {encoder['dropout']:g}",
        f"budget: {optim['epochs']} epochs, batches of {optim['batch_size']}",
        f"device: {environment['device_name']}, {environment['threads']} threads; kernels: {environment['kernels']}",
        f"haste {environment['haste']}, torch {environment['packages']['torch']}, commit {environment['commit']}",
        *_other_conditions(comparison),
        *_other_documents(comparison),
    ]


def _other_documents(comparison: Comparison) -> list[str]:
    """A variation may change what there is to learn from: then its figures are not those of the layer alone."""
    names = other_documents(comparison)
    return [f"trained on other documents, terms or labels than the rest: {', '.join(names)}"] if names else []


def _other_conditions(comparison: Comparison) -> list[str]:
    """Where not all runs had the same machine and version."""
    found: dict[str, dict[str, list[str]]] = {}
    for entrant in comparison.entrants:
        for result in entrant.results:
            for what, value in _conditions(result.record["environment"]).items():
                found.setdefault(what, {}).setdefault(value, []).append(f"{entrant.name} seed {result.seed}")
    lines = []
    for what, values in found.items():
        if len(values) > 1:
            parts = [f"{value} ({_some(names)})" for value, names in values.items()]
            lines.append(f"not the same for all runs: {what} {', '.join(parts)}")
    return lines


def _conditions(environment: Mapping[str, Any]) -> dict[str, str]:
    return {
        "haste": str(environment["haste"]),
        "commit": str(environment["commit"]),
        "torch": str(environment["packages"]["torch"]),
        "device": str(environment["device_name"]),
        "threads": str(environment["threads"]),
        "kernels": str(environment["kernels"]),
    }


def _some(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
