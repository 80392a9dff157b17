"""A run in a process of its own: what it says, why it ended, and the signals that are passed on to it."""

import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import yaml

from haste.train.files import write_text
from haste.train.plan import Planned
from haste.train.signals import stop_signals

_LAST_LINES = 20  # of a run that failed, looked through for the reason


class RunError(ValueError):
    """A run that ended without a result; the message says why."""


def run_in_process(run: Planned, log: Callable[[str], None]) -> None:
    """Train one run in a process of its own; its lines go to `log` and to a file beside its folder.

    SIGINT, SIGTERM and SIGHUP to this process stop the run at its next step, with a checkpoint.

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
        raise RunError(reason_of(status, last))


def _copy(stream: IO[str], file: IO[str], last: deque[str], log: Callable[[str], None]) -> None:
    for line in stream:
        file.write(line)
        file.flush()
        last.append(line.strip())
        with suppress(OSError):  # the terminal is gone; the run still has a checkpoint to write
            log(line.rstrip())


def reason_of(status: int, last: Sequence[str]) -> str:
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
    """While entered, the first signal to stop goes to a process, which then has its time; a second one ends it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.asked, self._process = False, process
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_PassedOn":
        if threading.current_thread() is threading.main_thread():
            for number in stop_signals():
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
