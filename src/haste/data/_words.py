"""Texts as arrays of word ids, and counts over them: what tf-idf needs without a string per occurrence."""

import re
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

CHUNK = 1 << 18  # words (or documents) handled together: a few arrays of 2 MiB
_MOST_PAIRS = 1 << 25  # pairs counted in one pass: 256 MiB
_BLOCK = 8  # texts searched together
_MARK, _MARK_ID = "\0", -2  # stands behind every document while words are searched
# The words of scikit-learn's r"\b\w\w+\b" in two thirds of its time: a greedy run always ends at a boundary.
_find_words = re.compile(r"\w\w+|\0").findall

Chunk = tuple[np.ndarray, np.ndarray]
"""Some whole documents: ids of their words in order (int32, -1 = unknown), offsets (int64, one more than documents)."""


class Spill:
    """Chunks kept in a temporary file, so that they can be gone through again and again; a context manager.

    folder: where the file is; None = the system's folder of temporary files
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._lengths: list[tuple[int, int]] = []
        self.num_documents = self.num_words = 0

    def __enter__(self) -> "Spill":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def extend(self, chunks: Iterable[Chunk]) -> None:
        """Add chunks behind those that are there."""
        for words, offsets in chunks:
            self._file.write(words.data)
            self._file.write(offsets.data)
            self._lengths.append((len(words), len(offsets)))
            self.num_documents += len(offsets) - 1
            self.num_words += len(words)

    def __iter__(self) -> Iterator[Chunk]:
        self._file.seek(0)
        for words, offsets in self._lengths:
            yield (
                np.frombuffer(self._file.read(4 * words), np.int32),
                np.frombuffer(self._file.read(8 * offsets), np.int64),
            )


class Known(dict[str, int]):
    """Ids of the words of a vocabulary, -1 for any other."""

    def __missing__(self, word: str) -> int:
        return _MARK_ID if word == _MARK else -1


class Growing(dict[str, int]):
    """Ids of all the words that were asked for, in the order of the first time."""

    def __missing__(self, word: str) -> int:
        if word == _MARK:
            return _MARK_ID
        self[word] = number = len(self)
        return number


def tokenise(texts: Iterable[str], ids: Known | Growing) -> Iterator[Chunk]:
    """The documents' words in lower case, as chunks of about CHUNK words.

    A word is a run of two or more letters, digits or underscores.
    Raises: TypeError if `texts` is one string or holds something else than strings.
    """
    if isinstance(texts, str):
        raise TypeError("texts (one string) must be several documents; put it in a list")
    words, documents = array("i"), 0
    remaining = iter(texts)
    while block := list(islice(remaining, _BLOCK)):
        # One search through several documents: going through them one at a time costs more than most titles do.
        words.extend(map(ids.__getitem__, _find_words(_joined(block, documents).lower())))
        documents += len(block)
        if len(words) >= CHUNK:
            yield _chunk(words)
            words = array("i")
    if words:
        yield _chunk(words)


def _chunk(words: "array[int]") -> Chunk:
    found = np.frombuffer(words, np.int32)
    marks = np.flatnonzero(found == _MARK_ID)
    return found[found != _MARK_ID], np.concatenate(([0], marks - np.arange(len(marks))))


def _joined(texts: list[str], before: int) -> str:
    """The texts with a mark behind each, and none in them."""
    try:
        joined = _MARK.join([*texts, ""])
    except TypeError:
        number, wrong = next((i, text) for i, text in enumerate(texts) if not isinstance(text, str))
        raise TypeError(f"texts[{before + number}] ({type(wrong).__name__}) must be a string") from None
    if joined.count(_MARK) > len(texts):
        return _joined([text.replace(_MARK, " ") for text in texts], before)
    return joined


def pair_keys(chunk: Chunk, num_words: int) -> np.ndarray:
    """For every word, first * num_words + second of the pair it begins; -1 at a document's end or an unknown word."""
    words, offsets = chunk
    keys = np.full(len(words), -1, np.int64)
    keys[:-1] = words[:-1].astype(np.int64) * num_words + words[1:]
    keys[:-1][(words[:-1] < 0) | (words[1:] < 0)] = -1
    ends = offsets[1:]
    keys[ends[ends > 0] - 1] = -1
    return keys


def positions(table: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Where each key is in the sorted table, -1 where it is not; int64."""
    if not len(table):
        return np.full(len(keys), -1, np.int64)
    # Searching in order keeps the part of the table that is being read in the cache.
    order = np.argsort(keys)
    ordered = keys[order]
    found = np.minimum(np.searchsorted(table, ordered), len(table) - 1)
    found[table[found] != ordered] = -1
    result = np.empty_like(found)
    result[order] = found
    return result


def count_columns(offsets: np.ndarray, columns: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often each column occurs in each document.

    offsets: of the documents; columns: arrays with an entry for every word of them, -1 = none
    Returns: document, column, count (int64 each), sorted by document, then by column
    """
    document = np.repeat(np.arange(len(offsets) - 1) << 40, np.diff(offsets))
    keys = np.concatenate([(document | column)[column >= 0] for column in columns])
    keys.sort(kind="stable")  # the documents are in order: several times faster than the default
    first = _first_of_equal(keys)
    return keys[first] >> 40, keys[first] & ((1 << 40) - 1), np.diff(first, append=len(keys))


def _first_of_equal(keys: np.ndarray) -> np.ndarray:
    """Places of the first of every run of equal keys."""
    return np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))[: len(keys)])


def frequencies(
    chunks: Spill, columns: Callable[[Chunk], np.ndarray], num_columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Number of documents, and of occurrences, of every column; (num_columns,) int64 each."""
    documents, occurrences = np.zeros(num_columns, np.int64), np.zeros(num_columns, np.int64)
    for chunk in chunks:
        _, column, count = count_columns(chunk[1], [columns(chunk)])
        np.add.at(documents, column, 1)
        np.add.at(occurrences, column, count)
    return documents, occurrences


def frequent_pairs(chunks: Spill, frequent: np.ndarray, least: int) -> np.ndarray:
    """Sorted pair keys of the pairs of frequent words that occur at least `least` times; int64.

    Pairs are counted in as many passes as keep the keys of one pass below a fixed number.

    frequent: (num_words,) bool, the words that may form pairs
    """
    passes = -(-chunks.num_words // _MOST_PAIRS) or 1
    found = [np.empty(0, np.int64)]
    for number in range(passes):
        part = [np.empty(0, np.int64)]
        for words, offsets in chunks:
            keys = pair_keys((np.where(frequent[words], words, np.int32(-1)), offsets), len(frequent))
            # the first words of the pairs share out the passes evenly enough, for their ids are in order of arrival
            mine = keys >= 0 if passes == 1 else (keys >= 0) & (words % passes == number)
            part.append(keys[mine])
        keys = np.concatenate(part)
        part.clear()
        keys.sort()
        first = _first_of_equal(keys)
        found.append(keys[first[np.diff(first, append=len(keys)) >= least]])
    return np.sort(np.concatenate(found))
