"""What each format's files are called."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from haste.config import Data
from haste.data.formats._arrays import DenseArray, SparseArray
from haste.data.formats._bow import BowSource, is_bow
from haste.data.formats._csv import CsvSource
from haste.data.formats._fields import Fields
from haste.data.formats._files import SPELLINGS, Files
from haste.data.formats._jsonl import JsonlSource
from haste.data.formats._lf import LfSource
from haste.data.formats._numbered import NAME_LISTS
from haste.data.formats._numbers import SparseText
from haste.data.formats._paired import Dense, Documents, Names, Numbers, Paired, Sparse, Targets, Texts
from haste.data.formats._parquet import ParquetSource
from haste.data.source import Source

Made = Callable[[], Source]


class Near(Exception):
    """Files that would be a data set but for what the message says, with the remedy."""


@dataclass(frozen=True)
class Format:
    """A format that may be found.

    given: whether it holds given features
    needs: what must be there, in words
    match: gives what makes the source, None where nothing of the format is there; raises Near
    """

    name: str
    given: bool
    needs: str
    match: Callable[[Files, Data], Made | None]


def _table(make: Callable[[Files, dict[str, Path], Fields], Source], what: str, *endings: str) -> Callable:
    """The match of a format with one file for each split."""

    def match(files: Files, config: Data) -> Made | None:
        splits = files.splits(*("{}" + ending for ending in endings))
        if not splits:
            return None
        _check_train(files, splits)
        return lambda: make(files, splits, Fields.of(config, what, True))

    return match


def _match_lf(files: Files, config: Data) -> Made | None:
    splits, labels = files.splits("{}.json"), files.find("lbl.json")
    if not splits:
        return None
    _check_train(files, splits)
    if labels is None:
        raise Near(f"{files.holds(splits.values())} without lbl.json, the labels; add it, or name JSON lines .jsonl")
    return lambda: LfSource(files, splits, labels, config)


def _match_bow(files: Files, config: Data) -> Made | None:
    whole = files.find("data.txt")
    if whole is not None and is_bow(whole):
        rows = {"train": files.find("trSplit.txt"), "test": files.find("tstSplit.txt")}
        chosen = {split: path for split, path in rows.items() if path}
        if not chosen:
            return lambda: BowSource(files, {"train": whole})
        if "train" not in chosen:
            raise Near(f"{files.holds([whole, *chosen.values()])} without trSplit.txt, the rows of train; add it")
        return lambda: BowSource(files, dict.fromkeys(chosen, whole), chosen)
    splits = files.splits("{}.txt")
    if not splits:
        return None
    _check_train(files, splits)
    if not is_bow(splits["train"]):
        raise Near(
            f"{splits['train'].name} is no bow: its first line must count documents, columns and labels, as "
            "'4880 1836 159'; raw texts are named trn_X.txt and their labels trn_X_Y.txt or trn_labels.txt"
        )
    return lambda: BowSource(files, splits)


def _match_split(files: Files, config: Data) -> Made | None:
    pairs = _pairs(files, ("{}_X_Xf.txt",), "{}_X_Y.txt")
    return _paired("split", files, pairs, lambda x: Sparse(SparseText(x)), lambda y: Numbers(SparseText(y)))


def _match_npz(files: Files, config: Data) -> Made | None:
    pairs = _pairs(files, ("X.{}.npz", "X.{}.npy"), "Y.{}.npz")
    return _paired("npz", files, pairs, array_documents, lambda y: Numbers(SparseArray(y)))


def _match_npz_texts(files: Files, config: Data) -> Made | None:
    pairs = _pairs(files, ("X.{}.txt",), "Y.{}.npz")
    return _paired("npz", files, pairs, Texts, lambda y: Numbers(SparseArray(y)))


def _match_raw(files: Files, config: Data) -> Made | None:
    texts = ("{}_X.txt", "{}_raw_texts.txt", "{}_texts.txt")
    if not files.splits(*texts):
        arrays = [*files.splits("{}_texts.npy").values(), *files.splits("{}_labels.npy").values()]
        if arrays:
            raise Near(
                f"{files.holds(arrays)}, arrays of Python objects, which only unpickling could read, and that "
                "may run any program; give the text files they were made from, train_raw_texts.txt and train_labels.txt"
            )
        return None
    if files.splits("{}_X_Y.txt"):
        pairs = _pairs(files, texts, "{}_X_Y.txt")
        return _paired("raw", files, pairs, Texts, lambda y: Numbers(SparseText(y)))
    pairs = _pairs(files, texts, "{}_labels.txt")
    return _paired("raw", files, pairs, Texts, lambda y: Names(y, config.separator))


def array_documents(path: Path) -> Documents:
    """Documents with features in one of NumPy's files, sparse in .npz, dense in .npy."""
    return Dense(DenseArray(path)) if path.name.endswith(".npy") else Sparse(SparseArray(path))


def _check_train(files: Files, splits: dict[str, Path]) -> None:
    if "train" not in splits:
        raise Near(
            f"{files.holds(splits.values())}, but no documents to train on; add a file named train or trn like it"
        )


def _pairs(files: Files, documents: tuple[str, ...], labels: str) -> dict[str, tuple[Path, Path]] | None:
    """Split -> its files of documents and of labels."""
    xs, ys = files.splits(*documents), files.splits(labels)
    if not xs:
        return None
    _check_train(files, xs)
    for split, one, others, pattern in (
        *((split, path, ys, labels) for split, path in xs.items()),
        *((split, path, xs, documents[0]) for split, path in ys.items()),
    ):
        if split not in others:
            word = next((word for word in SPELLINGS[split] if word in one.name), split)
            what = "labels" if others is ys else "documents"
            raise Near(f"{files.holds([one])} without {pattern.format(word)}, the {what} of the same rows; add it")
    return {split: (xs[split], ys[split]) for split in xs}


def _paired(
    name: str,
    files: Files,
    pairs: dict[str, tuple[Path, Path]] | None,
    read_documents: Callable[[Path], Documents],
    read_labels: Callable[[Path], Targets],
) -> Made | None:
    if pairs is None:
        return None

    def made() -> Source:
        read = {split: (read_documents(x), read_labels(y)) for split, (x, y) in pairs.items()}
        return Paired(name, files, read, files.find(*NAME_LISTS))

    return made


FORMATS = (
    Format("jsonl", False, "train.jsonl", _table(JsonlSource, "key", ".jsonl")),
    Format("csv", False, "train.csv or train.tsv", _table(CsvSource, "column", ".csv", ".tsv")),
    Format("parquet", False, "train.parquet", _table(ParquetSource, "column", ".parquet")),
    Format("lf", False, "trn.json and lbl.json", _match_lf),
    Format("raw", False, "trn_X.txt and trn_X_Y.txt or trn_labels.txt", _match_raw),
    Format("npz", False, "X.trn.txt and Y.trn.npz", _match_npz_texts),
    Format("npz", True, "X.trn.npz or X.trn.npy, and Y.trn.npz", _match_npz),
    Format("split", True, "trn_X_Xf.txt and trn_X_Y.txt", _match_split),
    Format("bow", True, "train.txt that begins with three counts, or data.txt and trSplit.txt", _match_bow),
)
