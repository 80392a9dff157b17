"""Finds out which format a data set is in, and says why."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from haste.config import Data, expand_path
from haste.data.formats._fields import Fields
from haste.data.formats._files import Files, beginning, beginnings, look
from haste.data.formats._jsonl import JsonlSource
from haste.data.source import DataError, Source

Made = Callable[[], Source]


class Near(Exception):
    """Files that would be a data set but for what the message says, with the remedy."""


@dataclass(frozen=True)
class _Format:
    """A format that may be found.

    given: whether it holds given features
    needs: what must be there, in words
    match: makes the source, None where nothing of the format is there; raises Near
    """

    name: str
    given: bool
    needs: str
    match: Callable[[Files, Data], Made | None]


def detect(config: Data) -> Source:
    """The data set at config.path in config.format, or in the one that names and content tell.

    Raises: DataError if there is no data set, or more than one, naming what was found and what would do.
    """
    path = Path(expand_path(config.path, "data.path"))
    dev, test = (
        Path(expand_path(value, f"data.{name}")) if value else None
        for name, value in (("dev", config.dev), ("test", config.test))
    )
    files = look(path, dev, test)
    formats = [entry for entry in _FORMATS if config.format in ("auto", entry.name)]
    made = _one(files, config, formats)
    if made is None and path.is_dir():
        made = _of_beginnings(files, config, formats)
    if made is None:
        needs = "; ".join(f"{entry.name} needs {entry.needs}" for entry in formats)
        which = "no data set" if config.format == "auto" else f"no data set in format {config.format}"
        raise DataError(f"{path}: {which} (found: {files.found()}); {needs}")
    return made()


def _one(files: Files, config: Data, formats: list[_Format]) -> Made | None:
    """The only data set among the files; None if there is none."""
    found: list[tuple[_Format, Made]] = []
    near: list[Near] = []
    for entry in formats:
        try:
            made = entry.match(files, config)
        except Near as error:
            near.append(error)
            continue
        if made is not None:
            found.append((entry, made))
    both = {entry.given for entry, _ in found} == {True, False}
    if both:
        found = [(entry, made) for entry, made in found if entry.given == (config.input == "features")]
    if len(found) > 1:
        names = [entry.name for entry, _ in found]
        raise DataError(
            f"{files.path}: may be {' or '.join(names)} (found: {files.found()}); set data.format to one of them"
        )
    if not found:
        if near:
            raise DataError(f"{files.path}: {near[0]}")
        return None
    entry, made = found[0]
    if config.input != "auto" and entry.given != (config.input == "features"):
        there = "given features but no texts" if entry.given else "texts but no given features"
        raise DataError(f"{files.path}: is {entry.name}, which holds {there}; set data.input to auto")
    return made


def _of_beginnings(files: Files, config: Data, formats: list[_Format]) -> Made | None:
    """The only data set of those whose files' names begin alike; None if there is none."""
    found: dict[str, Made] = {}
    near = None
    for start in beginnings(files):
        try:
            made = _one(replace(files, names=beginning(files.path, start)), config, formats)
        except DataError as error:
            near = error
            continue
        if made is not None:
            found[start] = made
    if len(found) > 1:
        paths = " or ".join(str(files.path / start) for start in found)
        raise DataError(f"{files.path}: holds {len(found)} data sets; set data.path to {paths}")
    if not found and near:
        raise near
    return next(iter(found.values()), None)


def _table(made: Callable[[Files, dict[str, Path], Fields], Source], what: str, *endings: str) -> Callable:
    """The match of a format with one file for each split."""

    def match(files: Files, config: Data) -> Made | None:
        splits = files.splits(*("{}" + ending for ending in endings))
        if not splits:
            return None
        if "train" not in splits:
            raise Near(lacks_train(files, splits))
        return lambda: made(files, splits, Fields.of(config, what, True))

    return match


def lacks_train(files: Files, splits: dict[str, Path]) -> str:
    """What to say where only other splits are there."""
    return f"{files.holds(splits.values())}, but no documents to train on; add a file named train or trn like it"


_FORMATS = (_Format("jsonl", False, "train.jsonl", _table(JsonlSource, "key", ".jsonl")),)
