"""Parquet files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from haste.data.formats._fields import Fields, join_texts, label_list
from haste.data.formats._lines import Malformed, at, kind_of
from haste.data.formats._table import Table
from haste.data.source import DataError, Problem, Record

_BATCH = 1024  # rows that are in memory as Python objects


class ParquetSource(Table):
    """train.parquet, dev.parquet, test.parquet, and perhaps labels.jsonl. A record's line is its row, from 1."""

    format = "parquet"

    def _sample(self, path: Path) -> Iterator[object]:
        try:
            columns = _Columns(path, self._fields)
            if columns.labels in columns.strings:
                for batch in columns.batches():
                    yield from batch[columns.labels]
        except DataError:
            return

    def _read(self, path: Path, problem: Problem) -> Iterator[Record]:
        fields = self._fields
        row = 0
        try:
            columns = _Columns(path, fields)
            for batch in columns.batches():
                none = [None] * len(next(iter(batch.values())))
                texts = list(zip(*(batch[name] for name in fields.text), strict=True))
                labels = batch.get(columns.labels, none)
                ids = batch.get(columns.id, none)
                for text, found, name in zip(texts, labels, ids, strict=True):
                    row += 1
                    try:
                        record = Record(
                            str(row if name is None else name),
                            _text(fields, text),
                            _labels(fields, found),
                            line=row,
                        )
                    except Malformed as error:
                        problem(at(path, row, error))
                        continue
                    yield record
        except _Unreadable as error:
            problem(at(path, row + 1, f"not readable as parquet ({error}); get it again"))
        except DataError as error:
            problem(error)


class _Unreadable(Exception):
    """What Arrow says of a file that it cannot read."""


class _Columns:
    """The columns of a file that are read."""

    def __init__(self, path: Path, fields: Fields) -> None:
        """Raises DataError if the file is not parquet or lacks a column, or a column has another type."""
        import pyarrow
        from pyarrow import parquet

        self._errors = (pyarrow.ArrowException, OSError, UnicodeDecodeError)
        try:
            self._file = parquet.ParquetFile(path)
            schema = self._file.schema_arrow
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except self._errors as error:
            raise DataError(f"{path}: not readable as parquet ({_first(error)}); get it again") from None
        types = dict(zip(schema.names, schema.types, strict=True))
        self.labels = self._checked(path, fields, types, fields.labels, "labels", fields.require_labels)
        self.id = self._checked(path, fields, types, fields.id, "id", fields.require_id)
        texts = [self._checked(path, fields, types, name, "text", True) for name in fields.text]
        self._read = [name for name in dict.fromkeys([*texts, self.labels, self.id]) if name]
        self.strings = {name for name in self._read if _is_text(types[name])}
        self._numbers = {name for name in self._read if name == self.labels and _is_numbers(types[name])}

    @staticmethod
    def _checked(path: Path, fields: Fields, types: dict[str, Any], name: str, setting: str, required: bool) -> str:
        """The column's name, "" if it is not there."""
        import pyarrow.types

        if name not in types:
            if required:
                raise DataError(f"{path}: {fields.missing(name, setting, types)}")
            return ""
        kind = types[name]
        whole = pyarrow.types.is_integer(kind)
        if setting == "text":
            fits, must = _is_text(kind), "strings"
        elif setting == "id":
            fits, must = _is_text(kind) or whole, "strings or whole numbers"
        else:
            fits, must = _is_text(kind) or whole or _is_list(kind), "lists of strings, or strings"
        if not fits:
            raise DataError(f"{path}: column '{name}' holds {kind}, must hold {must}")
        return name

    def batches(self) -> Iterator[dict[str, list[Any]]]:
        """Values of the columns, some rows at a time. Raises _Unreadable."""
        try:
            for batch in self._file.iter_batches(_BATCH, columns=self._read, use_threads=False):
                values = {name: batch.column(name).to_pylist() for name in self._read}
                for name in self._numbers:
                    values[name] = [_as_names(value) for value in values[name]]
                yield values
        except self._errors as error:
            raise _Unreadable(_first(error)) from None


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_list(kind: Any) -> bool:
    import pyarrow.types as types

    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return lists and (_is_text(kind.value_type) or types.is_integer(kind.value_type))


def _is_numbers(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_integer(kind) or (not _is_text(kind) and types.is_integer(kind.value_type))


def _as_names(value: Any) -> Any:
    """Whole numbers as the names of labels."""
    if isinstance(value, list):
        return [None if number is None else str(number) for number in value]
    return value if value is None else [str(value)]


def _first(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(".")


def _text(fields: Fields, values: tuple[Any, ...]) -> str:
    if len(values) > 1:
        return join_texts(values)
    if values[0] is None:
        raise Malformed(f"the value of '{fields.text[0]}' ({kind_of(None)}) must be a string")
    return values[0]


def _labels(fields: Fields, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return fields.split(value) if isinstance(value, str) else label_list(fields.labels, value)
