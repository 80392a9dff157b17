import json
import subprocess
import sys

import pytest
import torch

from haste.bench import cpu_step
from haste.bench._harness import CheckError, check, interleave
from haste.nn import FanInLinear

VARIANTS = {"step", "bare_gemms", "dense_step", "group1_step"}


def bench(*arguments):
    command = [sys.executable, "-m", "haste.bench", "--claim", "cpu-step", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_json_record_is_complete():
    done = bench("--labels", "300", "--repeats", "3", "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["claim"] == "cpu-step"
    shape = {"batch": 128, "in_features": 768, "num_labels": 300, "fan_in": 128, "group_size": 64}
    assert record["shape"] == {**shape, "dtype": "float32"}
    assert set(record["ms"]) == set(record["spread"]) == VARIANTS
    for name, (low, high) in record["spread"].items():
        assert 0 < low <= record["ms"][name] <= high
    assert record["over_bare_gemms"] == record["ms"]["step"] / record["ms"]["bare_gemms"]
    assert record["dense_over_step"] == record["ms"]["dense_step"] / record["ms"]["step"]
    assert record["group1_over_step"] == record["ms"]["group1_step"] / record["ms"]["step"]
    assert record["device"]["threads"] == 1
    assert record["device"]["name"]
    assert record["versions"]["torch"] == torch.__version__
    assert "commit" in record


def test_table_shows_every_variant_and_claim():
    record = cpu_step.run(num_labels=70, threads=1, repeats=1)
    text = cpu_step.table(record)
    for label in ("fused step", "three bare GEMMs", "dense step", "group_size 1 step", "claim <= 1.3"):
        assert label in text
    assert f"{record['over_bare_gemms']:.2f}" in text
    assert "busy before the run (load 3.0)" in cpu_step.table({**record, "load_before": 3.0})
    assert "busy" not in cpu_step.table({**record, "load_before": 0.0})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_labels": 4}, r"num_labels \(4\) must be at least 5"),
        ({"threads": 0}, r"threads \(0\) must be at least 1"),
        ({"repeats": 0}, r"repeats \(0\) must be at least 1"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cpu_step.run(**arguments)


def test_impossible_sizes_are_usage_errors():
    done = bench("--labels", "4")
    assert done.returncode == 2
    assert "num_labels (4) must be at least 5" in done.stderr


def test_a_wrong_step_is_not_timed(monkeypatch):
    right = FanInLinear.step

    def wrong(layer, *arguments):
        value = right(layer, *arguments)
        layer.weight.data[0, 0, 0] += 0.01
        return value

    monkeypatch.setattr(FanInLinear, "step", wrong)
    with pytest.raises(CheckError, match="step against the reference: weight is off by"):
        cpu_step.run(num_labels=70, threads=1, repeats=1)


def test_check_measures_against_the_largest_value_and_refuses_nan():
    truth = torch.tensor([4.0, 0.0, -8.0])
    assert check("x", {"y": truth + 0.004}, {"y": truth}, 1e-3) == pytest.approx(0.0005, rel=1e-3)
    for wrong in (truth + 0.016, truth * torch.nan):
        with pytest.raises(CheckError, match="y is off"):
            check("x", {"y": wrong}, {"y": truth}, 1e-3)


def test_variants_take_turns():
    turns = []
    timings = interleave({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, repeats=3, warmup=1)
    assert turns == ["a", "b"] * 4
    assert set(timings) == {"a", "b"}


@pytest.mark.slow
def test_checks_pass_where_the_layer_takes_several_chunks():
    record = cpu_step.run(num_labels=20_011, threads=2, repeats=1)
    assert max(record["largest_error"].values()) <= 1e-5
