"""Finds out which format a data set is in, and says why."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from haste.config import Data, expand_path
from haste.data.formats._files import Files, beginning, beginnings, look
from haste.data.formats._match import FORMATS, Format, Made, Near
from haste.data.source import DataError, Source

_STORE_MANIFEST = "dataset.json"


def detect(config: Data) -> Source:
    """The data set at config.path in config.format, or in the one that names and content tell.

    Raises: DataError if there is no data set, or more than one, naming what was found and what would do.
    """
    path = Path(expand_path(config.path, "data.path"))
    if config.format == "haste" or (config.format == "auto" and (path / _STORE_MANIFEST).is_file()):
        from haste.data.store import StoreSource  # what is converted needs no reader of this package

        if config.dev or config.test:
            raise DataError(f"{path}: is a converted data set with all of its splits; leave data.dev and data.test out")
        return StoreSource(path)
    dev, test = (
        Path(expand_path(value, f"data.{name}")) if value else None
        for name, value in (("dev", config.dev), ("test", config.test))
    )
    files = look(path, dev, test)
    formats = [entry for entry in FORMATS if config.format in ("auto", entry.name)]
    made, near = _one(files, config, formats)
    if made is None and path.is_dir():
        made, more = _of_beginnings(files, config, formats)
        near = near or more
    if made is None:
        raise _nothing(files, config, formats, near)
    return made()


def _one(files: Files, config: Data, formats: Sequence[Format]) -> tuple[Made | None, str]:
    """What makes the only data set among the files, if there is one; else what nearly is one, in words, or ""."""
    found: list[tuple[Format, Made]] = []
    near = ""
    for entry in formats:
        try:
            made = entry.match(files, config)
        except Near as error:
            near = near or str(error)
            continue
        if made is not None:
            found.append((entry, made))
    if len({entry.given for entry, _ in found}) == 2:
        found = [(entry, made) for entry, made in found if entry.given == (config.input == "features")]
        (_, chosen), *more = found
        if not more:
            read = "features" if config.input == "features" else "texts"
            return lambda: _said(chosen(), f"holds texts and features, the {read} are read (data.input)"), ""
    if len(found) > 1:
        names = " or ".join(dict.fromkeys(entry.name for entry, _ in found))
        raise DataError(f"{files.path}: may be {names} (found: {files.found()}); set data.format to one of them")
    if not found:
        return None, near
    entry, made = found[0]
    if config.input != "auto" and entry.given != (config.input == "features"):
        there = "given features but no texts" if entry.given else "texts but no given features"
        raise DataError(f"{files.path}: is {entry.name} with {there}; set data.input to auto")
    return made, ""


def _said(source: Source, more: str) -> Source:
    source.reason += f"; {more}"
    return source


def _of_beginnings(files: Files, config: Data, formats: Sequence[Format]) -> tuple[Made | None, str]:
    """The same as `_one`, among files whose names begin alike."""
    near = ""
    found: dict[str, Made] = {}
    for start in beginnings(files):
        made, more = _one(replace(files, names=beginning(files.path, start)), config, formats)
        if made is not None:
            found[start] = made
        near = near or more
    if len(found) > 1:
        paths = " or ".join(str(files.path / start) for start in found)
        raise DataError(f"{files.path}: holds {len(found)} data sets; set data.path to {paths}")
    return next(iter(found.values()), None), near


def _nothing(files: Files, config: Data, formats: Sequence[Format], near: str) -> DataError:
    if near:
        return DataError(f"{files.path}: {near}")
    needs = "; ".join(f"{entry.name} needs {entry.needs}" for entry in formats)
    which = "no data set" if config.format == "auto" else f"no data set in format {config.format}"
    return DataError(f"{files.path}: {which} (found: {files.found()}); {needs}")
