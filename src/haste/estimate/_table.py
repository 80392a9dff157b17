"""An estimate as a table for people and as JSON for programs."""

from collections.abc import Mapping, Sequence
from typing import Any

from haste.estimate._estimate import Estimate, most_labels, parts_at_peak

_NAME, _COLUMN = 30, 16
_NOT_MEASURED = "Formulas of the GPU kernels (docs/kernels.md): not measured."


def size(count: float) -> str:
    """Bytes in a unit of 1,024."""
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1024:
            return f"{count:,.1f} {unit}"
    return f"{count / 1024:,.2f} GiB"


def as_text(found: Mapping[str, Estimate]) -> str:
    """The parts of every system side by side, what they add up to, and the least time of a step.

    found: system -> estimate, all of them on one device.
    """
    estimates = list(found.values())
    device = estimates[0].device
    parts = [parts_at_peak(estimate) for estimate in estimates]
    names = [name for name in _ORDER if any(name in part for part in parts)]
    names += sorted({name for part in parts for name in part} - set(names))
    lines = [_row("memory when most is held", list(found))]
    lines += [_row(f"  {name}", [size(part[name]) if name in part else "-" for part in parts]) for name in names]
    lines.append(_row("total", [size(estimate.total) for estimate in estimates]))
    lines.append(_row("  that is during", [estimate.largest.name for estimate in estimates]))
    if any(estimate.mapped for estimate in estimates):
        lines.append(_row("  documents mapped beside it", [size(estimate.mapped) for estimate in estimates]))
    if device.memory:
        fits = ["yes" if estimate.fits else "no" for estimate in estimates]
        lines.append(_row(f"  fits {size(device.memory)}", fits))
        most = [f"{most_labels(estimate.workload, device):,}" for estimate in estimates]
        lines.append(_row("most labels that fit", most))
    lines.append("")
    for what, unit, scale in (("flop", "GFLOP", 1e9), ("traffic", "GB moved", 1e9), ("seconds", "ms at least", 1e-3)):
        for part in ("output", "encoder"):
            values = [getattr(estimate, what)[part] for estimate in estimates]
            if any(values):
                lines.append(_row(f"{part}, {unit} a step", [f"{value / scale:,.2f}" for value in values]))
    roofs = f"{device.bandwidth / 1e9:,.0f} GB/s, {device.bfloat16 / 1e12:,.2f} TFLOP/s"
    roofs += f" (float32 {device.float32 / 1e12:,.2f})" if device.float32 != device.bfloat16 else ""
    lines += [
        "",
        f"The times are floors, not predictions: bytes and FLOP at the roofs of {device.name}, {roofs}",
        f"({device.source}).",
    ]
    return "\n".join(lines if device.kind == "cpu" else [*lines, _NOT_MEASURED])


_ORDER = (
    "output weights",
    "output biases",
    "output indices",
    "label order",
    "output optimizer",
    "auxiliary",
    "encoder weights",
    "encoder optimizer",
    "encoder activations",
    "encoder gradients",
    "encoder buffers",
    "features and their gradient",
    "step buffers",
    "positives",
    "output gradients",
    "construction",
    "rewiring",
    "best model read back",
    "left by evaluation",
    "framework",
)


def _row(name: str, values: Sequence[str]) -> str:
    return f"{name:<{_NAME}}" + "".join(f"{value:>{_COLUMN}}" for value in values)


def as_json(found: Estimate) -> dict[str, Any]:
    """Everything of one estimate: bytes, FLOP, seconds."""
    return {
        "device": found.device.name,
        "measured": found.device.kind == "cpu",
        "held": {name: round(count) for name, count in found.held.items() if count},
        "phases": {
            phase.name: {name: round(count) for name, count in phase.parts.items() if count} for phase in found.phases
        },
        "framework": round(found.framework),
        "peak_bytes": round(found.peak),
        "total_bytes": round(found.total),
        "mapped_bytes": round(found.mapped),
        "fits": found.fits if found.device.memory else None,
        "most_labels": most_labels(found.workload, found.device) if found.device.memory else None,
        "flop": found.flop,
        "bytes_moved": found.traffic,
        "least_seconds": found.seconds,
    }
