import json
import sys
from xml.etree import ElementTree

import pytest

from haste.bench import __main__ as bench
from haste.bench import plot
from haste.bench._case import Case
from haste.bench._run import table
from haste.bench._variants import LABELS


def record(claim="fused-step", case="A", operation="step", labels=1000, **changes):
    """A record as a GPU run writes it; the times are made up."""
    shape = Case(name=case, batch=128, in_features=768, num_labels=labels, fan_in=128, group_size=64).shape()
    made = {
        "claim": claim,
        "case": case,
        "operation": operation,
        "smoke": False,
        "shape": shape,
        "largest_error": {"haste": 1e-7},
        "ran": ["haste", "dense"],
        "not_run": {"csr": "out of memory"},
        "failed": ["csr"],
        "ms": {"haste": 1.0, "dense": 3.0},
        "spread": {"haste": [0.9, 1.2], "dense": [2.9, 3.1]},
        "host_ms": {"haste": 0.1, "dense": 0.2},
        "repeats": {"haste": 20, "dense": 20},
        "roofline": {"haste": 0.5, "dense": 0.25},
        "over_haste": {"haste": 1.0, "dense": 3.0},
        "claims": {"step": "<= 1.3 ms on an H200: 1.000 ms, met"},
        "device": {"name": "Some GPU", "kernels": "triton"},
        "versions": {"torch": "2.11.0"},
        "commit": None,
    }
    return made | changes


def written(folder, name, *records):
    file = folder / name
    file.write_text("".join(json.dumps(one) + "\n" for one in records))
    return file


def test_table_shows_times_reasons_peaks_and_claims():
    text = table(record(peak={"haste": {"weights": 717.0, "beyond": 31.0}}), LABELS)
    assert "fused-step A: B=128 H=768 L=1,000 F=128 S=64 bfloat16, step, Some GPU, kernels triton" in text
    rows = {line[:30].strip(): line for line in text.splitlines()}
    assert "3.000" in rows["dense"]
    assert "2.900 .. 3.100" in rows["dense"]
    assert "25%" in rows["dense"]
    assert "3.00x" in rows["dense"]
    assert "not run: out of memory" in text
    assert "weights 717 MB, a step beyond 31 MB" in text
    assert "claim step: <= 1.3 ms on an H200: 1.000 ms, met" in text
    assert text.index("haste  ") < text.index("dense  ")  # fastest first


def test_a_picture_shows_every_claim_once(tmp_path):
    pytest.importorskip("matplotlib")
    kernels = [
        record("paper-kernels", name, "forward", labels=labels)
        for name, labels in (("L=9.2M", 9_200_000), ("L=64k", 65_536))
    ]
    older = written(tmp_path, "older.jsonl", record(ms={"haste": 77.0, "dense": 3.0}))
    smoke = {"claim": "topk", "case": "x", "operation": "topk", "smoke": True}
    newer = written(tmp_path, "newer.jsonl", record(), *kernels, smoke, {"claim": "cpu-step", "ms": {"step": 1.0}})
    assert [found["ms"]["haste"] for found in plot.read_records([older, newer])] == [1.0, 1.0, 1.0]
    picture = tmp_path / "picture.svg"
    assert bench.main(["--plot", str(older), str(newer), "--output", str(picture)]) == 0
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")
    groups = plot.panels(plot.read_records([newer]))
    assert list(groups) == ["fused-step, step, by case", "paper-kernels, forward, by labels"]
    assert [one["case"] for one in groups["paper-kernels, forward, by labels"]] == ["L=64k", "L=9.2M"]


def test_nothing_to_draw_is_said(tmp_path, capsys):
    empty = written(tmp_path, "empty.jsonl", {"claim": "cpu-step", "ms": {"step": 1.0}})
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(record()) + "\nnot JSON\n")
    for file, message in (
        (empty, "no timed record of a GPU claim"),
        (broken, "broken.jsonl, line 2: not a JSON record"),
        (tmp_path / "none.jsonl", "No such file"),
    ):
        with pytest.raises(SystemExit) as stop:
            bench.main(["--plot", str(file), "--output", str(tmp_path / "x.svg")])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_without_matplotlib_the_remedy_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    file = written(tmp_path, "one.jsonl", record())
    with pytest.raises(SystemExit):
        bench.main(["--plot", str(file), "--output", str(tmp_path / "x.svg")])
    assert "pip install haste-xmc[report]" in capsys.readouterr().err
