"""Files among which a data set is looked for: those of a folder, those whose names begin alike, or a single one."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from haste.data.formats._lines import PACKED, joined, some
from haste.data.source import SPLITS, DataError

SPELLINGS = {
    "train": ("train", "trn"),
    "dev": ("dev", "valid", "validation", "val"),
    "test": ("test", "tst"),
}
_BETWEEN = "_-."


@dataclass(frozen=True)
class Files:
    """Files by name.

    path: as given: a folder, a file, or what the names of files begin with
    names: name -> file; without what `path` says of it already; of a single file `train` and its endings
    """

    path: Path
    names: dict[str, Path]

    def find(self, *names: str) -> Path | None:
        """The file with one of the names, packed or not. Raises DataError if there are two."""
        found = [self.names[name + end] for name in names for end in PACKED if name + end in self.names]
        if len(found) > 1:
            raise DataError(f"{self.path}: holds both {found[0].name} and {found[1].name}; keep one of them")
        return found[0] if found else None

    def splits(self, *patterns: str) -> dict[str, Path]:
        """Split -> its file, whose name is one of the patterns ("{}.csv") with the split's name in any spelling."""
        found = {
            split: self.find(*(pattern.format(word) for pattern in patterns for word in SPELLINGS[split]))
            for split in SPLITS
        }
        return {split: path for split, path in found.items() if path}

    def holds(self, paths: Iterable[Path]) -> str:
        """Where the files that decided are, in words."""
        names = joined([path.name for path in paths])
        return f"the folder holds {names}" if self.path.is_dir() else f"found {names}"

    def found(self) -> str:
        """The first names, in words."""
        return some(sorted(path.name for path in self.names.values()), "nothing")


def look(path: Path, dev: Path | None = None, test: Path | None = None) -> Files:
    """The files that `path` stands for.

    dev, test: files of other splits, where path is the file of train
    Raises: DataError if there is none.
    """
    extra = {"dev": dev, "test": test}
    if path.is_file():
        names = {}
        for split, file in {"train": path, **extra}.items():
            if file is None:
                continue
            if not file.is_file():
                raise DataError(f"{file}: no such file; check data.{split}")
            names[split + endings(file)] = file
        return Files(path, names)
    for split, file in extra.items():
        if file is not None:
            raise DataError(
                f"{path}: must be the file of train where data.{split} ({file}) is set; "
                f"set data.path to a file, or put the other file into the folder"
            )
    if path.is_dir():
        return Files(path, {entry.name: entry for entry in sorted(path.iterdir()) if entry.is_file()})
    names = beginning(path.parent, path.name) if path.parent.is_dir() and path.name else {}
    if not names:
        raise DataError(f"{path}: no such file or folder; check data.path")
    return Files(path, names)


def beginning(folder: Path, start: str) -> dict[str, Path]:
    """Files of a folder whose names begin so: the rest of the name -> file."""
    return {
        entry.name[len(start) :].lstrip(_BETWEEN): entry
        for entry in sorted(folder.iterdir())
        if entry.name.startswith(start) and entry.name[len(start) : len(start) + 1] in _BETWEEN and entry.is_file()
    }


def beginnings(files: Files) -> list[str]:
    """What stands before the name of the train split in the names of a folder's files, each once."""
    starts = set()
    for name in files.names:
        for word in (*SPELLINGS["train"], "data"):
            place = name.find(word)
            if place > 1 and name[place - 1] in _BETWEEN:
                starts.add(name[:place].rstrip(_BETWEEN))
    return sorted(starts)


def endings(path: Path) -> str:
    """ ".csv.gz" of "words.v2.csv.gz"."""
    packed = next((end for end in PACKED[1:] if path.name.endswith(end)), "")
    return Path(path.name.removesuffix(packed)).suffix + packed
