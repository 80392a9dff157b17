import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from haste.config import Config
from haste.data.dataset import load_dataset
from haste.metrics import per_decile
from haste.nn import FanInLinear, HeadTail
from haste.train.diagnostics import Diagnostics, deciles, group_overlap
from haste.train.evaluate import predict_topk, score_deciles
from haste.train.loop import Loop
from haste.train.timing import StepTimes
from haste.train.trainer import train


def _positives(batch: int, labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(batch + 1), torch.arange(batch) * 7 % labels


@pytest.mark.parametrize("private", ["none", "slice", "projection"])
@pytest.mark.parametrize("fused", [True, False])
def test_gradients_of_head_and_tail_are_those_of_each_alone(private: str, fused: bool) -> None:
    from haste.optim import SGD

    settings: dict[str, Any] = {"fan_in": 4, "group_size": 4, "private_features": private, "seed": 3}
    layer = HeadTail(16, 30, num_head_labels=8, **settings)
    positives = _positives(5, 30)
    features = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    parts = layer.split_features(features)
    rows = layer.split_labels(positives, 5)
    expected = []
    for part, module, labels in zip(parts, (layer.head, layer.tail), rows, strict=True):
        read = part.detach().requires_grad_()
        assert module is not None
        module.loss(read, labels).backward()
        assert read.grad is not None
        expected.append(float(read.grad.norm(dim=1).mean()))
    layer.zero_grad()

    diagnostics = Diagnostics(layer, np.arange(30), seed=0)
    diagnostics.watch()
    if fused:
        layer.step(features, positives, SGD(layer.layer_parameters(), lr=0.1)).backward()
    else:
        layer.loss(features, positives).backward()
    found = diagnostics.collect()
    assert [found["gradient_head"], found["gradient_tail"]] == pytest.approx(expected, rel=1e-5)
    assert layer.gradient_norms is None
    assert "gradient_head" not in diagnostics.collect()


def test_watching_changes_no_bit_of_training(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    weights = []
    for every in (0, 1):
        config = tiny_config(run={"dir": str(tmp_path / str(every)), "diagnostics_every": every, "threads": 1})
        folder = train(config, log=lambda line: None)
        weights.append((folder / "model" / "output.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_run_records_diagnostics_times_and_deciles(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    config = tiny_config(run={"dir": str(tmp_path / "run"), "diagnostics_every": 8, "device": "cpu"})
    folder = train(config, log=lambda line: None)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = [row for row in rows if row["kind"] == "diagnostics"]
    assert [row["step"] for row in measured] == [8, 16, 24, 32]
    for row in measured:
        assert len(row["weight_by_decile"]) == 10
        assert min(row["weight_by_decile"]) > 0
        assert min(row["gradient_head"], row["gradient_tail"]) > 0
        assert 0.5 < row["input_coverage"] <= 1
        assert 0 <= row["group_overlap"] < 0.5
    times = next(row["step_ms"] for row in rows if row["kind"] == "train")
    parts = ["data", "encoder_forward", "output", "encoder_backward", "optimizer", "rewire"]
    assert list(times) == parts
    sizes = next(row["step_mib"] for row in rows if row["kind"] == "train")
    assert list(sizes) == parts
    assert min(sizes.values()) > 50  # of the process: Python and libraries too
    record = json.loads((folder / "run.json").read_text())
    assert record["timed_steps"] == 32
    assert list(record["step_peak_bytes"]) == parts
    assert max(record["step_peak_bytes"].values()) <= record["peak_memory_bytes"]
    assert list(record["step_seconds"]) == parts
    assert 0 < sum(record["step_seconds"].values()) <= record["seconds"]["train"] + 0.001

    metrics = json.loads((folder / "metrics.json").read_text())
    for split in ("dev", "test"):
        for name in ("P@1", "P@3", "P@5"):
            assert sum(metrics["by_decile"][split][name]) == pytest.approx(metrics[split][name])
    assert sum(metrics["by_decile"]["test"]["positives"]) == pytest.approx(2, abs=0.5)


def test_deciles_are_those_of_the_metrics(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config()
    data = load_dataset(config.data, seed=0)
    loop = Loop(config, data, torch.device("cpu"))
    loop.initialize(data)
    assert data.test is not None
    ids = predict_topk(loop.model, data.test, 5)[1]
    counts = np.append(data.labels.counts, 0)  # of a label that only test has
    assert data.test.truth.shape[1] == len(counts)
    found = score_deciles(ids, data.test.truth, data.labels)
    assert np.allclose(found["P@3"], 100 * per_decile(ids, data.test.truth, counts)[:, 2])
    of_label = deciles(counts)
    assert np.bincount(of_label).tolist() == [4, 3, 3, 3, 3, 3, 3, 3, 3, 3]
    assert counts[of_label == 0].min() >= counts[of_label == 1].max()


def test_overlap_is_the_jaccard_index() -> None:
    same = torch.arange(6).repeat(5, 1)
    assert group_overlap(same, seed=0) == 1
    apart = torch.arange(40).view(4, 10)
    assert group_overlap(apart, seed=0) == 0
    pair = torch.tensor([[0, 1, 2, 3], [2, 3, 4, 5]], dtype=torch.int16)
    assert group_overlap(pair, seed=0) == pytest.approx(2 / 6)
    drawn = HeadTail(100, 4000, num_head_labels=0, fan_in=20, group_size=4).tail
    assert drawn is not None
    assert drawn.indices is not None
    assert group_overlap(drawn.indices, seed=0) == pytest.approx(20 / (2 * 100 - 20), abs=0.01)


def test_weights_by_decile_follow_the_label_order() -> None:
    layer = HeadTail(8, 22, num_head_labels=4, fan_in=4, group_size=4, dtype=torch.bfloat16)
    counts = np.arange(22)  # the last label is the most frequent
    layer.set_label_order(torch.arange(21, -1, -1))
    for module in layer.layers():
        assert isinstance(module, FanInLinear)
        rows = module.weight.data.view(-1, module.fan_in)
        first = 0 if module is layer.head else 4
        for row in range(module.num_labels):
            rows[row] = -float(first + row)  # the rank of the label
    found = Diagnostics(layer, counts, seed=0).collect()["weight_by_decile"]
    of_rank = np.arange(22) * 10 // 22
    assert found == pytest.approx([float(np.flatnonzero(of_rank == decile).mean()) for decile in range(10)], rel=1e-2)


def test_times_are_sums_over_steps() -> None:
    times = StepTimes(torch.device("cpu"))
    for _ in range(3):
        with times.part("a"):
            time.sleep(0.001)
        with times.part("b"):
            pass
        times.end_step()
    taken, peaks, steps = times.take()
    assert steps == 3
    assert list(taken) == list(peaks) == ["a", "b"]
    assert taken["a"] >= 0.003 > taken["b"] >= 0
    assert times.take() == ({}, {}, 0)


def test_every_part_has_a_peak_of_memory_of_its_own() -> None:
    times, sizes = StepTimes(torch.device("cpu")), (200, 400, 300)  # MiB; the second step is not watched
    found = []
    for size in sizes:
        with times.part("large"):
            torch.ones(size << 20, dtype=torch.uint8)
        with times.part("small"):
            pass
        times.end_step()
        if size != 200:
            found.append(times.take()[1])
    for peaks, size in zip(found, (200, 300), strict=True):
        assert 0.9 * size < (peaks["large"] - peaks["small"]) / 2**20 < 1.1 * size
    assert times.peak >= found[1]["small"] + 0.9 * (400 << 20)  # of the step that was not watched


def test_a_run_whose_gradients_are_infinite_ends(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    optim = {"output": {"lr": 1e30}}
    config = tiny_config(run={"dir": str(tmp_path / "run"), "diagnostics_every": 4}, optim=optim)
    with pytest.raises(
        ValueError, match=r"gradient_tail \(inf\) must stay finite; lower .* optim.output.lr \(1e\+30\)"
    ):
        train(config, log=lambda line: None)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["kind"] == "diagnostics"
    assert rows[-1]["gradient_tail"] is None
    assert not (tmp_path / "run/metrics.json").exists()
