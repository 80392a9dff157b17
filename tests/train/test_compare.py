import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from haste.cli import compare as compare_cli
from haste.cli import main
from haste.config import Config
from haste.train import compare
from haste.train.compare import open_comparison, read_runs, train_all
from haste.train.plan import Plan, Planned, planned_runs, prepare_sizes
from haste.train.run_process import RunError, _copy, reason_of
from haste.train.signals import Interrupted, stop_signals
from haste.train.systems import SYSTEMS, Sizes
from haste.train.trainer import train

SIZES = Sizes(inputs=90, labels=30, documents=240)
Settings = Callable[..., dict[str, Any]]


@pytest.fixture
def plan(tiny_config: Callable[..., Config], tmp_path: Path) -> Plan:
    """Two systems, two seeds, two epochs."""
    config = tiny_config(optim={"epochs": 2}, run={"dir": str(tmp_path / "out")})
    return Plan(config=config, systems=["dense", "haste"], seeds=[0, 1], settings={})


def here(run: Planned, log: Callable[[str], None]) -> None:
    """Train in this process: a second less a run than one of its own."""
    train(run.config, resume=True, log=log)


def test_runs_of_a_plan(plan: Plan, tmp_path: Path) -> None:
    plan = replace(
        plan,
        sparsities=[0.5, 0.75],
        vary=[
            {"output.grouping": "semantic"},
            {"output.grouping": "random"},
            {"rewire.regrow": "none"},
            {"optim.epochs": 3},
        ],
        settings={"dense": {"optim.output.lr": 0.5}},
    )
    said: list[str] = []
    runs = planned_runs(plan, SIZES, tmp_path, said.append)
    assert said == [
        "dense: output.grouping=semantic means nothing to a layer without links; not varied",
        "dense: output.grouping=random means nothing to a layer without links; not varied",
        "dense: rewire.regrow=none means nothing to a layer without links; not varied",
        "haste-50-output.grouping=semantic-seed0: nothing would be other than in haste-50-seed0; not run",
        "haste-75-output.grouping=semantic-seed0: nothing would be other than in haste-75-seed0; not run",
        "haste-50-output.grouping=semantic-seed1: nothing would be other than in haste-50-seed1; not run",
        "haste-75-output.grouping=semantic-seed1: nothing would be other than in haste-75-seed1; not run",
    ]
    assert [run.name for run in runs if run.config.run.seed == 0] == [
        "dense-seed0",
        "dense-optim.epochs=3-seed0",  # a dense layer has no groups and no links to vary
        "haste-50-seed0",  # its groups are semantic: no run twice
        "haste-50-output.grouping=random-seed0",
        "haste-50-rewire.regrow=none-seed0",
        "haste-50-optim.epochs=3-seed0",
        "haste-75-seed0",
        "haste-75-output.grouping=random-seed0",
        "haste-75-rewire.regrow=none-seed0",
        "haste-75-optim.epochs=3-seed0",
    ]
    assert [run.config.run.seed for run in runs] == [0] * 10 + [1] * 10
    by_name = {run.name: run for run in runs}
    assert by_name["haste-50-rewire.regrow=none-seed1"].config.rewire.interval == 0
    assert by_name["haste-50-seed1"].config.output.fan_in == 16
    assert by_name["dense-seed0"].config.optim.output.lr == 0.5
    assert by_name["haste-50-seed0"].config.optim.output.lr == plan.config.optim.output.lr
    assert by_name["haste-75-output.grouping=random-seed1"].describe == "HASTE, 75 %, output.grouping=random, seed 1"
    for run in runs:
        assert Path(run.config.run.dir) == tmp_path / "runs" / run.name


def test_a_dense_layer_varies_in_what_it_has(plan: Plan, tmp_path: Path) -> None:
    vary: list[dict[str, Any]] = [
        {"output.loss": "squared_hinge"},
        {"output.bias_init": "zero"},
        {"output.dtype": "bfloat16"},
        {"output.fan_in": 16, "optim.output.lr": 0.3},
        {"output.fan_in": 16, "rewire.scope": "global"},
        {"auxiliary.weight": 0.1},  # of an auxiliary classifier that is not there
        {"run.threads": 2},
    ]
    said: list[str] = []
    plan = replace(plan, systems=["dense", "bottleneck"], seeds=[0], vary=vary)
    runs = planned_runs(plan, SIZES, tmp_path, said.append)
    changes = ["", *(f"output.{x}" for x in ("loss=squared_hinge", "bias_init=zero", "dtype=bfloat16"))]
    changes += ["optim.output.lr=0.3", "run.threads=2"]
    assert [run.change for run in runs if run.system == "dense"] == changes
    assert [run.change for run in runs if run.system == "bottleneck"] == changes
    assert all(run.config.output.fan_in == 0 for run in runs)
    assert "dense: output.fan_in=16, rewire.scope=global means nothing to a layer without links; not varied" in said
    assert "dense-auxiliary.weight=0.1-seed0: nothing would be other than in dense-seed0; not run" in said


def test_a_run_that_cannot_be_is_named_before_any_starts(plan: Plan, tmp_path: Path) -> None:
    wrong = replace(plan, vary=[{"output.fan_in": 99}])
    with pytest.raises(ValueError, match=r"haste-output.fan_in=99-seed0: output.fan_in \(99\) must not exceed"):
        planned_runs(wrong, SIZES, tmp_path)


def test_there_must_be_something_to_compare_on(tiny_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text((tiny_data / "train.jsonl").read_text())
    config = Config.from_dict({"data": {"path": str(data), "dev_fraction": 0.0}})
    with pytest.raises(ValueError, match=r"data.path \(.*\) must have dev or test documents to compare systems on"):
        prepare_sizes(config, [0], lambda line: None)


def test_a_transformer_is_as_wide_as_its_hidden_states(tiny_config: Callable[..., Config], tiny_bert: Path) -> None:
    encoder = {"kind": "transformer", "name": str(tiny_bert), "features": 0}
    config = tiny_config(encoder=encoder, optim={"encoder": {"lr": 1e-4}}, data={"max_tokens": 32})
    assert prepare_sizes(config, [0], lambda line: None).inputs == 32


def test_finished_runs_are_not_repeated_and_a_failed_one_does_not_stop_the_others(plan: Plan, tmp_path: Path) -> None:
    output = tmp_path / "out"
    runs = planned_runs(plan, prepare_sizes(plan.config, plan.seeds, lambda line: None), output)
    open_comparison(plan.config, output)
    trained: list[str] = []

    def failing(run: Planned, log: Callable[[str], None]) -> None:
        trained.append(run.name)
        if run.name == "dense-seed0":
            raise RunError("out of luck")
        here(run, log)

    reports: list[int] = []
    lines: list[str] = []

    def report() -> None:
        reports.append(1)
        raise OverflowError("no such plot")

    failed = train_all(runs, output, execute=failing, after=report, log=lines.append)
    assert "the report could not be written: OverflowError: no such plot" in lines
    assert failed == {"dense-seed0": "out of luck"}
    assert trained == ["dense-seed0", "haste-seed0", "dense-seed1", "haste-seed1"]
    assert len(reports) == 4
    assert not (output / "runs/haste-seed0/checkpoints").exists()
    assert (output / "runs/haste-seed0/model/config.json").is_file()
    assert read_runs(output)["dense-seed0"]["failed"] == "out of luck"

    before = (output / "runs/haste-seed0/metrics.json").stat().st_mtime_ns
    said: list[str] = []
    assert train_all(runs, output, execute=here, keep_checkpoints=True, log=said.append) == {}
    assert (output / "runs/dense-seed0/checkpoints/last").is_dir()
    assert "3 of 4 runs are finished already" in said
    assert any(line.startswith("run 1 of 1: dense, seed 0") for line in said)
    assert (output / "runs/haste-seed0/metrics.json").stat().st_mtime_ns == before
    assert "failed" not in read_runs(output)["dense-seed0"]


def test_an_interrupted_run_goes_on_to_the_same_result(plan: Plan, tmp_path: Path) -> None:
    plan = replace(plan, seeds=[0], systems=["haste"])
    runs = planned_runs(plan, SIZES, tmp_path / "whole")
    open_comparison(plan.config, tmp_path / "whole")
    train_all(runs, tmp_path / "whole", execute=here, log=lambda line: None)

    def stopped(run: Planned, log: Callable[[str], None]) -> None:
        def kill(line: str) -> None:
            if "step 8: dev" in line:
                os.kill(os.getpid(), signal.SIGINT)

        train(run.config, resume=True, log=kill)

    output = tmp_path / "out"
    runs = planned_runs(plan, SIZES, output)
    open_comparison(plan.config, output)
    with pytest.raises(Interrupted, match="0 of 1 runs are finished and stay, the same command goes on"):
        train_all(runs, output, execute=stopped, log=lambda line: None)
    assert not (output / "runs/haste-seed0/metrics.json").exists()
    said: list[str] = []
    train_all(runs, output, execute=here, log=said.append)
    assert any("resuming" in line for line in said)
    found, expected = (folder / "runs/haste-seed0/metrics.json" for folder in (output, tmp_path / "whole"))
    assert found.read_bytes() == expected.read_bytes()


def test_other_settings_are_refused(plan: Plan, tmp_path: Path) -> None:
    output = tmp_path / "out"
    open_comparison(plan.config, output)
    open_comparison(plan.config, output)
    other = replace(plan.config, optim=replace(plan.config.optim, epochs=9))
    with pytest.raises(ValueError, match=r"holds a comparison with other settings: optim.epochs \(2, now 9\); choose"):
        open_comparison(other, output)

    runs = planned_runs(replace(plan, systems=["haste"], seeds=[0]), SIZES, output)
    train_all(runs, output, execute=here, log=lambda line: None)
    changed = planned_runs(replace(plan, seeds=[0], settings={"haste": {"output.fan_in": 4}}), SIZES, output)
    with pytest.raises(ValueError, match=r"haste-seed0\) holds a run with other settings: output.fan_in \(8, now 4\)"):
        train_all(changed, output, execute=here, log=lambda line: None)
    assert not (output / "runs/dense-seed0").exists()

    (tmp_path / "busy").mkdir()
    (tmp_path / "busy/notes.txt").touch()
    with pytest.raises(ValueError, match="must be new, empty, or hold a comparison"):
        open_comparison(plan.config, tmp_path / "busy")
    with pytest.raises(ValueError, match="must be a folder; it is a file"):
        open_comparison(plan.config, tmp_path / "busy/notes.txt")
    with pytest.raises(ValueError, match="must not be the folder of a run"):
        open_comparison(plan.config, output / "runs/haste-seed0")


def test_the_same_data_may_be_written_in_another_way(
    plan: Plan, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at(path: str) -> Config:
        return replace(plan.config, data=replace(plan.config.data, path=path))

    monkeypatch.chdir(tmp_path)
    os.symlink(tiny_data, tmp_path / "data")
    monkeypatch.setenv("TINY", str(tmp_path))
    output = tmp_path / "out"
    assert compare.as_started(at("data/"), output) == at("data/")
    open_comparison(at("data/"), output)
    for path in (str(tiny_data), "data", f"{tmp_path}/data", "${TINY}/data"):
        assert compare.as_started(at(path), output) == at("data/")
    assert compare.as_started(at(str(tmp_path)), output) == at(str(tmp_path))


def test_seeds_of_a_row_have_the_same_settings(plan: Plan, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with_set = replace(plan, systems=["haste"], seeds=[0], settings={"haste": {"optim.epochs": 1}})
    open_comparison(plan.config, output)
    train_all(planned_runs(with_set, SIZES, output), output, execute=here, log=lambda line: None)
    assert read_runs(output)["haste-seed0"]["own"] == {"optim.epochs": 1}
    without = planned_runs(replace(with_set, seeds=[1], settings={}), SIZES, output)
    message = r"haste-seed1 must have the settings of haste-seed0, .*: optim.epochs \(1, now 2\); give --set as before"
    with pytest.raises(ValueError, match=message):
        train_all(without, output, execute=here, log=lambda line: None)
    assert not (output / "runs/haste-seed1").exists()
    assert "haste-seed1" not in read_runs(output)
    same = planned_runs(replace(with_set, seeds=[1]), SIZES, output)
    assert train_all(same, output, execute=here, log=lambda line: None) == {}


def test_sizes_are_those_of_the_first_seed_ever(plan: Plan, tmp_path: Path) -> None:
    assert compare.first_seed(tmp_path / "out", [3, 4]) == 3
    open_comparison(replace(plan.config, run=replace(plan.config.run, seed=3)), tmp_path / "out")
    assert compare.first_seed(tmp_path / "out", [5]) == 3


def test_two_comparisons_do_not_share_a_folder(
    tiny_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, output = tmp_path / "settings.yaml", tmp_path / "out"
    settings.write_text(yaml.safe_dump(tiny_settings()))
    with compare.locked_comparison(output):
        assert main(["compare", str(settings), "--output", str(output)]) == 2
        assert f"--output ({output}) is in use by another process; wait for it to end" in capsys.readouterr().err
        assert list(output.iterdir()) == []
    with compare.locked_comparison(output):
        pass
    with pytest.raises(ValueError, match="must be a folder; it is a file"), compare.locked_comparison(settings):
        pass


def test_the_log_of_a_run_outlives_the_terminal(tmp_path: Path) -> None:
    def gone(line: str) -> None:
        raise OSError(5, "Input/output error")

    last: deque[str] = deque(maxlen=3)
    with open(tmp_path / "log", "w+", encoding="utf-8") as file:
        _copy(io.StringIO("one\ntwo\n"), file, last, gone)
        file.seek(0)
        assert file.read() == "one\ntwo\n"
    assert list(last) == ["one", "two"]


def test_nohup_keeps_a_run_going() -> None:
    assert signal.SIGHUP in stop_signals()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in stop_signals()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_rest_takes_as_long_as_the_same_system_did(plan: Plan, tmp_path: Path) -> None:
    runs = planned_runs(replace(plan, seeds=[0, 1, 2]), SIZES, tmp_path)
    spent = [(runs[0], 10.0), (runs[1], 30.0)]
    assert compare._estimate([], runs) == 0
    assert compare._estimate(spent, runs[2:]) == 2 * 10 + 2 * 30
    assert compare._estimate(spent[:1], runs[1:]) == 5 * 10


def test_why_a_process_ended() -> None:
    assert reason_of(2, ["warming up", "haste: error: no luck", ""]) == "no luck"
    assert reason_of(-signal.SIGKILL, []) == "killed by the system, most often for want of memory"
    assert reason_of(-signal.SIGSEGV, ["x"]) == "ended by SIGSEGV"
    assert reason_of(1, []) == "ended with status 1"


@pytest.mark.slow
def test_the_command_trains_and_reports(
    tiny_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(tiny_settings()))
    output = tmp_path / "out"
    # the second run diverges
    command = ["compare", str(settings), "--systems", "haste,dense", "--budget-epochs", "2", "--output", str(output)]
    command += ["--set", "dense.optim.encoder.lr=1e30", "--run.evaluate_every", "2"]
    assert main([*command, "--dry-run", "--run.seed", "7"]) == 0
    assert not output.exists()
    assert "dense-seed7\n    optim.encoder.lr 1e+30" in capsys.readouterr().out
    assert main(command) == 1
    shown = capsys.readouterr()
    assert "run 2 of 2: dense, seed 0; about" in shown.err
    assert "dense-seed0 has no result: gradient_tail (inf) must stay finite" in shown.out
    metrics = json.loads((output / "runs/haste-seed0/metrics.json").read_text())
    assert f" {metrics['test']['P@1']:.2f} " in shown.out
    record = json.loads((output / "runs/haste-seed0/run.json").read_text())
    assert record["total_steps"] == 16
    assert "dev P@1" in (output / "runs/haste-seed0.log").read_text()
    assert "dense-seed0: gradient_tail (inf) must stay finite" in (output / "report.md").read_text()
    assert (output / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], "needs CONFIG or DATA, and --output DIR"),
        (["--output", "y"], "needs CONFIG or DATA, and --output DIR"),
        (["x", "--output", "y", "--systems", "hast"], "--systems (hast) must name systems; the nearest is haste"),
        (["nothing", "--output", "y", "--systems", "dens"], "--systems (dens) must name systems; the nearest is dense"),
        (
            ["nothing", "--output", "y", "--systems", "haste,"],
            "--systems (haste,) must be names separated by commas; one",
        ),
        (["nothing", "--output", "y", "--seeds", "0,"], "--seeds (0,) must be numbers separated by commas"),
        (["x", "--output", "y", "--seeds", "one"], "--seeds (one) must be numbers separated by commas"),
        (["x", "--output", "y", "--vary", "fan_in"], "--vary (fan_in) must be KEY=V1,V2"),
        (["x", "--output", "y", "--set", "haste.fan_in"], "--set (haste.fan_in) must be SYSTEM.KEY=VALUE"),
        (["x", "--output", "y", "--set", "hste.fan_in=3"], "--systems (hste) must name systems"),
        (
            ["x", "--output", "y", "--set", "rigl.fan_in=3"],
            "--set (rigl.fan_in=3) must be of a system that is compared (dense, haste); add it to --systems",
        ),
        (["x", "--output", "y", "--vary", "seed=1,2"], "--vary (seed=1,2) must not set run.seed; --output and --seeds"),
        (["x", "--output", "y", "--budget-epochs", "0"], "must be at least 1"),
        (
            ["x", "--output", "y", "--optim.epoch", "3"],
            "unknown key optim.epoch; the nearest known key is optim.epochs",
        ),
    ],
)
def test_errors_of_use(
    arguments: list[str],
    message: str,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink(tiny_data, tmp_path / "x")
    assert main(["compare", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "y").exists()


def test_the_list_shows_every_system(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{shown}" and system.text in shown for name, system in SYSTEMS.items())


def test_the_page_has_every_system_and_option() -> None:
    page = (Path(__file__).parents[2] / "docs/compare.md").read_text(encoding="utf-8")
    assert all(f"\n| `{name}` |" in page for name in SYSTEMS)
    options = {option for action in compare_cli._parser()._actions for option in action.option_strings}
    assert [option for option in sorted(options - {"-h", "--help"}) if option not in page] == []


@pytest.fixture
def comparing(tiny_settings: Settings, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """`haste compare` in the first of two long runs."""
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(tiny_settings(optim={"epochs": 400})))
    command = [sys.executable, "-m", "haste.cli", "compare", str(settings), "--output", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "step 16: dev" in line:
            break
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_run_and_comparison(
    number: signal.Signals, comparing: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    comparing.send_signal(number)
    _, said = comparing.communicate(timeout=60)
    assert comparing.returncode == 130
    assert said.splitlines()[-1] == ("haste: stopped; 0 of 2 runs are finished and stay, the same command goes on")
    run = tmp_path / "out/runs/dense-seed0"
    step = json.loads((run / "run.json").read_text())["step"]
    assert os.readlink(run / "checkpoints/last") == f"step-{step}"
    time.sleep(1)
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
