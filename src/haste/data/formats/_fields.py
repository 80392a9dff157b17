"""Text, labels and id of a document in the fields of a row: a JSON object's keys, a table's columns."""

import ast
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from haste.config import Data
from haste.data.formats._lines import Malformed, check_encodable, excerpt, kind_of, some

SEPARATORS = ("|", ";", ",", "\t")
LIST = "list"  # the separator of strings that spell a whole list: ["a", "b"]
SAMPLE = 1000  # documents with labels from which the separator is found


@dataclass(frozen=True)
class Fields:
    """Which fields of a row are read.

    text: keys of the texts, joined by a space
    labels, id: keys of both
    separator: between the labels in a string; "" = a string is one label, None = it must be a list
    require_labels, require_id: whether the labels and the id must be there
    what: "key" or "column", for messages
    """

    text: tuple[str, ...] = ("text",)
    labels: str = "labels"
    id: str = "id"
    separator: str | None = None
    require_labels: bool = True
    require_id: bool = False
    what: str = "key"

    @classmethod
    def of(cls, config: Data, what: str, require_labels: bool) -> "Fields":
        """The fields that the settings name."""
        text = tuple((config.text or "text").split("+"))
        return cls(
            text,
            config.labels or "labels",
            config.id or "id",
            config.separator,
            require_labels,
            config.id is not None,
            what,
        )

    def missing(self, key: str, setting: str, found: Iterable[str]) -> Malformed:
        """What to say where a row lacks a field."""
        more = ", [] for a document without any" if (self.what, setting) == ("key", "labels") else ""
        the = {"labels": "the labels", "text": "the text", "id": "the documents' ids"}[setting]
        shown = some(list(found))
        return Malformed(
            f"no {self.what} '{key}' (found: {shown}); set data.{setting} to the {self.what} of {the}{more}"
        )

    def with_separator(self, values: Iterable[str]) -> "Fields":
        """The same, with the separator that the first strings of labels tell, unless it is set."""
        return self if self.separator is not None else replace(self, separator=find_separator(values))

    def split(self, value: str) -> tuple[str, ...]:
        """The labels in a string, without the blanks around them. Raises Malformed."""
        if self.separator == LIST:
            return _spelled(self.labels, value)
        parts = value.split(self.separator) if self.separator else [value]
        return tuple(stripped for part in parts if (stripped := part.strip()))

    def said(self) -> str:
        """How labels are separated, in words."""
        if not self.separator:
            return f"each '{self.labels}' is one label"
        if self.separator == LIST:
            return f"'{self.labels}' are spelled as lists"
        return f"'{self.labels}' are separated by {self.separator!r}"


def find_separator(values: Iterable[str]) -> str:
    """The separator of labels in strings: the first of SEPARATORS that a tenth of those with any holds, or ""."""
    filled = [value.strip() for value in values if value.strip()]
    if filled and all(value[0] == "[" and value[-1] == "]" for value in filled):
        return LIST
    with_any = [value for value in filled if any(mark in value for mark in SEPARATORS)]
    for mark in SEPARATORS:
        holding = sum(mark in value for value in with_any)
        if holding and 10 * holding >= len(with_any):
            return mark
    return ""


def join_texts(values: Iterable[str | None]) -> str:
    """Several texts as one; those that are not there, or empty, leave no trace."""
    return " ".join(filter(None, values))


def label_list(key: str, value: list[Any]) -> tuple[str, ...]:
    """A list of names as labels; whole numbers are names too. Raises Malformed."""
    if any(type(label) is int for label in value):
        value = [str(label) if type(label) is int else label for label in value]
    for label in value:
        if not isinstance(label, str):
            raise Malformed(f"the value of '{key}' holds {kind_of(label)}, must be a list of strings")
        if not label:
            raise Malformed(f"the value of '{key}' holds an empty string; remove it or name the label")
        check_encodable(key, label)
    return tuple(value)


def _spelled(key: str, value: str) -> tuple[str, ...]:
    if not value.strip():
        return ()
    try:
        spelled = json.loads(value)
    except ValueError:
        try:
            spelled = ast.literal_eval(value.strip())  # as pandas writes it; only literals are read
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            spelled = None
    if not isinstance(spelled, list):
        raise Malformed(
            f"the value of '{key}' ({excerpt(value)}) is not a list as in the lines before; set data.separator"
        )
    return label_list(key, spelled)
