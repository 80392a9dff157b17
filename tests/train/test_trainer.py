import fcntl
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from haste.config import Config
from haste.train.checkpoint import load_checkpoint
from haste.train.loop import Loop
from haste.train.run_folder import differing_keys
from haste.train.signals import Interrupted
from haste.train.trainer import train


def quiet(text: str) -> None:
    pass


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Everything in a folder: links by target, files by content."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def rows(folder: Path, *, without_times: bool = False) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if without_times:
            del line["seconds"]
            for name in ("step_ms", "step_mib"):
                line.pop(name, None)
    return lines


def assert_same_run(found: Path, expected: Path) -> None:
    for name in ("last", "best"):
        tensors, meta = load_checkpoint(found / "checkpoints" / name)
        expected_tensors, expected_meta = load_checkpoint(expected / "checkpoints" / name)
        assert tensors.keys() == expected_tensors.keys()
        for key, tensor in expected_tensors.items():
            assert torch.equal(tensors[key], tensor), key
        assert meta == expected_meta
    assert (found / "metrics.json").read_bytes() == (expected / "metrics.json").read_bytes()
    assert rows(found, without_times=True) == rows(expected, without_times=True)
    for name in ("encoder.safetensors", "output.safetensors", "labels.jsonl", "vectorizer.npz"):
        assert (found / "model" / name).read_bytes() == (expected / "model" / name).read_bytes()


def test_a_run_leaves_exactly_its_folder(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    config = tiny_config()
    lines: list[str] = []
    assert train(config, log=lines.append) == tmp_path / "run"
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "metrics.json",
        "metrics.jsonl",
        "model",
        "run.json",
    ]
    assert sorted(path.name for path in (run / "model").iterdir()) == [
        "README.md",
        "config.json",
        "encoder.safetensors",
        "labels.jsonl",
        "output.safetensors",
        "vectorizer.json",
        "vectorizer.npz",
    ]
    assert Config.from_dict(yaml.safe_load((run / "config.yaml").read_text())) == config

    dev = {row["step"]: row for row in rows(run) if row["kind"] == "dev"}
    assert list(dev) == [8, 16, 24, 32]
    best = max(dev, key=lambda step: (dev[step]["nDCG@5"], -step))
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics.keys() == {"dev", "test", "step", "propensity", "by_decile"}
    assert metrics["step"] == best
    assert metrics["dev"]["nDCG@5"] == dev[best]["nDCG@5"] > 30
    assert metrics["propensity"] == {"a": 0.55, "b": 1.5}
    assert os.readlink(run / "checkpoints" / "best") == f"step-{best}"
    assert os.readlink(run / "checkpoints" / "last") == "step-32"
    kinds = [row["kind"] for row in rows(run)]
    assert kinds.count("rewire") == 4
    assert kinds.count("train") == 1

    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["data"]["train"] == 240
    assert record["data"]["labels_outside_train"] == 1
    assert record["peak_memory_bytes"] > 10**7
    assert record["environment"]["kernels"]
    assert set(record["seconds"]) == {"data", "train", "evaluate", "checkpoint"}
    assert any("step 8: dev P@1" in line for line in lines)


def test_two_runs_are_bitwise_the_same(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(tiny_config(run={"dir": str(tmp_path / name)}), log=quiet)
    assert_same_run(tmp_path / "a", tmp_path / "b")


# A run in a process of its own that sends itself a signal a moment after its checkpoint of a given step: a thread
# of the run sees the step pass in time, however slow or busy the machine is.
SIGNALLED = """
import os, sys, threading, time
from pathlib import Path
from haste.cli import main

last, step, delay, number, *arguments = sys.argv[1:]

def reached():
    return not int(step) or os.path.lexists(last) and int(os.readlink(last).partition("-")[2]) >= int(step)

def watch():
    while not reached():
        time.sleep(0.001)
    time.sleep(float(delay))
    os.kill(os.getpid(), int(number))

threading.Thread(target=watch, daemon=True).start()
sys.exit(main(arguments))
"""


def signalled(
    settings: dict[str, Any], number: int, *, step: int, delay: float, options: tuple[str, ...] = ()
) -> tuple[int, str]:
    """Exit status and errors of a run that gets a signal `delay` seconds after it has kept `step`."""
    folder = Path(settings["run"]["dir"])
    file = folder.with_name("settings.yaml")
    file.write_text(yaml.safe_dump(settings))
    last = str(folder / "checkpoints" / "last")
    command = [sys.executable, "-c", SIGNALLED, last, str(step), str(delay), str(int(number)), "train", str(file)]
    done = subprocess.run([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return done.returncode, done.stderr


LONG = {"optim": {"epochs": 40}, "rewire": {"interval": 7}}  # 320 steps


def test_killed_at_a_random_moment_it_resumes_to_the_same_bits(
    tiny_settings: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = {"threads": 1, "checkpoint_every": 3, "evaluate_every": 2.0}
    train(Config.from_dict(tiny_settings(**LONG, run={**options, "dir": str(whole)})), log=quiet)
    settings = tiny_settings(**LONG, run={**options, "dir": str(killed)})
    status, errors = signalled(settings, signal.SIGKILL, step=random.randint(1, 200), delay=random.uniform(0, 0.05))
    assert status == -signal.SIGKILL, errors
    assert not (killed / "metrics.json").exists()
    train(Config.from_dict(settings), resume=True, log=quiet)
    assert_same_run(killed, whole)


@pytest.mark.slow
@pytest.mark.parametrize("rewire", [{"regrow": "gradient"}, {"regrow": "random", "scope": "global"}])
def test_killed_again_and_again_it_resumes_to_the_same_bits(
    tiny_settings: Callable[..., dict[str, Any]], tmp_path: Path, rewire: dict[str, Any]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    changes = {"optim": {"epochs": 120}, "rewire": {"interval": 7, **rewire}, "output": {"dtype": "bfloat16"}}
    options = {"threads": 1, "checkpoint_every": 3, "evaluate_every": 2.0}
    train(Config.from_dict(tiny_settings(**changes, run={**options, "dir": str(whole)})), log=quiet)
    settings = tiny_settings(**changes, run={**options, "dir": str(killed)})
    for step in [0, *sorted(random.sample(range(1, 750), 4))]:  # of 960; 0 = while the process starts
        delay = random.uniform(0, 0.05 if step else 1.5)
        status, errors = signalled(settings, signal.SIGKILL, step=step, delay=delay, options=("--resume",))
        assert status == -signal.SIGKILL, errors
        assert not (killed / "metrics.json").exists()
    train(Config.from_dict(settings), resume=True, log=quiet)
    assert_same_run(killed, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_stops_after_the_step_and_says_how_to_resume(
    tiny_settings: Callable[..., dict[str, Any]], tmp_path: Path, number: int
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(Config.from_dict(tiny_settings(**LONG, run={"dir": str(whole)})), log=quiet)
    settings = tiny_settings(**LONG, run={"dir": str(stopped)})
    status, errors = signalled(settings, number, step=random.randint(1, 200), delay=random.uniform(0, 0.05))
    assert status == 130
    step = load_checkpoint(stopped / "checkpoints" / "last")[1]["step"]
    remedy = f"stopped after step {step} of 320; resume with: haste train {stopped / 'config.yaml'} --resume"
    assert errors.splitlines()[-1] == f"haste: {remedy}"
    assert "Traceback" not in errors
    assert json.loads((stopped / "run.json").read_text())["status"] == "interrupted"
    train(Config.from_dict(settings), resume=True, log=quiet)
    assert_same_run(stopped, whole)


def test_stopped_before_an_evaluation_it_evaluates_on_resuming(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_config(run={"dir": str(tmp_path / "whole")}), log=quiet)
    step = Loop.step

    def last_step_before_an_evaluation(loop: Loop, number: int) -> dict[str, float]:
        if number == 15:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(loop, number)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "step", last_step_before_an_evaluation)
        with pytest.raises(Interrupted, match="stopped after step 16 of 32"):
            train(tiny_config(), log=quiet)
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last")[1]["place"]["evaluated_step"] == 8
    train(tiny_config(), resume=True, log=quiet)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_finished_run_is_left_alone(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    config = tiny_config(optim={"epochs": 1})
    train(config, log=quiet)
    before = snapshot(tmp_path / "run")
    lines: list[str] = []
    train(config, resume=True, log=lines.append)
    assert lines == [f"{tmp_path / 'run'} is finished already; nothing to do"]
    assert snapshot(tmp_path / "run") == before


def stopped_run(config: Config) -> Path:
    """A run that was stopped after its first evaluation."""

    def stop(text: str) -> None:
        if "step 8: dev" in text:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(config, log=stop)
    return Path(config.run.dir)


def test_a_folder_in_the_way_is_refused_and_stays(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    run = stopped_run(tiny_config())
    before = snapshot(run)
    with pytest.raises(ValueError, match=r"run.dir \(.*run\) must be new or empty; choose another .* --resume"):
        train(tiny_config(), log=quiet)
    with pytest.raises(ValueError, match=r"other settings: optim.epochs \(4, now 5\), run.seed \(0, now 1\); resume"):
        train(tiny_config(optim={"epochs": 5}, run={"seed": 1}), resume=True, log=quiet)
    assert snapshot(run) == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"run.dir \(.*other\) must"):
            train(tiny_config(run={"dir": str(other)}), resume=resume, log=quiet)
    with pytest.raises(ValueError, match="must be a folder"):
        train(tiny_config(run={"dir": str(other / "thesis.txt")}), log=quiet)
    assert snapshot(other) == {"thesis.txt": b"mine"}


def test_a_moved_run_resumes(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    train(tiny_config(run={"dir": str(tmp_path / "whole")}), log=quiet)
    run = stopped_run(tiny_config())
    run.rename(tmp_path / "moved")
    train(tiny_config(run={"dir": str(tmp_path / "moved")}), resume=True, log=quiet)
    assert_same_run(tmp_path / "moved", tmp_path / "whole")


@pytest.mark.parametrize("end", [0.2, 0.6, 1.0])  # dropped before the stop, after it, never
def test_a_run_with_an_auxiliary_classifier_resumes_to_the_same_bits(
    tiny_config: Callable[..., Config], tmp_path: Path, end: float
) -> None:
    changes = {"auxiliary": {"clusters": 6, "end": end}, "output": {"group_size": 1}}
    train(tiny_config(**changes, run={"dir": str(tmp_path / "whole")}), log=quiet)
    train(tiny_config(run={"dir": str(tmp_path / "without")}, output={"group_size": 1}), log=quiet)
    run = stopped_run(tiny_config(**changes))
    train(tiny_config(**changes), resume=True, log=quiet)
    assert_same_run(run, tmp_path / "whole")
    tensors = load_checkpoint(run / "checkpoints" / "last")[0]
    assert any("auxiliary" in name for name in tensors) == (end == 1.0)
    sizes = [json.loads((folder / "run.json").read_text())["model"] for folder in (run, tmp_path / "without")]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("regroup", [0.2, 0.25, 0.6])  # before the stop, at it, after it
def test_a_run_that_groups_labels_anew_resumes_to_the_same_bits(
    tiny_config: Callable[..., Config], tmp_path: Path, regroup: float
) -> None:
    changes = {"output": {"regroup": regroup}, "optim": {"output": {"momentum": 0.9}}}
    whole = train(tiny_config(**changes, run={"dir": str(tmp_path / "whole")}), log=quiet)
    run = stopped_run(tiny_config(**changes))
    train(tiny_config(**changes), resume=True, log=quiet)
    assert_same_run(run, whole)
    (note,) = [row for row in rows(whole) if row["kind"] == "regroup"]
    assert note["step"] == round(regroup * 32)
    assert note["cosine"] > note["cosine_before"]
    assert 0.05 < note["kept"] < 1


def test_resume_starts_where_there_is_nothing(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    train(tiny_config(optim={"epochs": 1}), resume=True, log=quiet)
    assert (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize("name", ["last", "best"])
def test_an_altered_checkpoint_is_refused_and_stays(tiny_config: Callable[..., Config], name: str) -> None:
    def stop(text: str) -> None:
        if "step 9" in text or "step 12: dev" in text:
            os.kill(os.getpid(), signal.SIGTERM)

    # best at step 4 and another last, whatever dev says: the metric cannot improve with no learning
    frozen = {"optim": {"encoder": {"lr": 0.0}, "output": {"lr": 0.0}}, "rewire": {"interval": 0}}
    config = tiny_config(**frozen, run={"evaluate_every": 0.5})
    with pytest.raises(Interrupted):
        train(config, log=stop)
    run = Path(config.run.dir)
    assert os.readlink(run / "checkpoints" / "best") == "step-4"
    assert os.readlink(run / "checkpoints" / "last") == "step-12"
    part = run / "checkpoints" / name / "part-00000.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    before = snapshot(run)
    with pytest.raises(ValueError, match=rf"{name}/part-00000.safetensors: altered: expected SHA-256"):
        train(config, resume=True, log=quiet)
    assert snapshot(run) == before


def test_other_data_is_refused(tiny_config: Callable[..., Config], tiny_data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tiny_data.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = tiny_config(data={"path": str(copy)})
    run = stopped_run(config)
    lines = (copy / "train.jsonl").read_text().splitlines(keepends=True)
    (copy / "train.jsonl").write_text("".join(lines[::-1]))
    before = snapshot(run)
    with pytest.raises(ValueError, match=r"data.path \(.*copy\) must hold the documents that the run"):
        train(config, resume=True, log=quiet)
    assert snapshot(run) == before


def test_two_processes_do_not_share_a_run(tiny_config: Callable[..., Config]) -> None:
    run = stopped_run(tiny_config())
    descriptor = os.open(run, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    before = snapshot(run)
    with pytest.raises(ValueError, match="is in use by another process"):
        train(tiny_config(), resume=True, log=quiet)
    assert snapshot(run) == before
    os.close(descriptor)


def test_patience_stops_early(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    frozen = {"optim": {"encoder": {"lr": 0.0}, "output": {"lr": 0.0}}, "rewire": {"interval": 0}}
    train(tiny_config(**frozen, run={"patience": 2, "evaluate_every": 0.5}), log=quiet)
    run = tmp_path / "run"
    assert [row["step"] for row in rows(run) if row["kind"] == "dev"] == [4, 8, 12]
    assert json.loads((run / "metrics.json").read_text())["step"] == 4


def test_without_dev_the_last_model_is_kept(
    tiny_config: Callable[..., Config], tiny_data: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_bytes((tiny_data / "train.jsonl").read_bytes())
    changes = {"data": {"path": str(data), "dev_fraction": 0.0}, "optim": {"epochs": 2}}
    with pytest.raises(ValueError, match=r"run.patience \(1\) must be 0 without a dev split; set data.dev_fraction"):
        train(tiny_config(**changes, run={"patience": 1}), log=quiet)
    assert not (tmp_path / "run").exists()
    train(tiny_config(**changes), log=quiet)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics == {"step": 16, "propensity": {"a": 0.55, "b": 1.5}}


def test_a_run_that_diverges_says_so_and_keeps_its_checkpoint(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = tiny_config(optim={"warmup_steps": 0, "encoder": {"name": "sgd", "lr": 1e38}})
    with pytest.raises(ValueError, match=r"must (stay|be) finite"):
        train(config, log=quiet)
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("broken", ["malformed", "empty", "missing"])
def test_data_that_cannot_be_used_leaves_no_run(
    tiny_config: Callable[..., Config], tiny_data: Path, tmp_path: Path, broken: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    lines = (tiny_data / "train.jsonl").read_text().splitlines()
    if broken == "malformed":
        lines[4] = '{"text": "no labels"}'
    if broken != "missing":
        (data / "train.jsonl").write_text("\n".join([] if broken == "empty" else lines))
    place = "train.jsonl:5: " if broken == "malformed" else "data"
    with pytest.raises(ValueError, match=place):
        train(tiny_config(data={"path": str(data)}), log=quiet)
    assert not (tmp_path / "run").exists()


def test_settings_before_and_after_a_run_are_the_same(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    train(tiny_config(optim={"epochs": 1}, run={"threads": threads + 1}), log=quiet)
    assert torch.get_num_threads() == threads
    assert json.loads((tmp_path / "run" / "run.json").read_text())["environment"]["threads"] == threads + 1
    with pytest.raises(ValueError, match=r"run.device \(cuda:7\) must exist"):
        train(tiny_config(run={"dir": str(tmp_path / "other"), "device": "cuda:7"}), log=quiet)
    assert not (tmp_path / "other").exists()


def test_differing_keys_are_dotted_and_sorted() -> None:
    old = {"run": {"seed": 0, "dir": "x"}, "optim": {"output": {"lr": 1.0}}}
    new = {"run": {"seed": 1, "dir": "x"}, "optim": {"output": {"lr": 2.0}}}
    assert list(differing_keys(old, new).items()) == [("optim.output.lr", (1.0, 2.0)), ("run.seed", (0, 1))]
