"""Several systems on one data set, with one encoder and the same seeds: training every run of a plan.

A comparison is a folder: config.yaml (what all runs share), runs.json (what each run is), runs/NAME (their folders),
and the report. Runs that are finished are not repeated, one that was stopped goes on from its last checkpoint.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from haste.config import Config, expand_path
from haste.train.files import write_json, write_text
from haste.train.plan import Planned
from haste.train.preset import flatten
from haste.train.progress import duration, print_line
from haste.train.run_folder import RunFolder, differing_keys, locked, read_config, read_yaml
from haste.train.run_process import RunError, run_in_process
from haste.train.signals import Interrupted

Execute = Callable[[Planned, Callable[[str], None]], None]
_OF_A_RUN = ("run.dir", "run.seed", "run.diagnostics_every")  # settings in which the seeds of a system may differ


def as_started(config: Config, output: Path) -> Config:
    """The settings with paths of data written as in the comparison that is there, where they name the same files."""
    settings = output / "config.yaml"
    if not settings.is_file():
        return config
    before = read_config(settings).data
    written = {
        name: old
        for name in ("path", "dev", "test")
        if (old := getattr(before, name)) and (new := getattr(config.data, name)) and _place(old) == _place(new)
    }
    return replace(config, data=replace(config.data, **written))


def _place(path: str) -> str:
    return os.path.realpath(expand_path(path, "data.path"))


def first_seed(output: Path, seeds: Sequence[int]) -> int:
    """The seed whose data decides the sizes of all runs: where dev is drawn, those of other seeds differ a little."""
    settings = output / "config.yaml"
    return read_config(settings).run.seed if settings.is_file() else seeds[0]


@contextmanager
def locked_comparison(output: Path) -> Iterator[None]:
    """Keep other comparisons from a folder, which is made where there is none.

    Raises:
        ValueError: one is at work in it, or it is a file.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output ({output}) must be a folder; it is a file, choose another")
    output.mkdir(parents=True, exist_ok=True)
    with locked(output, "--output"):
        yield


def open_comparison(config: Config, output: Path) -> None:
    """Make the folder of a comparison, or see that the one that is there has the same settings.

    Raises:
        ValueError: the folder holds something else.
    """
    settings = output / "config.yaml"
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output ({output}) must be a folder; it is a file, choose another")
    if (output / "run.json").exists():
        raise ValueError(f"--output ({output}) must not be the folder of a run; choose another")
    if settings.is_file():
        changes = differing_keys(read_config(settings).to_dict(), config.to_dict())
        for key in ("run.dir", "run.seed"):
            changes.pop(key, None)
        if changes:
            listed = ", ".join(f"{key} ({old}, now {new})" for key, (old, new) in changes.items())
            raise ValueError(
                f"--output ({output}) holds a comparison with other settings: {listed}; choose another, or go back to "
                f"those in {settings}"
            )
    elif output.exists() and any(output.iterdir()):
        raise ValueError(f"--output ({output}) must be new, empty, or hold a comparison; choose another")
    else:
        (output / "runs").mkdir(parents=True, exist_ok=True)
        write_text(settings, yaml.safe_dump(config.to_dict(), sort_keys=False))


def train_all(
    runs: Sequence[Planned],
    output: Path,
    *,
    execute: Execute | None = None,
    after: Callable[[], object] = lambda: None,
    keep_checkpoints: bool = False,
    log: Callable[[str], None] = print_line,
) -> dict[str, str]:
    """Train what is not finished, one run after the other.

    Args:
        runs: from `planned_runs`.
        output: folder of the comparison.
        execute: trains one run and returns when it is over; default a process of its own, whose memory is its own.
        after: called after every run that was trained; what it raises is said and stops nothing.
        keep_checkpoints: of finished runs too; they take several times the space of the model, which always stays.
        log: takes lines of text.

    Returns:
        Name -> reason of every run that ended without a result; the others went on.

    Raises:
        ValueError: a run folder, or a finished run of the same system with another seed, has other settings; nothing
            was trained then.
        Interrupted: SIGINT, SIGTERM or SIGHUP; what is finished stays, what was going on has a checkpoint.
    """
    folders = {run.name: _folder(run) for run in runs}
    _check_rows(runs, output)
    todo = [run for run in runs if not folders[run.name].finished]

    def clear() -> None:
        for folder in folders.values():
            if folder.finished and not keep_checkpoints:
                shutil.rmtree(folder.checkpoints, ignore_errors=True)

    clear()
    if len(todo) < len(runs):
        log(f"{len(runs) - len(todo)} of {len(runs)} runs are finished already")
    _note(output, {run.name: _entry(run) for run in runs})
    failed: dict[str, str] = {}
    spent: list[tuple[Planned, float]] = []
    for number, run in enumerate(todo, 1):
        left = _estimate(spent, todo[number - 1 :])
        log(f"run {number} of {len(todo)}: {run.describe}" + (f"; about {duration(left)} left for all" if left else ""))
        started = time.monotonic()
        try:
            (execute or run_in_process)(run, lambda line: log(f"  {line}"))
        except RunError as error:
            failed[run.name] = str(error)
            log(f"  {run.name} failed: {error}")
            _note(output, {run.name: {**_entry(run), "failed": str(error)}})
        except KeyboardInterrupt:
            finished = sum(folder.finished for folder in folders.values())
            raise Interrupted(
                f"stopped; {finished} of {len(runs)} runs are finished and stay, the same command goes on"
            ) from None
        else:
            spent.append((run, time.monotonic() - started))
            _note(output, {run.name: _entry(run)})
        clear()
        try:
            after()
        except Exception as error:  # noqa: BLE001 - whatever it is, the runs to come are worth more
            log(f"the report could not be written: {type(error).__name__}: {error}")
    return failed


def _folder(run: Planned) -> RunFolder:
    try:
        return RunFolder(run.config, resume=True)
    except ValueError as error:
        what = str(error).partition("; ")[0]
        raise ValueError(f"{what}; delete {run.config.run.dir} to train it anew, or choose another --output") from None


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (before, now) of what differs between two configurations as dictionaries, whatever their seeds.

    A setting that only one of them knows says that their versions differ, not what was asked for; it is left out.
    """
    old, new = flatten(before), flatten(now)
    both = [key for key in old if key in new and key not in _OF_A_RUN]
    return {key: (old[key], new[key]) for key in both if old[key] != new[key]}


def _check_rows(runs: Sequence[Planned], output: Path) -> None:
    """Seeds are averaged: refuse a run that would be averaged with finished ones of other settings."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, entry in read_runs(output).items():
        folder = output / "runs" / name
        if (folder / "metrics.json").is_file():
            rows.setdefault(_row(entry), {})[name] = read_yaml(folder / "config.yaml")
    for run in runs:
        finished = rows.get(_row(_entry(run)), {})
        changes = {name: changed_settings(values, run.config.to_dict()) for name, values in finished.items()}
        if changes and all(changes.values()):
            name, found = next(iter(changes.items()))
            listed = ", ".join(f"{key} ({old}, now {new})" for key, (old, new) in found.items())
            raise ValueError(
                f"{run.name} must have the settings of {name}, with which the report takes its mean: {listed}; give "
                "--set as before, or choose another --output"
            )


def _row(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the runs in a row of the report have in common."""
    return entry["system"], entry["sparsity"], entry["change"]


def read_runs(output: Path) -> dict[str, dict[str, Any]]:
    """What each run of a comparison is: name -> system, sparsity, change, seed, own settings, and why it failed."""
    path = output / "runs.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _entry(run: Planned) -> dict[str, Any]:
    return {
        "system": run.system,
        "sparsity": run.sparsity,
        "change": run.change,
        "seed": run.config.run.seed,
        "own": dict(run.own),
    }


def _note(output: Path, entries: Mapping[str, dict[str, Any]]) -> None:
    write_json(output / "runs.json", {**read_runs(output), **entries})


def _estimate(spent: Sequence[tuple[Planned, float]], todo: Sequence[Planned]) -> float:
    """Seconds for the runs to come: as long as those of the same system took, else as long as any."""
    if not spent:
        return 0.0
    mean = sum(seconds for _, seconds in spent) / len(spent)
    total = 0.0
    for run in todo:
        same = [seconds for done, seconds in spent if done.system == run.system]
        total += sum(same) / len(same) if same else mean
    return total
