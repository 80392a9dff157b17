"""Claim cpu-memory: a layer of millions of labels takes its weights and little more, to build and to train.

A fresh process builds the layer and takes one fused step; what counts is by how much its peak resident memory rises.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from haste.bench import machine
from haste.bench._case import make_batch
from haste.bench._harness import CheckError

CLAIMS = {"build_over_layer_mb": "<= 200", "step_mb": "<= 200"}
_SHAPE = {"batch": 128, "in_features": 768, "num_labels": 2_812_281, "fan_in": 64, "group_size": 32}
_MB = 1e6


def run(*, num_labels: int | None = None, threads: int = 2, repeats: int = 1) -> dict[str, Any]:
    """Measure in a fresh process; return the record that `python -m haste.bench --json` prints.

    Args:
        num_labels: L; default the claim's.
        threads: of PyTorch.
        repeats: steps taken; the first is counted with the rest.

    Raises:
        CheckError: the measured process failed (out of memory, or a system that does not tell VmHWM).
    """
    shape = {**_SHAPE, "num_labels": num_labels or _SHAPE["num_labels"]}
    arguments = json.dumps({"shape": shape, "threads": threads, "steps": repeats})
    done = subprocess.run([sys.executable, "-m", __name__, arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckError(f"the measured process ended with status {done.returncode}: {done.stderr.strip()[-300:]}")
    measured = json.loads(done.stdout)
    return {
        "claim": "cpu-memory",
        "shape": {**shape, "dtype": "bfloat16"},
        **measured,
        **machine.describe(torch.device("cpu")),
    }


def table(record: dict[str, Any]) -> str:
    """Lay a record of `run` out for people."""
    shape = record["shape"]
    return "\n".join(
        [
            f"cpu-memory: B={shape['batch']} H={shape['in_features']} L={shape['num_labels']:,} "
            f"F={shape['fan_in']} S={shape['group_size']} {shape['dtype']}",
            f"weights, indices and bias     {record['layer_mb']:10.1f} MB",
            f"building takes beyond them    {record['build_over_layer_mb']:10.1f} MB "
            f"(claim {CLAIMS['build_over_layer_mb']})",
            f"a fused step takes            {record['step_mb']:10.1f} MB (claim {CLAIMS['step_mb']})",
            f"{record['build_seconds']:.1f} s to build, {record['step_seconds']:.1f} s a step",
        ]
    )


def _peak() -> float:
    """Return the peak resident memory of this process, MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / _MB
    raise OSError("/proc/self/status does not tell VmHWM")


def _measure(shape: dict[str, int], threads: int, steps: int) -> dict[str, float]:
    from haste.nn import FanInLinear
    from haste.optim import SGD

    torch.set_num_threads(threads)
    features, positives = make_batch(shape["batch"], shape["in_features"], shape["num_labels"])
    (features.detach() @ features.detach().t()).sum()  # the thread pool and the BLAS are not the layer's

    before, started = _peak(), time.perf_counter()
    layer = FanInLinear(
        shape["in_features"], shape["num_labels"], shape["fan_in"], shape["group_size"], dtype=torch.bfloat16
    )
    update = SGD(layer.parameters(), lr=0.05)
    built, build_seconds = _peak(), time.perf_counter() - started
    assert layer.indices is not None
    held = (layer.weight, layer.indices, layer.bias)
    size = sum(t.numel() * t.element_size() for t in held) / _MB
    started = time.perf_counter()
    for _ in range(steps):
        layer.step(features, positives, update).backward()
    step_seconds = (time.perf_counter() - started) / steps
    return {
        "layer_mb": size,
        "build_over_layer_mb": built - before - size,
        "step_mb": _peak() - built,
        "build_seconds": build_seconds,
        "step_seconds": step_seconds,
    }


if __name__ == "__main__":
    print(json.dumps(_measure(**json.loads(sys.argv[1]))))
