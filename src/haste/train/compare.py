"""Several systems on one data set, with one encoder and the same seeds: which runs there are, and training them.

A comparison is a folder: config.yaml (what all runs share), runs.json (what each run is), runs/NAME (their folders),
and the report. Runs that are finished are not repeated, one that was stopped goes on from its last checkpoint.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import yaml

from haste.config import Config
from haste.train.files import write_json, write_text
from haste.train.given_data import load_given
from haste.train.progress import duration, print_line
from haste.train.run_folder import RunFolder, differing_keys, read_config
from haste.train.signals import Interrupted
from haste.train.systems import SYSTEMS, Shared, Sizes, settings_of

_LAYER_SECTIONS = ("output", "rewire", "auxiliary")
_DIAGNOSTICS = 40  # times a run
_LAST_LINES = 20  # of a run that failed, looked through for the reason


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to compare.

    config: settings that all runs share
    systems: names in `SYSTEMS`
    seeds: each system is trained with each
    sparsities: of sparse systems, and of the HASTE whose size a bottleneck has; None = as config says
    vary: dotted keys and values that change together, each a run of its own beside the system without them
    settings: system -> dotted keys that win over the system's own
    """

    config: Config
    systems: Sequence[str]
    seeds: Sequence[int] = (0,)
    sparsities: Sequence[float | None] = (None,)
    vary: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A run that is to be there in the end.

    name: of its folder
    system: name in `SYSTEMS`
    sparsity: that was asked for, where it decides the size
    change: the varied settings, "key=value", joined by +; "" = none
    config: all of its settings
    """

    name: str
    system: str
    sparsity: float | None
    change: str
    config: Config

    @property
    def describe(self) -> str:
        """For people: system, sparsity, change and seed."""
        parts = [SYSTEMS[self.system].title, "" if self.sparsity is None else f"{100 * self.sparsity:g} %", self.change]
        return ", ".join([*filter(None, parts), f"seed {self.config.run.seed}"])


Execute = Callable[[Planned, Callable[[str], None]], None]


class RunError(ValueError):
    """A run that ended without a result; the message says why."""


def prepare_sizes(config: Config, seeds: Sequence[int], log: Callable[[str], None] = print_line) -> Sizes:
    """Make the data of all seeds ready, so that no run measures the making, and return its sizes.

    Raises:
        ValueError: data that cannot be used, or an encoder that this version does not train.
    """
    sizes = None
    for seed in dict.fromkeys(seeds):
        seeded = replace(config, run=replace(config.run, seed=seed))
        dataset = load_given(seeded, log=log if sizes is None else lambda line: None)
        if dataset.dev is None and dataset.test is None:
            raise ValueError(
                f"data.path ({config.data.path}) must have dev or test documents to compare systems on; add some, or "
                "set data.dev_fraction"
            )
        sizes = sizes or Sizes(
            inputs=dataset.num_inputs, labels=dataset.labels.num_labels, documents=len(dataset.train)
        )
    assert sizes is not None
    return sizes


def planned_runs(plan: Plan, sizes: Sizes, output: Path) -> list[Planned]:
    """Every run of a plan, seed by seed, so that all systems are there early; equal ones once.

    Raises:
        ValueError, TypeError: a setting that cannot be, with the run that would have it.
    """
    steps = plan.config.optim.epochs * -(-sizes.documents // plan.config.optim.batch_size)
    run = replace(plan.config.run, diagnostics_every=max(1, steps // _DIAGNOSTICS))
    found: dict[str, Planned] = {}
    seen: set[str] = set()
    for seed in plan.seeds:
        for name in plan.systems:
            for sparsity in plan.sparsities if SYSTEMS[name].sized else (None,):
                for varied in ({}, *_variations(plan, name)):
                    change = "+".join(f"{key}={_shown(value)}" for key, value in varied.items())
                    slug = re.sub(r"[^\w.=+-]", "_", "-".join(_words(name, sparsity, change, seed)))
                    base = replace(plan.config, run=replace(run, seed=seed, dir=str(output / "runs" / slug)))
                    shared = Shared(config=base, sizes=sizes, sparsity=sparsity)
                    changes = {**plan.settings.get(name, {}), **_changes(varied)}
                    try:
                        config = settings_of(SYSTEMS[name], shared, changes)
                    except (ValueError, TypeError) as error:
                        raise type(error)(f"{slug}: {error}") from None
                    same = json.dumps([name, replace(config, run=run).to_dict(), seed])
                    if same not in seen:
                        found[slug] = Planned(name=slug, system=name, sparsity=sparsity, change=change, config=config)
                    seen.add(same)
    return list(found.values())


def _variations(plan: Plan, name: str) -> list[Mapping[str, Any]]:
    """Variations that a system can have: a layer that is not sparse has nothing of its own to vary."""
    sparse = SYSTEMS[name].sparse
    return [v for v in plan.vary if sparse or not any(key.partition(".")[0] in _LAYER_SECTIONS for key in v)]


def _changes(varied: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a variation; regrowing nothing is never rewiring."""
    never = {"rewire.interval": 0} if varied.get("rewire.regrow") == "none" else {}
    return {key: value for key, value in varied.items() if key != "rewire.regrow" or not never} | never


def _words(name: str, sparsity: float | None, change: str, seed: int) -> list[str]:
    return [name, *([f"{100 * sparsity:g}"] if sparsity is not None else []), *filter(None, [change]), f"seed{seed}"]


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"


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
        after: called after every run that was trained.
        keep_checkpoints: of finished runs too; they take several times the space of the model, which always stays.
        log: takes lines of text.

    Returns:
        Name -> reason of every run that ended without a result; the others went on.

    Raises:
        ValueError: a run folder holds other settings; nothing was trained then.
        Interrupted: SIGINT or SIGTERM; what is finished stays, what was going on has a checkpoint.
    """
    folders = {run.name: _folder(run) for run in runs}
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
        after()
    return failed


def _folder(run: Planned) -> RunFolder:
    try:
        return RunFolder(run.config, resume=True)
    except ValueError as error:
        what = str(error).partition("; ")[0]
        raise ValueError(f"{what}; delete {run.config.run.dir} to train it anew, or choose another --output") from None


def read_runs(output: Path) -> dict[str, dict[str, Any]]:
    """What each run of a comparison is: name -> system, sparsity, change, seed, and failed, the reason, if it did."""
    path = output / "runs.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _entry(run: Planned) -> dict[str, Any]:
    return {"system": run.system, "sparsity": run.sparsity, "change": run.change, "seed": run.config.run.seed}


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


def run_in_process(run: Planned, log: Callable[[str], None]) -> None:
    """Train one run in a process of its own; its lines go to `log` and to a file beside its folder.

    SIGINT and SIGTERM to this process stop the run at its next step, with a checkpoint.

    Raises:
        RunError: it ended without a result.
        KeyboardInterrupt: it was stopped.
    """
    folder = Path(run.config.run.dir)
    settings = folder.with_name(folder.name + ".yaml")
    write_text(settings, yaml.safe_dump(run.config.to_dict(), sort_keys=False))
    command = [sys.executable, "-m", "haste.cli", "train", "--config", str(settings), "--resume"]
    last: deque[str] = deque(maxlen=_LAST_LINES)
    with open(folder.with_name(folder.name + ".log"), "a", encoding="utf-8") as file:
        # A session of its own: Ctrl-C on the terminal reaches this process only, which passes it on once.
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stderr is not None
        with _PassedOn(process) as stop:
            try:
                _copy(process.stderr, file, last, log)
                status = process.wait()
            except BaseException:
                process.kill()
                process.wait()
                raise
    if stop.asked:
        raise KeyboardInterrupt
    if status:
        raise RunError(_reason(status, last))


def _copy(stream: IO[str], file: IO[str], last: deque[str], log: Callable[[str], None]) -> None:
    for line in stream:
        file.write(line)
        file.flush()
        last.append(line.strip())
        log(line.rstrip())


def _reason(status: int, last: Sequence[str]) -> str:
    """Why a run ended: what it said, or the signal that ended it."""
    for line in reversed(last):
        if line.startswith("haste: error: "):
            return line.removeprefix("haste: error: ")
    if status == -signal.SIGKILL:
        return "killed by the system, most often for want of memory"
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return last[-1] if last and last[-1] else f"ended with status {status}"


class _PassedOn:
    """While entered, the first SIGINT or SIGTERM goes to a process, which then has its time; a second one ends it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.asked, self._process = False, process
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_PassedOn":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._pass)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _pass(self, number: int, frame: object) -> None:
        self.asked = True
        for each in self._before:
            signal.signal(each, signal.default_int_handler)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
