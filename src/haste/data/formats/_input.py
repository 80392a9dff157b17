"""One file of new documents, for prediction."""

import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

from haste.config import Data
from haste.data.formats._bow import BowSource, is_bow
from haste.data.formats._csv import CsvSource
from haste.data.formats._fields import Fields
from haste.data.formats._files import Files, endings
from haste.data.formats._jsonl import JsonlSource
from haste.data.formats._lf import lf_fields
from haste.data.formats._lines import lines
from haste.data.formats._match import array_documents
from haste.data.formats._numbers import SparseText
from haste.data.formats._paired import Documents, Paired, Sparse, Texts
from haste.data.formats._parquet import ParquetSource
from haste.data.source import DataError, Source

_TABLES = {".jsonl": (JsonlSource, "key"), ".csv": (CsvSource, "column"), ".tsv": (CsvSource, "column")}
_SPLIT = "test"


def detect_input(path: str | Path, config: Data) -> Source:
    """Documents in one file, with or without labels, as the only split, test.

    path: .jsonl, .csv, .tsv, .parquet, .json (lf), .npz, .npy, or .txt (bow, X_Xf, or one text a line)
    config: names the fields that are read; its path and format are those of the training data, and not read
    Raises: DataError if there is no such file, or its name ends in anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; give one file of documents")
    ending = endings(path).removesuffix(".gz").removesuffix(".zst")
    files = Files(path, {_SPLIT + endings(path): path})
    splits = {_SPLIT: path}
    if ending in _TABLES:
        make, what = _TABLES[ending]
        return make(files, splits, Fields.of(config, what, False))
    if ending == ".parquet":
        return ParquetSource(files, splits, Fields.of(config, "column", False))
    if ending == ".json":
        return JsonlSource(files, splits, replace(lf_fields(config, "labels"), require_labels=False))
    if ending in (".npz", ".npy"):
        return _alone("npz", files, array_documents(path))
    if ending == ".txt":
        if is_bow(path):
            return BowSource(files, splits)
        return (
            _alone("split", files, Sparse(SparseText(path))) if _is_sparse(path) else _alone("raw", files, Texts(path))
        )
    raise DataError(
        f"{path}: must end in .jsonl, .csv, .tsv, .parquet, .json, .npz, .npy or .txt, "
        "or for text also in .gz or .zst behind it; rename or convert it"
    )


def _alone(name: str, files: Files, documents: Documents) -> Source:
    return Paired(name, files, {_SPLIT: (documents, None)}, None)


def _is_sparse(path: Path) -> bool:
    """Whether a file begins with two counts and rows of column:value."""
    first, *rows = (raw for _, raw in islice(lines(path), 20))
    pairs = rb"\s*(\d+:\S+\s*)*"
    return bool(re.fullmatch(rb"\s*\d+\s+\d+\s*", first)) and all(re.fullmatch(pairs, row) for row in rows)
