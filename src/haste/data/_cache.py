"""The folder where data sets are kept between runs: what is in it can always be made again."""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from haste.config import expand_path
from haste.data._columns import file_digest


def cache_folder(setting: str | None) -> Path:
    """data.cache, else $HASTE_CACHE, else haste under $XDG_CACHE_HOME or ~/.cache."""
    if setting:
        return Path(expand_path(setting, "data.cache"))
    if own := os.environ.get("HASTE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "haste"


@contextmanager
def locked(path: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Keep other processes from making the same thing; waits for one that does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"{path.with_suffix('')}: another process is making it; waiting")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def digests_of(files: Iterable[Path], cache: Path) -> dict[str, str]:
    """SHA-256 of every file; one that is as it was (size, time, inode) when last read is not read again."""
    book = cache / "digests.json"
    known = remembered(book)
    found = {}
    for file in files:
        path, state = str(file.resolve()), file.stat()
        mark = [state.st_size, state.st_mtime_ns, state.st_ino]
        entry = known.get(path)
        if not isinstance(entry, list) or entry[:-1] != mark:
            entry = known[path] = [*mark, file_digest(file)]
            remember(book, {path: entry})
        found[path] = entry[-1]
    return found


def remembered(book: Path) -> dict[str, Any]:
    """What `remember` wrote; nothing where the book is missing or damaged."""
    try:
        return dict(json.loads(book.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def remember(book: Path, entries: dict[str, Any]) -> None:
    """Add entries to a book. Two processes may each lose the other's; what is lost is found out again."""
    book.parent.mkdir(parents=True, exist_ok=True)
    write_json(book, {**remembered(book), **entries})


def write_json(path: Path, value: Any) -> None:
    """Replace a file by JSON in one step, flushed to the disk."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    with open(partial, "w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, ensure_ascii=False)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


def replace_folder(made: Path, folder: Path) -> None:
    """Give a finished folder its name, in place of an older one."""
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(made, folder)
