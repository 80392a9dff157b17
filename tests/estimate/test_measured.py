"""Estimates beside what really is taken, here."""

from dataclasses import replace

import pytest

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


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match=r"encoder \(bert-base\) must be a bag, given features or none"):
        measure(replace(HASTE, encoder=transformer("bert-base")))
    with pytest.raises(ValueError, match="the measured process ended with status 1"):
        measure(replace(HASTE, num_labels=10), device="cuda:99")
