"""Claim end-to-end: a step of encoder and output layer by part, its memory, and how good the estimate of that is.

The shapes are those of HASTE's Table 1 (Amazon-3M with F=128 and no momentum), and DistilBERT in mixed precision, each
with and without gradient checkpointing. A GPU does them whole; a CPU a tenth of the labels, B=16. Every one is measured
in a fresh process, in which memory that is freed goes back to the system.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import torch

from haste.bench import machine
from haste.bench._end_to_end import PARTS, TINY
from haste.bench._harness import CheckError
from haste.estimate import DEVICES, MODELS, Device, Transformer, Workload, estimate
from haste.estimate.published import TABLE_1

_ROWS = {row.name: row.workload for row in TABLE_1}
CASES: dict[str, Workload] = {
    "amazon-3m": replace(_ROWS["Amazon-3M"], fan_in=128, rule="sgd"),
    "lf-paper2keywords": _ROWS["LF-Paper2Keywords-8.6M"],
    "mixed-precision": replace(
        _ROWS["LF-Paper2Keywords-8.6M"],
        num_labels=200_000,
        private_features="none",
        encoder=replace(MODELS["distilbert"], element=4, autocast=True, state=8),
    ),
}
TARGETS_GIB = {"amazon-3m": 3.0, "lf-paper2keywords": 4.0}  # with gradient checkpointing
_WITHIN = 0.1  # of what was measured an estimate must be
_SCALE, _CPU_BATCH, _STEPS = 10, 16, 3
_CPU = Device(name="cpu", memory=0.0, bandwidth=1.0, bfloat16=1.0, float32=1.0, source="of no matter to memory")


def records(
    cases: list[str] | None = None,
    *,
    device: torch.device,
    smoke: bool = False,
    labels: int | None = None,
    threads: int = 2,
    repeats: int = _STEPS,
) -> Iterator[dict[str, Any]]:
    """Measure every case with and without gradient checkpointing; yield a record of each.

    Args:
        cases: names; default all.
        device: a CPU takes a tenth of the labels, and 16 documents a batch.
        smoke: a tiny model instead; its memory says nothing and is not judged.
        labels: another number of them.
        threads: of PyTorch.
        repeats: steps; seconds are those of the fastest.

    Raises:
        ValueError: a case that does not exist.
        CheckError: gradients are wrong, or the measured process failed.
    """
    unknown = [name for name in cases or () if name not in CASES]
    if unknown:
        raise ValueError(f"case ({unknown[0]}) must be one of {', '.join(CASES)}")
    for name in cases or CASES:
        for checkpointing in (True, False):
            yield _record(name, _workload(name, device, smoke, labels, checkpointing), device, smoke, threads, repeats)


def _workload(name: str, device: torch.device, smoke: bool, labels: int | None, checkpointing: bool) -> Workload:
    workload = TINY if smoke else CASES[name]
    if not smoke and device.type == "cpu":
        workload = replace(workload, num_labels=workload.num_labels // _SCALE, batch_size=_CPU_BATCH)
    assert isinstance(workload.encoder, Transformer)
    encoder = replace(workload.encoder, checkpointing=checkpointing)
    return replace(workload, encoder=encoder, num_labels=labels or workload.num_labels)


def _record(
    name: str, workload: Workload, device: torch.device, smoke: bool, threads: int, repeats: int
) -> dict[str, Any]:
    found = _measured(workload, device, threads, repeats)
    seconds = sum(found["seconds"][part] for part in PARTS)
    encoder = workload.encoder
    assert isinstance(encoder, Transformer)
    peak = max(found["peaks"].values())
    expected = estimate(workload, _CPU if device.type == "cpu" else DEVICES["h200"])
    record = {
        "claim": "end-to-end",
        "case": name,
        "smoke": smoke,
        "shape": asdict(workload),
        **found,
        "step_seconds": seconds,
        "tokens_per_second": workload.batch_size * encoder.tokens / seconds,
        "peak": peak,
        "estimated": {
            "peak": expected.peak,
            "held": expected.held,
            "phases": {phase.name: phase.total for phase in expected.phases},
        },
        "estimated_over_measured": expected.peak / peak if peak > 0 else None,
        **machine.describe(device),
    }
    return record | {"claims": {} if smoke else _claims(name, record, encoder.checkpointing, device)}


def _measured(workload: Workload, device: torch.device, threads: int, repeats: int) -> dict[str, Any]:
    given = {"workload": asdict(workload), "device": str(device), "threads": threads, "steps": repeats}
    command = [sys.executable, "-m", "haste.bench._end_to_end", json.dumps(given)]
    # What the C library keeps of freed memory, to use again, is not the model's.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["killed, perhaps for want of memory"])[-1]
        raise CheckError(f"the measured process ended with status {done.returncode}: {why}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _claims(name: str, record: dict[str, Any], checkpointing: bool, device: torch.device) -> dict[str, bool]:
    claims = {"estimate within a tenth": abs(record["estimated_over_measured"] - 1) <= _WITHIN}
    if checkpointing and device.type != "cpu" and name in TARGETS_GIB:
        claims[f"peak <= {TARGETS_GIB[name]} GiB"] = record["peak"] <= TARGETS_GIB[name] * 2**30
    return claims


def table(record: dict[str, Any]) -> str:
    """Lay a record of `records` out for people."""
    shape, encoder = record["shape"], record["shape"]["encoder"]
    kept = "gradient checkpointing" if encoder["checkpointing"] else "no gradient checkpointing"
    lines = [
        f"end-to-end {record['case']}: {encoder['kind']}, B={shape['batch_size']} T={encoder['tokens']} "
        f"L={shape['num_labels']:,} F={shape['fan_in']} S={shape['group_size']} {shape['dtype']}, {kept}"
    ]
    lines.append(f"{'':24}{'s':>9}{'peak MiB':>12}")
    for part, peak in record["peaks"].items():
        lines.append(f"{part:24}{record['seconds'][part]:9.3f}{peak / 2**20:12.0f}")
    lines += [f"{part:24}{'':9}{held / 2**20:12.0f} held" for part, held in record["held"].items()]
    lines.append(f"{record['step_seconds']:.2f} s a step, {record['tokens_per_second']:,.0f} tokens a second")
    ratio, estimated = record["estimated_over_measured"], record["estimated"]["peak"] / 2**20
    if not record["smoke"]:
        lines.append(f"peak {record['peak'] / 2**20:.0f} MiB; estimated {estimated:.0f} MiB, {ratio:.2f} of it")
    lines += [f"{claim}: {'yes' if holds else 'NO'}" for claim, holds in record["claims"].items()]
    return "\n".join(lines) + "\n"
