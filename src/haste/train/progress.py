"""What a run says while it goes: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

_LINE_EVERY = 10.0  # seconds between plain lines


class Progress:
    """Reports the loop's place, loss, speed and time left.

    Args:
        steps, epochs: length of the whole run.
        first_step: completed steps when the loop starts.
        log: takes plain lines; None = standard error, with a live bar where that is a terminal.
    """

    def __init__(self, steps: int, epochs: int, first_step: int, log: Callable[[str], None] | None = None) -> None:
        self._steps, self._epochs, self._first_step = steps, epochs, first_step
        self._log = log or print_line
        self._live: Any = None
        if log is None and sys.stderr.isatty():
            self._live = _live_bar()
            self._task = self._live.add_task("", total=steps, completed=first_step, detail="")
            self._log = self._live.console.print
        self._seconds, self._documents, self._tokens, self._done = 0.0, 0, 0, 0
        self._last_line = time.monotonic()

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def log(self, text: str) -> None:
        """Say one line."""
        self._log(text)

    def step(self, step: int, *, loss: Callable[[], float], documents: int, seconds: float, tokens: int = 0) -> None:
        """Report one completed step.

        Args:
            step: completed steps.
            loss: gives the current loss a document, asked for only when it is shown.
            documents, seconds: size and duration of this step.
            tokens: of its documents; 0 where they are not tokens.
        """
        self._seconds += seconds
        self._documents += documents
        self._tokens += tokens
        self._done += 1
        speed = f"{self._documents / max(self._seconds, 1e-9):,.0f} docs/s"
        if self._tokens:
            speed += f"  {self._tokens / max(self._seconds, 1e-9):,.0f} tokens/s"
        left = (self._steps - step) * self._seconds / self._done
        epoch = min(self._epochs, 1 + step * self._epochs // self._steps)
        now = time.monotonic()
        if self._live:
            detail = f"epoch {epoch}/{self._epochs}  loss {loss():.4f}  {speed}  {duration(left)} left"
            self._live.update(self._task, completed=step, detail=detail)
        elif now - self._last_line >= _LINE_EVERY:
            self._last_line = now
            place = f"epoch {epoch}/{self._epochs}  step {step}/{self._steps}"
            self._log(f"{place}  loss {loss():.4f}  {speed}  {duration(left)} left")


def print_line(text: str) -> None:
    """Print one line to standard error at once."""
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`seconds` for people: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _live_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, highlight=False, markup=False)
    return Bar(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        console=console,
        transient=True,
    )
