"""Files that are either the old ones or the new ones, never half of one."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from haste.train.finite import jsonable


def write_text(path: Path, text: str) -> None:
    """Replace a file's content in one step, flushed to the disk."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file's content in one step; numbers that are not finite become null."""
    write_text(path, json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Stream lines into a file that appears under its name only when complete."""
    if path.exists() and not path.is_file():  # a pipe, the screen
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        return
    path = path.resolve()
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class JsonLines:
    """A growing file of JSON objects, one a line; numbers that are not finite are null."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, row: dict[str, Any]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(jsonable(row), allow_nan=False) + "\n")

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrite the file with the wanted rows only; a line cut short by a crash is dropped."""
        rows = []
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if wanted(row):
                    rows.append(line)
        write_text(self._path, "".join(f"{line}\n" for line in rows))
