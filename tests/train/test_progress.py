import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from haste.train import progress
from haste.train.progress import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plain_lines_come_when_they_are_due_and_tell_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    with Progress(100, 10, 0, lines.append) as shown:
        shown.step(1, loss=lambda: 1.0, documents=8, seconds=2.0)
        assert lines == []
        monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
        shown.step(55, loss=lambda: 0.25, documents=8, seconds=4.0)
    assert lines == ["epoch 6/10  step 55/100  loss 0.2500  3 docs/s  2 min 15 s left"]


def test_a_terminal_gets_a_live_bar(tiny_settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(tiny_settings()))
    reader, terminal = os.openpty()
    command = [sys.executable, "-m", "haste.cli", "train", str(file)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, stderr=terminal, env=environment)
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(reader, 4096):
            shown += part
    except OSError:
        pass  # the other end is closed
    os.close(reader)
    assert process.wait() == 0, shown
    text = shown.decode()
    assert "docs/s" in text
    assert "left" in text
    assert "32/32" in text
    assert "\x1b[" in text
    assert "step 8: dev P@1" in text
