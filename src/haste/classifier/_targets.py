"""What y can be: lists of labels, an indicator matrix, or one class a document."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
from scipy.sparse import csr_matrix, issparse
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils.multiclass import check_classification_targets, type_of_target

Kind = Literal["lists", "indicator", "classes"]
_COLLECTIONS = (list, tuple, set, frozenset, np.ndarray)


@dataclass(frozen=True)
class Targets:
    """How labels were given.

    kind: lists of labels, an indicator matrix, or one class a document
    classes: (L,) every label; lists and classes: sorted; indicator: by column, their numbers or a DataFrame's names
    """

    kind: Kind
    classes: np.ndarray

    @property
    def names(self) -> list[str]:
        """Every label as the model's files name it."""
        return [str(label) for label in self.classes.tolist()]

    def truth(self, y: Any, names: Sequence[str]) -> csr_matrix:
        """True labels of documents, (N, at least len(names)) ones, in columns of these names.

        Raises:
            ValueError: y is of another kind than in fit.
        """
        kind, values, _ = read(y)
        if kind != self.kind:
            raise ValueError(f"y must be {_DESCRIBED[self.kind]}, as in fit; found {_DESCRIBED[kind]}")
        if kind != "indicator":
            return _truth_of(_as_names(kind, values), names)
        if values.shape[1] != len(self.classes):
            raise ValueError(f"y ({values.shape[1]} columns) must have {len(self.classes)} columns, as in fit")
        column = {name: number for number, name in enumerate(self.names)}
        return _ones(values[:, [column[name] for name in names]])

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        return {"kind": self.kind, "dtype": self.classes.dtype.str, "classes": self.classes.tolist()}

    @classmethod
    def from_json(cls, value: Any) -> "Targets":
        """Raises ValueError for anything that `to_json` does not write."""
        try:
            kind, classes = value["kind"], value["classes"]
            dtype = np.dtype(value["dtype"])
            if kind not in get_args(Kind) or dtype.kind not in "OUbiuf" or not isinstance(classes, list):
                raise ValueError(f"kind {kind}, dtype {dtype}")
            if not all(isinstance(label, str | bool | int | float) for label in classes):
                raise ValueError("a label that is neither text nor a number")
            return cls(kind, np.array(classes, dtype=dtype))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"labels must be as save_pretrained writes them; {error}") from None


def learn(y: Any) -> tuple[Targets, csr_matrix]:
    """Find out what y is: how labels are given, and the truth (N, L) in the order of their classes.

    Raises:
        ValueError: y is nothing of the kind.
    """
    kind, values, columns = read(y)
    if kind == "indicator":
        classes = np.arange(values.shape[1]) if columns is None else columns
        return Targets(kind, classes), _ones(values)
    if kind == "classes":
        targets = Targets(kind, np.unique(values))
    else:
        found = set(chain.from_iterable(values))
        kinds = {str if isinstance(label, str) else int for label in found}
        if len(kinds) > 1 or not all(isinstance(label, str | int | np.integer) for label in found):
            raise ValueError("y must hold labels of one type, text or whole numbers; convert them first")
        targets = Targets(kind, np.array(sorted(found), dtype=object if str in kinds else np.int64))
    return targets, _truth_of(_as_names(kind, values), targets.names)


def read(y: Any) -> tuple[Kind, Any, np.ndarray | None]:
    """What y is, its values as lists, csr_matrix or (N,) array, and the column names of a DataFrame."""
    if y is None:
        raise ValueError("This Classifier estimator requires y to be passed, but the target y is None.")
    if not issparse(y) and _is_lists(y):
        return "lists", [list(dict.fromkeys(labels)) for labels in y], None
    columns = None
    if issparse(y):
        assert_all_finite(y, input_name="y")
    else:
        if hasattr(y, "columns") and len(set(map(str, y.columns))) == len(y.columns):
            columns = np.array(list(map(str, y.columns)), dtype=object)
        y = np.asarray(y)
        if y.ndim < 2 or y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
            assert_all_finite(y, input_name="y")
            check_classification_targets(y)
            return "classes", y, None
    found = type_of_target(y, input_name="y")
    if found != "multilabel-indicator":
        raise ValueError(
            f"Unknown label type: y ({found}) must hold lists of labels, a matrix of zeros and ones, or one class a "
            "document"
        )
    return "indicator", csr_matrix(y), columns


def _is_lists(y: Any) -> bool:
    """Whether y holds collections of labels; numbers that fill a matrix of zeros and ones are an indicator."""
    if hasattr(y, "columns") or getattr(y, "ndim", 1) != 1:
        return False
    rows = list(y) if isinstance(y, Iterable) else []
    if not rows or not all(isinstance(row, _COLLECTIONS) for row in rows):
        return False
    labels = list(chain.from_iterable(rows))
    ragged = not labels or len({len(row) for row in rows}) > 1
    if ragged or any(isinstance(label, str) for label in labels):
        return True
    if any(isinstance(row, set | frozenset) for row in rows):
        return True
    return any(isinstance(label, int | np.integer) and label not in (0, 1) for label in labels)


def _as_names(kind: Kind, values: Any) -> list[list[str]]:
    if kind == "classes":
        return [[str(label)] for label in values.tolist()]
    return [[str(label) for label in labels] for labels in values]


def _truth_of(labels: Iterable[list[str]], names: Sequence[str]) -> csr_matrix:
    """Ones (N, L) in the columns of these names; a label that is not among them gets a column behind them."""
    columns = {name: number for number, name in enumerate(names)}
    indices: list[int] = []
    offsets = [0]
    for document in labels:
        indices.extend(sorted({columns.setdefault(label, len(columns)) for label in document}))
        offsets.append(len(indices))
    ones = np.ones(len(indices), np.float32)
    return csr_matrix((ones, np.array(indices, np.int32), offsets), shape=(len(offsets) - 1, len(columns)))


def _ones(matrix: csr_matrix) -> csr_matrix:
    truth = csr_matrix(matrix, dtype=np.float32, copy=True)
    truth.sum_duplicates()
    truth.eliminate_zeros()
    truth.data[:] = 1
    return truth


_DESCRIBED = {
    "lists": "lists of labels",
    "indicator": "a matrix of zeros and ones",
    "classes": "one class a document",
}
