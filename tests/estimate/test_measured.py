"""Estimates beside what really is taken, here."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from haste.cli import main
from haste.estimate import Bag, Device, Given, Workload, estimate, transformer
from haste.train.measure import measure

CPU = Device(name="cpu", memory=1e12, bandwidth=1e10, bfloat16=1e11, float32=1e11, source="for a test")
HASTE = Workload(num_labels=500_000, in_features=768, fan_in=64, group_size=32, head_ratio=0.05)
CASES = {
    "bag": Workload(
        num_labels=25_007,
        in_features=1024,
        fan_in=128,
        group_size=16,
        head_ratio=0.1,
        dtype="float32",
        batch_size=256,
        encoder=Bag(num_inputs=100_000, widths=(1024,), terms=8.0),
    ),
    "adamw, gradient": replace(HASTE, rule="adamw", rates=True, regrow="gradient"),
    "loss": replace(HASTE, fused=False, dtype="float32"),
    "dense": replace(HASTE, num_labels=131_073).of_system("dense"),
    "bottleneck": replace(HASTE, num_labels=800_000).of_system("bottleneck"),
    "spartex": replace(HASTE, num_labels=120_000).of_system("spartex"),
    "features": replace(HASTE, num_labels=200_000, encoder=Given(widths=(4096, 4096, 768)), clusters=5_000),
}


def compare(workload: Workload) -> None:
    measured, estimated = max(measure(workload, threads=1).values()), estimate(workload, CPU).peak
    assert estimated == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
def test_an_estimate_is_within_a_tenth() -> None:
    compare(replace(HASTE, dtype="float32"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_an_estimate_of_every_system_is_within_a_tenth(name: str) -> None:
    compare(CASES[name])


@pytest.mark.slow
def test_an_estimate_of_a_run_on_texts_is_within_a_tenth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = np.random.default_rng(0).permutation(np.repeat(np.arange(30_000), 4)).reshape(2_000, 60)
    rows = ({"text": " ".join(f"word{word}" for word in row), "labels": [str(n % 700)]} for n, row in enumerate(words))
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    values = {
        "data": {"path": str(tmp_path), "min_df": 2},
        "encoder": {"features": 1024},
        "output": {"fan_in": 128, "group_size": 16},
        "optim": {"epochs": 1, "batch_size": 256},
        "run": {"dir": str(tmp_path / "run"), "threads": 1, "device": "cpu"},
    }
    settings = tmp_path / "settings.yaml"
    settings.write_text(json.dumps(values))
    main(["estimate", str(settings), "--system", "haste", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["workload"]["encoder"]["num_inputs"] == pytest.approx(30_000, rel=0.01)
    # A process of its own: what it held at most is measured, and this one has held more.
    subprocess.run([sys.executable, "-m", "haste.cli", "train", str(settings)], check=True, capture_output=True)
    measured = json.loads((tmp_path / "run" / "run.json").read_text())["peak_memory_bytes"]
    estimated = found["systems"]["haste"]
    assert estimated["mapped_bytes"] > 8 * 50 * 2_000
    assert estimated["total_bytes"] + estimated["mapped_bytes"] == pytest.approx(measured, rel=0.1)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match=r"encoder \(bert-base\) must be a bag, given features or none"):
        measure(replace(HASTE, encoder=transformer("bert-base")))
    with pytest.raises(ValueError, match="the measured process ended with status 1"):
        measure(replace(HASTE, num_labels=10), device="cuda:99")
