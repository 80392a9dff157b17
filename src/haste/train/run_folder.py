"""The folder of a run: made once, resumed only with the settings it was made with.

config.yaml  run.json  metrics.jsonl  metrics.json  checkpoints/{last,best}  model/
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import yaml

from haste.config import Config, expand_path
from haste.train.files import JsonLines, write_text


class RunFolder:
    """Paths of a run and the rules for starting or resuming it.

    Args:
        config: the run's settings; `run.dir` says where.
        resume: continue what is there instead of refusing it.

    Raises:
        ValueError: the folder holds a run and resume is false, or a run with other settings.
    """

    def __init__(self, config: Config, *, resume: bool) -> None:
        self.path = Path(expand_path(config.run.dir, "run.dir"))
        self.checkpoints = self.path / "checkpoints"
        self.last, self.best = self.checkpoints / "last", self.checkpoints / "best"
        self.model = self.path / "model"
        self.config, self.record = self.path / "config.yaml", self.path / "run.json"
        self.metrics = self.path / "metrics.json"
        self.history = JsonLines(self.path / "metrics.jsonl")
        self._check(config, resume)

    @property
    def finished(self) -> bool:
        """Whether the run is over; its metrics are the last thing it writes."""
        return self.metrics.is_file()

    def create(self, config: Config) -> None:
        """Make the folder with its config.yaml; one that is there already stays as it is."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.config.exists():
            write_text(self.config, yaml.safe_dump(config.to_dict(), sort_keys=False))

    def locked(self) -> AbstractContextManager[None]:
        """Keep every other process from writing this run; raises ValueError if one does already."""
        return locked(self.path, "run.dir")

    def _check(self, config: Config, resume: bool) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise ValueError(f"run.dir ({self.path}) must be a folder; it is a file, choose another run.dir")
        if not resume and any(self.path.iterdir()):
            raise ValueError(
                f"run.dir ({self.path}) must be new or empty; choose another run.dir, or continue with --resume"
            )
        if self.config.is_file():
            changes = differing_keys(read_config(self.config).to_dict(), config.to_dict())
            changes.pop("run.dir", None)  # the folder may have been moved
            if changes:
                listed = ", ".join(f"{key} ({old}, now {new})" for key, (old, new) in changes.items())
                raise ValueError(
                    f"run.dir ({self.path}) holds a run with other settings: {listed}; "
                    f"resume with {self.config}, or choose another run.dir"
                )
        elif resume and any(self.path.iterdir()):
            raise ValueError(f"run.dir ({self.path}) must hold a run; it has no config.yaml, choose another run.dir")


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Keep every other process from what is done in a folder.

    Raises:
        ValueError: one is at it already; name is what the folder is called.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{name} ({folder}) is in use by another process; wait for it to end") from None
        yield
    finally:
        os.close(descriptor)


def read_config(path: Path) -> Config:
    """Settings from a YAML file.

    Raises:
        ValueError: no such file, not YAML, an unknown key or a value out of range.
    """
    return Config.from_dict(read_yaml(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read; {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: must be YAML; {' '.join(str(error).split())}") from None
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"{path}: must be a mapping of keys to values, found {type(values).__name__}")
    return values or {}


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old, new) where two configurations as dictionaries differ."""
    changes: dict[str, tuple[Any, Any]] = {}
    for name in old.keys() | new.keys():
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes |= differing_keys(before, after, f"{prefix}{name}.")
        elif before != after:
            changes[prefix + name] = (before, after)
    return dict(sorted(changes.items()))
