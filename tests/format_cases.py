"""What the tests of the formats share: data sets made of a few strings, and everything that is said of them."""

from pathlib import Path
from typing import Any

from haste.config import Data
from haste.data.formats import DataError, Record, detect
from haste.data.source import LabelRecord, Source

Files = dict[str, str | bytes]


def make(folder: Path, files: Files) -> Path:
    """Write the files; a text is written as UTF-8. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def found(folder: Path, files: Files, start: str = "", **settings: Any) -> Source:
    """The data set that the files are. start: what their names begin with"""
    return detect(Data(path=str(make(folder, files) / start), **settings))


def everything(source: Source) -> tuple[dict[str, list[Record]], list[LabelRecord], dict[str, list[Any]], list[str]]:
    """Documents and filter pairs of every split, labels, and what was told to be wrong."""
    told: list[str] = []

    def problem(error: DataError) -> None:
        told.append(str(error))

    documents = {split: list(source.documents(split, problem)) for split in source.splits}
    labels = list(source.labels(problem))
    pairs = {split: list(source.filter_pairs(split, problem)) for split in source.splits}
    return documents, labels, pairs, told


def told(folder: Path, files: Files, **settings: Any) -> list[str]:
    """What is said to be wrong with the files, the folder's own path left out.

    The first of it is raised, too, where nobody collects: the test fails if that is something else.
    """
    try:
        source = found(folder, files, **settings)
    except DataError as error:
        return [str(error).replace(f"{folder}/", "").replace(str(folder), ".")]
    messages = everything(source)[-1]
    if messages:
        raised = ""
        try:
            for split in source.splits:
                list(source.documents(split))
            list(source.labels())
            for split in source.splits:
                list(source.filter_pairs(split))
        except DataError as error:
            raised = str(error)
        assert raised == messages[0]
    return [message.replace(f"{folder}/", "") for message in messages]
