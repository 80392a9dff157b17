"""A data set from one format into another."""

import logging
from collections.abc import Callable
from pathlib import Path

from haste.config import Data
from haste.data.formats import DataError, detect, write

_logger = logging.getLogger(__name__)


def convert(config: Data, folder: str | Path, format: str, *, log: Callable[[str], None] = _logger.info) -> list[Path]:
    """Write the data set at config.path to a folder in another format, a document at a time.

    folder: new, or empty
    format: one of data.format but auto; haste is the memory-mapped form that a run makes for itself
    log: called with lines that tell what was found and written
    Returns: the files written.
    Raises: DataError at the first thing that is wrong with the data, or that the format cannot hold.
    """
    folder = Path(folder)
    source = detect(config)
    log(f"{source.path} is {source.format}: {source.reason}")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(f"{folder}: must be a new or empty folder to write into; choose another")
    if format == "haste":
        from haste.data.store import write_store

        return [write_store(folder, source, log=log)]
    return write(format, folder, source, log=log)
