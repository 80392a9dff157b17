import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from haste.cli import main
from haste.config import Config
from haste.nn import build_model
from haste.train.plan import Plan, planned_runs, prepare_sizes
from haste.train.systems import SYSTEMS

Settings = Callable[..., dict[str, Any]]
SIZES = ["estimate", "--labels", "5e4", "--in-features", "64"]


def record(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    main(["estimate", *arguments, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


def test_sizes_alone_are_enough(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SIZES, "--fan-in", "16", "--encoder", "minilm-l6", "--device", "h100"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("L 50,000, H 64, fan_in 16 of 64, groups of 32, bfloat16, sgd, B 128; encoder minilm-l6")
    for part in ("output weights", "encoder activations", "most labels that fit", "ms at least a step", "not measured"):
        assert part in text


def test_what_does_not_fit_is_an_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--labels", "1e8", "--in-features", "768", "--fan-in", "64", "--device", "h200", "--system"]
    assert main(["estimate", *arguments, "dense"]) == 1
    assert main(["estimate", *arguments, "haste"]) == 0


def test_a_file_of_settings_and_its_data_are_read(
    tiny_settings: Settings, tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(tiny_settings()))
    found = record(capsys, str(file))["workload"]
    assert (found["num_labels"], found["in_features"], found["fan_in"], found["batch_size"]) == (30, 32, 8, 32)
    changed = record(capsys, str(file), "--fan-in", "16", "--optimizer", "momentum")["workload"]
    assert (changed["fan_in"], changed["rule"]) == (16, "momentum")
    elsewhere = record(capsys, str(file), "--labels", "1e6", "--inputs", "1000")["workload"]
    assert (elsewhere["num_labels"], elsewhere["encoder"]["num_inputs"]) == (1_000_000, 1000)
    chosen = record(capsys, str(tiny_data))["workload"]
    assert (chosen["num_labels"], chosen["encoder"]["kind"]) == (30, "bag")


def test_the_terms_of_texts_are_counted(
    tiny_settings: Settings, tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [json.loads(line)["text"].split() for line in (tiny_data / "train.jsonl").read_text().splitlines()]
    documents = Counter(word for words in texts for word in set(words))
    frequent = sum(count >= 12 for count in documents.values())
    assert 20 < frequent < len(documents)
    file, data = tmp_path / "settings.yaml", {"path": str(tiny_data), "min_df": 12}
    for max_features, terms in ((None, frequent), (1000, frequent), (20, 20)):
        file.write_text(yaml.safe_dump(tiny_settings(data={**data, "max_features": max_features})))
        assert record(capsys, str(file))["workload"]["encoder"]["num_inputs"] == terms
    chosen = record(capsys, str(tiny_data), "--memory-budget", "2GB")["workload"]
    assert chosen["encoder"]["num_inputs"] == len(documents)  # min_df 1


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_of_a_comparison_has_an_estimate(
    name: str, tiny_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = tiny_settings(encoder={"features": 256}, output={"fan_in": 32})
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(values))
    config = Config.from_dict(values)
    sizes = prepare_sizes(config, [0], lambda line: None)
    [planned] = planned_runs(Plan(config=config, systems=[name], settings={}), sizes, tmp_path / "compared")
    model = build_model(planned.config, num_inputs=sizes.inputs, num_labels=sizes.labels)
    found = record(capsys, str(file), "--system", name)["systems"][name]["held"]
    parts = [part for layer in model.output.layers() for part in (*layer.parameters(), *layer.buffers())]
    names = ("output weights", "output biases", "output indices", "label order")
    assert sum(found.get(part, 0) for part in names) == sum(x.nbytes for x in parts) + 16 * sizes.labels
    assert ("auxiliary" in found) == (planned.config.auxiliary.clusters > 0)


def test_what_is_configured_is_kept_apart_from_the_systems(
    tiny_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    for output, first in (
        ({"fan_in": 256, "group_size": 1}, "configured"),
        ({"fan_in": 32, "group_size": 1}, "configured"),
        ({"fan_in": 32, "head_ratio": 0.1}, "haste"),
    ):
        file.write_text(yaml.safe_dump(tiny_settings(encoder={"features": 256}, output=output)))
        found = record(capsys, str(file), "--labels", "100000", "--inputs", "100")
        systems = found["systems"]
        assert next(iter(systems)) == first
        assert found["workload"]["fan_in"] == output["fan_in"]
        indices = [systems[name]["held"].get("output indices", 0) for name in ("block-sparse", "haste", "spartex")]
        assert min(indices) > 0
        assert len(set(indices)) == 3
        assert systems["dense"]["held"].get("output indices", 0) == 0


def test_a_system_that_the_settings_exclude_is_left_out(
    tiny_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    encoder = {"kind": "transformer", "name": "bert-base", "autocast": True, "features": 32}
    values = tiny_settings(encoder=encoder, optim={"encoder": {"lr": 1e-5}})
    file.write_text(yaml.safe_dump(values))
    found = record(capsys, str(file), "--labels", "1000")
    assert "dense-bf16" not in found["systems"]
    assert [line for line in found["budget"] if line.startswith("dense-bf16 is left out: ")]
    assert "autocast" in error(capsys, "estimate", str(file), "--labels", "1000", "--system", "dense-bf16")


@pytest.mark.parametrize("folder", [None, "/nowhere"])
def test_settings_of_a_paper_need_no_data(
    folder: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HASTE_DATA", raising=False)
    if folder is not None:
        monkeypatch.setenv("HASTE_DATA", folder)
    file = Path(__file__).parents[2] / "configs/papers/amazon-3m-haste.yaml"
    found = record(capsys, str(file), "--checkpointing", "--device", "a100", "--system", "haste")
    assert found["workload"]["num_labels"] == 2_812_281
    assert found["workload"]["encoder"]["kind"] == "bert-base"
    assert found["systems"]["haste"]["peak_bytes"] < 5.67 * 2**30


def test_a_budget_is_met_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["--labels", "1e6", "--in-features", "256", "--dtype", "float32", "--head-ratio", "0.1"]
    found = record(capsys, *wanted, "--memory-budget", "900MB", "--system", "haste")
    assert found["workload"]["dtype"] == "float32"  # what was given stays
    assert found["workload"]["fan_in"] < 128
    assert found["systems"]["haste"]["total_bytes"] <= 9e8
    assert any(line.startswith("output.fan_in ") for line in found["budget"])
    cheap = record(capsys, *wanted[:4], *wanted[6:], "--memory-budget", "20GB")
    assert cheap["workload"]["fan_in"] == 128
    assert len(cheap["budget"]) == 1


@pytest.mark.parametrize("systems", [["spartex"], ["haste", "spartex"]])
def test_a_budget_is_met_by_the_systems_asked_for(systems: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--labels", "1e6", "--in-features", "768", "--memory-budget", "2GB", "--device", "a100"]
    alone = record(capsys, *arguments, "--system", "haste")
    assert len(alone["budget"]) == 1  # nothing had to be lowered
    found = record(capsys, *arguments, *(word for name in systems for word in ("--system", name)))
    assert all(found["systems"][name]["fits"] for name in systems)
    assert found["workload"]["fan_in"] < alone["workload"]["fan_in"]


def test_a_budget_that_nothing_fits_names_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    found = error(capsys, *SIZES, "--fan-in", "32", "--memory-budget", "430MB")
    assert "memory_budget (410.1 MiB) must be at least" in found
    assert "most of it framework 400.5 MiB and" in found
    assert "lowering further gains nothing; raise it" in found
    least = error(capsys, *SIZES, "--fan-in", "32", "--memory-budget", "300MB")
    assert "memory_budget (286.1 MiB) must be above 400.5 MiB, which Python and PyTorch take" in least
    least = error(capsys, *SIZES, "--fan-in", "32", "--memory-budget", "300MB", "--device", "l4")
    assert "must be above 476.8 MiB, which CUDA takes" in least
    fewer = error(capsys, "estimate", "--labels", "1e8", "--in-features", "768", "--memory-budget", "4GB")
    assert "or train at most" in fewer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["estimate"], "needs --labels and --in-features"),
        ([*SIZES, "--fan-in", "128"], "fan_in (128) must not exceed in_features (64)"),
        ([*SIZES, "--memory-budget", "much"], "(much) must be a number of bytes, as 12GB or 900MiB"),
        ([*SIZES, "--memory-budget", "12"], "--memory-budget: (12) must have a unit, as 12GB or 900MiB"),
        ([*SIZES, "--memory-budget=-4GB"], "must be a number of bytes"),
        (["estimate", "--labels", "1.5", "--in-features", "8"], "must be a whole number"),
        (["train", "x", "--memory-budget", "0"], "--memory-budget (0) must be a number of bytes"),
    ],
)
def test_errors_name_the_remedy(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in error(capsys, *arguments)


def test_training_within_a_budget(
    tiny_settings: Settings, tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = tiny_settings(run={"dir": str(tmp_path / "other")})
    arguments = ["train", str(tiny_data), "--run.dir", str(tmp_path / "run"), "--optim.epochs", "1"]
    assert main([*arguments, "--memory-budget", "2GB"]) == 0
    assert "memory budget 1.86 GiB" in (tmp_path / "run" / "preset.txt").read_text()
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(values))
    assert "must be at least" in error(capsys, "train", str(file), "--memory-budget", "450MB")
    assert "must be above 400.5 MiB" in error(capsys, "train", str(file), "--memory-budget", "100MB")
    assert main(["train", str(file), "--memory-budget", "1GB", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# memory budget 953.7 MiB: what was wanted takes")
    assert yaml.safe_load(printed)["output"]["fan_in"] == 8


def test_measured_beside_the_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SIZES, "--fan-in", "16", "--system", "haste", "--measure"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("measured here, haste: ")
    assert "construction" in last
