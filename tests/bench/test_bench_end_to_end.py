import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from haste.bench import _end_to_end, end_to_end
from haste.bench.__main__ import main
from haste.bench._harness import CheckError
from haste.estimate import Transformer

CPU = torch.device("cpu")
TINY = _end_to_end.TINY


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_is_measured_by_part(checkpointing: bool) -> None:
    assert isinstance(TINY.encoder, Transformer)
    workload = replace(TINY, encoder=replace(TINY.encoder, checkpointing=checkpointing))
    found = _end_to_end.measure(workload, CPU, 2)
    assert [*found["seconds"]] == [*found["peaks"]] == ["construction", *_end_to_end.PARTS, "rewiring"]
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert 0 <= found["largest_error"] < 1e-4
    # bfloat16: 2 bytes a weight, and two moments and a compensation; steps are counted by 8 bytes.
    assert found["held"]["encoder weights"] == pytest.approx(2 * TINY.encoder.parameters, rel=0.01)
    assert found["held"]["encoder optimizer"] == pytest.approx(6 * TINY.encoder.parameters, rel=0.01)


def test_a_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = _end_to_end.HeadTail.step

    def wrong(self: Any, *given: Any) -> torch.Tensor:
        return 1.01 * right(self, *given)

    monkeypatch.setattr(_end_to_end.HeadTail, "step", wrong)
    with pytest.raises(CheckError, match="the encoder's gradient"):
        _end_to_end.check_gradients(CPU)


def test_frequencies_fall_by_a_power_law() -> None:
    model = _end_to_end.EndToEnd(replace(TINY, batch_size=2000, positives=10.0), CPU)
    ids, (offsets, labels) = model.batch()
    assert ids.shape == (2000, 16)
    assert offsets[-1] == len(labels)
    counts = torch.bincount(labels, minlength=300).double()
    # rank^(-2/3): the first tenth has (1/10)^(1/3) of the draws; those that fall together within a document count once.
    assert 0.35 < counts[:30].sum() / counts.sum() < 0.465
    rows = torch.arange(2000).repeat_interleave(offsets.diff())
    assert len((rows * 300 + labels).unique()) == len(labels)


def test_cases_are_those_of_the_papers() -> None:
    found = {name: (case.num_labels, case.fan_in, case.batch_size) for name, case in end_to_end.CASES.items()}
    assert found.pop("mixed-precision") == (200_000, 64, 128)
    assert found == {"amazon-3m": (2_812_281, 128, 128), "lf-paper2keywords": (8_623_847, 64, 128)}
    for case in end_to_end.CASES.values():
        assert (case.rule, case.dtype, case.in_features) == ("sgd", "bfloat16", 768)
    scaled = end_to_end._workload("amazon-3m", CPU, False, None, True)
    assert (scaled.num_labels, scaled.batch_size) == (281_228, 16)


def test_claims() -> None:
    record = {"estimated_over_measured": 0.91, "peak": 3 * 2**30}
    assert end_to_end._claims("amazon-3m", record, True, torch.device("cuda")) == {
        "estimate within a tenth": True,
        "peak <= 3.0 GiB": True,
    }
    record = {"estimated_over_measured": 1.11, "peak": 5 * 2**30}
    assert end_to_end._claims("lf-paper2keywords", record, True, torch.device("cuda")) == {
        "estimate within a tenth": False,
        "peak <= 4.0 GiB": False,
    }
    mixed = end_to_end._claims("mixed-precision", record, True, torch.device("cuda"))
    assert mixed == {"estimate within a tenth": False}
    assert end_to_end._claims("amazon-3m", record, True, CPU) == {"estimate within a tenth": False}


def test_a_case_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"case \(wiki\) must be one of amazon-3m, lf-paper2keywords"):
        next(end_to_end.records(["wiki"], device=CPU))


@pytest.mark.slow
def test_a_smoke_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--claim", "end-to-end", "--case", "amazon-3m", "--smoke", "--threads", "1", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["shape"]["encoder"]["checkpointing"] for record in records] == [True, False]
    for record in records:
        assert record["tokens_per_second"] == pytest.approx(64 / record["step_seconds"])
        assert record["claims"] == {}
        assert "tokens a second" in end_to_end.table(record)
