import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from haste.bench import __main__ as bench
from haste.bench import _sweep, fused_step, paper_kernels, topk
from haste.bench._baselines import Bottleneck
from haste.bench._case import Case, batch_of, make_layer
from haste.bench._checks import check_timed_step
from haste.bench._expected import check_products, check_topk
from haste.bench._harness import CheckError
from haste.bench._run import OURS, Options, table
from haste.bench._variants import LABELS, Grouped
from haste.nn import FanInLinear

CPU = torch.device("cpu")
SMOKE = Options(device=CPU, smoke=True)
SMALL = Case(name="x", batch=6, in_features=48, num_labels=77, fan_in=16, group_size=16, k=9)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def smoke(capsys, *arguments):
    status = bench.main(["--smoke", "--json", *arguments])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("claim", bench.GPU_CLAIMS)
def test_smoke_runs_check_every_variant_and_hold_no_times(claim, capsys):
    case = bench.GPU_CLAIMS[claim].CASES[-1].name
    status, records = smoke(capsys, "--claim", claim, "--case", case)
    assert status == 0
    module = bench.GPU_CLAIMS[claim]
    kinds = {kind.name for kind in getattr(module, "KINDS", fused_step.KINDS)}
    for record in records:
        assert record["claim"] == claim
        assert record["case"] == case
        assert record["smoke"] is True
        assert not {"ms", "spread", "roofline", "peak"} & set(record)
        # nothing is dropped: a variant ran, or says why not
        fixed = {"fixed_fan_in", "fixed_fan_in_columns"} if claim == "paper-kernels" else set()
        assert set(record["ran"]) | set(record["not_run"]) == kinds | fixed
        assert not set(record["ran"]) & set(record["not_run"])
        assert OURS in record["ran"] or record["operation"] in ("backward_features", "backward_weights")
        assert {OURS, f"{OURS}_float32", "timed_shape"} <= set(record["largest_error"])
        assert set(record["bytes"]) == set(record["flop"]) == set(record["ran"])
        assert record["failed"] == []
        assert {"device", "versions", "commit", "shape"} <= set(record)
        assert "smoke run, nothing timed" in table(record, LABELS)


@no_gpu
def test_without_a_gpu_the_claims_say_so_in_one_line():
    command = [sys.executable, "-m", "haste.bench", "--claim", "topk"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("claim topk needs a CUDA GPU")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--smoke", "--claim", "cpu-step"], "cpu-step has no smoke run"),
        (["--smoke", "--claim", "topk", "--case", "Q"], r"case (Q) must be one of 670k k=5"),
        (["--smoke", "--claim", "topk", "--sweep"], "--sweep must go with --claim fused-step"),
        (["--smoke", "--claim", "topk", "--repeats", "0"], "repeats (0) must be at least 1"),
        (["--plot", "x.jsonl"], "--plot needs --output"),
    ],
)
def test_impossible_requests_are_usage_errors(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_records_are_appended_to_a_file(tmp_path, capsys):
    output = tmp_path / "records.jsonl"
    for case in ("A", "B"):
        assert bench.main(["--smoke", "--claim", "fused-step", "--case", case, "--output", str(output)]) == 0
    assert [json.loads(line)["case"] for line in output.read_text().splitlines()] == ["A", "B"]
    assert "smoke run" in capsys.readouterr().out


def test_a_wrong_step_is_not_timed(monkeypatch, capsys):
    right = FanInLinear.step

    def wrong(layer, *arguments):
        value = right(layer, *arguments)
        layer.weight.data[0, 0, 0] += 0.5
        return value

    monkeypatch.setattr(FanInLinear, "step", wrong)
    monkeypatch.setattr("haste.bench._checks._checked", {})
    assert bench.main(["--smoke", "--claim", "fused-step", "--case", "A"]) == 1
    assert "haste step against the reference: weight is off by" in capsys.readouterr().err


RIGHT_STEP = FanInLinear.step


def without_update(layer, features, positives, update):
    return layer.loss(features, positives)


def without_last_group(layer, features, positives, update):
    kept = layer.weight.data[-1].clone()
    value = RIGHT_STEP(layer, features, positives, update)
    layer.weight.data[-1] = kept
    return value


def with_larger_features(layer, features, positives, update):
    return RIGHT_STEP(layer, features * 1.05, positives, update)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("wrong", [without_update, without_last_group, with_larger_features])
def test_the_check_at_the_timed_shape_finds_mistakes(wrong, dtype, monkeypatch):
    ours = Grouped(replace(SMALL, dtype=dtype), CPU)
    before = ours.layer.weight.detach().clone()
    assert check_timed_step(ours) < 2**-6
    assert torch.equal(before, ours.layer.weight)  # undone
    monkeypatch.setattr(FanInLinear, "step", wrong)
    with pytest.raises(CheckError, match="chunk by chunk"):
        check_timed_step(ours)


def test_wrong_products_at_the_timed_shape_are_found():
    ours = Grouped(SMALL, CPU)
    features = batch_of(SMALL, CPU)[0].detach()
    logits = ours.forward(features)
    g = torch.randn_like(logits)
    grads = ours.backward(features, g)
    assert check_products(SMALL, ours.operands(), features, g, logits, grads) < 2**-6
    for number in range(3):
        parts = [logits.clone(), grads[0].clone(), grads[1].clone()]
        parts[number].view(-1)[-1] += 0.2 * parts[number].abs().max()
        if number == 2:
            parts[2][-1, 0, 0] += parts[2].abs().max()
        with pytest.raises(CheckError, match="chunk by chunk"):
            check_products(SMALL, ours.operands(), features, g, parts[0], (parts[1], parts[2]))


def test_wrong_labels_are_found():
    ours = Grouped(SMALL, CPU)
    features = batch_of(SMALL, CPU)[0].detach()
    scores, labels = ours.topk(features)
    assert check_topk(SMALL, ours.operands(), features, (scores, labels)) < 2**-6
    swapped = labels.clone()
    swapped[0, 0], swapped[0, -1] = labels[0, -1], labels[0, 0]
    twice = labels.clone()
    twice[0, 1] = labels[0, 0]
    for wrong, message in ((swapped, "scores of the labels"), (twice, "returned twice")):
        with pytest.raises(CheckError, match=message):
            check_topk(SMALL, ours.operands(), features, (scores, wrong))
    logits = ours.forward(features).topk(SMALL.k + 1, dim=1)
    with pytest.raises(CheckError, match="largest scores"):  # the best label is missing
        check_topk(SMALL, ours.operands(), features, (logits.values[:, 1:], logits.indices[:, 1:]))


def test_bytes_and_flop_are_those_of_the_formulas():
    case = Case(name="x", batch=8, in_features=64, num_labels=1024, fan_in=16, group_size=16)
    ours, bottleneck = Grouped(case, CPU), Bottleneck(case, CPU)
    weight, indices, logits = 2 * 1024 * 16, 2 * 64 * 16, 8 * 1024
    bias, ends = 4 * 1024, 8 * 64 * (2 + 4)  # features read, their gradient accumulated in float32
    assert ours.traffic("step") == 2 * (weight + bias) + indices + ends
    assert ours.traffic("forward") == weight + indices + 4 * logits + ends
    assert ours.traffic("topk") == weight + indices + ends
    assert bottleneck.traffic("step") == 4 * weight + 5 * 2 * logits
    for variant in (ours, bottleneck):
        assert [variant.flop(name) for name in ("forward", "backward", "step")] == [
            2 * n * 8 * 1024 * 16 for n in (1, 2, 3)
        ]


@pytest.mark.slow
def test_a_sweep_tries_every_plan_or_says_what_is_missing(tmp_path):
    command = [sys.executable, "-m", "haste.bench", "--smoke", "--claim", "fused-step", "--case", "B", "--sweep"]
    command += ["--dtype", "float32", "--json"]  # interpreted kernels know no bfloat16
    environment = {**os.environ, "HASTE_KERNELS": "triton", "TRITON_INTERPRET": "1"}
    if find_spec("haste.ops.triton") is None or find_spec("triton") is None:
        environment.pop("HASTE_KERNELS")
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 2
        assert "--sweep needs the Triton kernels" in done.stderr
        return
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["claim"] == "fused-step-sweep"
    assert len(record["plans"]) == 3
    for entry in record["plans"]:
        assert entry["largest_error"] < 1e-5
        assert not {"ms", "not_run"} & set(entry)
    assert record["chosen"]["form"]


def test_a_table_of_plans_shows_winners_and_losers():
    swept = {
        "chosen": {"form": "fused", "warps": 8},
        "plans": [
            {"plan": {"warps": 4}, "ms": 0.5, "spread": [0.4, 0.6]},
            {"plan": {}, "ms": 1.5, "spread": [1.4, 1.6]},
            {"plan": {"form": "two"}, "not_run": "OutOfResources: shared memory"},
        ],
    }
    lines = _sweep.table(swept).splitlines()
    assert lines[0] == "chosen: form=fused, warps=8"
    assert lines[1].split() == ["0.500", "ms", "0.400", "..", "0.600", "warps=4"]
    assert lines[2].endswith("the chosen plan")
    assert lines[3].split() == ["form=two:", "OutOfResources:", "shared", "memory"]


def test_small_layers_compile_to_the_same_kernels():
    for case in fused_step.CASES:
        small = _sweep.small_alike(case)
        assert small.num_labels < 40_000
        for number in (case.num_labels, case.num_groups):
            twin = small.num_labels if number == case.num_labels else small.num_groups
            assert (number - twin) % 16 == 0


def test_layers_of_a_case_have_sorted_distinct_inputs_and_empty_padding():
    layer = make_layer(SMALL, CPU, seed=3)
    assert layer.indices is not None
    assert (layer.indices.diff(dim=1) > 0).all()
    assert layer.indices.min() >= 0
    assert layer.indices.max() < SMALL.in_features
    assert layer.weight.view(80, 16)[77:].eq(0).all()
    assert layer.bias.view(80)[77:].eq(0).all()
    assert not torch.equal(layer.indices, make_layer(SMALL, CPU, seed=4).indices)


def test_cases_are_those_of_the_claims():
    assert [case.name for case in fused_step.CASES] == list(fused_step.TARGETS_MS)
    names = [case.name for case in (*paper_kernels.CASES, *topk.CASES)]
    assert len(names) == len(set(names))
    for case in (*fused_step.CASES, *paper_kernels.CASES, *topk.CASES):
        assert case.fan_in % 16 == 0
        assert case.tiny().num_labels % case.group_size  # the last group is partly padded
