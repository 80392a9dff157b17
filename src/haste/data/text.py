"""Tf-idf: text to sparse rows of term weights, with a vocabulary that is saved without pickle."""

import hashlib
import itertools
import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from haste.data import _words

Part = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Some rows of a CSR matrix: entries of every row (int64), columns (int32), values (float32)."""

_FORMAT_VERSION = 1
_SETTINGS = ("ngrams", "min_df", "max_features")
_ARRAYS: dict[str, np.dtype[Any]] = {"idf": np.dtype("<f4"), "terms": np.dtype("|u1"), "offsets": np.dtype("<i8")}


class TfIdf:
    """Documents as l2-normalised rows of (1 + log count) * idf, idf = log((1 + N) / (1 + df)) + 1.

    A word is a run of two or more letters, digits or underscores, in lower case; a term is a word or, with
    ngrams=2, also two words next to each other. The values are those of scikit-learn's TfidfVectorizer with
    sublinear_tf=True, computed on arrays of word ids, so that pairs of words need no string each.

    terms: the vocabulary, sorted
    idf: (V,) float32, in the order of `terms`
    ngrams, min_df, max_features: the settings they were chosen with
    Raises: TypeError, ValueError if they do not fit together.
    """

    def __init__(
        self,
        terms: list[str],
        idf: np.ndarray,
        *,
        ngrams: int = 1,
        min_df: int = 2,
        max_features: int | None = None,
    ) -> None:
        _check_settings(ngrams, min_df, max_features)
        if idf.dtype != np.float32:
            raise TypeError(f"idf ({idf.dtype}) must be float32")
        if idf.shape != (len(terms),):
            raise ValueError(f"idf {idf.shape} must hold one value for each of the {len(terms)} terms")
        if not (np.isfinite(idf) & (idf > 0)).all():
            raise ValueError("idf must be finite and above zero")
        if any(first >= second for first, second in itertools.pairwise(terms)):
            raise ValueError("terms must be sorted and unique")
        self.terms, self.idf = terms, idf
        self.ngrams, self.min_df, self.max_features = ngrams, min_df, max_features

        paired = {column: term.split(" ") for column, term in enumerate(terms) if " " in term}
        if any(len(words) > ngrams for words in paired.values()):
            raise ValueError(f"terms must have at most ngrams ({ngrams}) words")
        single = [column for column in range(len(terms)) if column not in paired] if paired else range(len(terms))
        words = sorted({*(terms[column] for column in single), *itertools.chain.from_iterable(paired.values())})
        self._ids = _words.Known(zip(words, range(len(words)), strict=True))
        columns = np.full(len(words), -1, np.int64)
        columns[[self._ids[terms[column]] for column in single]] = single
        pairs = [(self._ids[a] * len(words) + self._ids[b], column) for column, (a, b) in paired.items()]
        keys = np.array(sorted(pairs), np.int64).reshape(-1, 2)
        # Id or position -1 (unknown) reads the last entry.
        self._word_columns = np.append(columns, -1)
        self._pair_keys, self._pair_columns = keys[:, 0].copy(), np.append(keys[:, 1], -1)

    @classmethod
    def fit(cls, texts: Iterable[str], *, ngrams: int = 1, min_df: int = 2, max_features: int | None = None) -> "TfIdf":
        """The vocabulary of `texts`.

        ngrams: 1 = words, 2 = words and pairs of words
        min_df: drop terms found in fewer documents
        max_features: keep the terms with the most occurrences (ties: first in sorted order); None = all
        Raises: ValueError if no term is left.
        """
        return cls.fit_parts(texts, ngrams=ngrams, min_df=min_df, max_features=max_features)[0]

    @classmethod
    def fit_transform(
        cls, texts: Iterable[str], *, ngrams: int = 1, min_df: int = 2, max_features: int | None = None
    ) -> tuple["TfIdf", csr_matrix]:
        """fit(texts) and its transform(texts), reading every text once."""
        vectorizer, parts = cls.fit_parts(texts, ngrams=ngrams, min_df=min_df, max_features=max_features)
        return vectorizer, vectorizer._joined(parts)

    @classmethod
    def fit_parts(
        cls,
        texts: Iterable[str],
        *,
        ngrams: int = 1,
        min_df: int = 2,
        max_features: int | None = None,
        folder: Path | None = None,
    ) -> tuple["TfIdf", Iterator[Part]]:
        """fit(texts) and its parts(texts), reading every text once, in memory for the vocabulary and some parts.

        folder: of the temporary file that holds the texts as ids of their words; None = the system's
        """
        _check_settings(ngrams, min_df, max_features)
        spill = _words.Spill(folder)
        ids = _words.Growing()
        spill.extend(_words.tokenise(texts, ids))
        words = list(ids)
        del ids
        vectorizer = cls._fit(spill, words, ngrams, min_df, max_features)

        def parts() -> Iterator[Part]:
            known = np.array([vectorizer._ids[word] for word in words], np.int32)
            with spill:
                yield from vectorizer._parts((known[chunk], offsets) for chunk, offsets in spill)

        return vectorizer, parts()

    @property
    def num_terms(self) -> int:
        """Size of the vocabulary, V."""
        return len(self.terms)

    def digest(self) -> str:
        """SHA-256 of all that decides the rows, in hexadecimal digits."""
        digest = hashlib.sha256(f"{_FORMAT_VERSION} {self.ngrams}".encode())
        digest.update("\0".join(self.terms).encode())
        digest.update(self.idf.tobytes())
        return digest.hexdigest()

    def transform(self, texts: Iterable[str]) -> csr_matrix:
        """Rows of the documents, (N, V) float32, columns sorted; without a known term a row is empty."""
        return self._joined(self.parts(texts))

    def parts(self, texts: Iterable[str]) -> Iterator[Part]:
        """The rows of `transform`, some whole documents at a time: lengths of rows, columns, values."""
        return self._parts(_words.tokenise(texts, self._ids))

    def save(self, folder: str | Path) -> None:
        """Write vectorizer.json and vectorizer.npz into `folder`; the same vocabulary makes the same bytes."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {name: getattr(self, name) for name in _SETTINGS}
        header = {"format_version": _FORMAT_VERSION, **settings, "num_terms": self.num_terms}
        (folder / "vectorizer.json").write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
        encoded = [term.encode() for term in self.terms]
        arrays = {
            "idf": self.idf,
            "terms": np.frombuffer(b"".join(encoded), np.uint8),
            "offsets": np.cumsum([0, *map(len, encoded)]),
        }
        arrays = {name: array.astype(_ARRAYS[name]) for name, array in arrays.items()}
        np.savez(folder / "vectorizer.npz", allow_pickle=False, **arrays)

    @classmethod
    def load(cls, folder: str | Path) -> "TfIdf":
        """Read what `save` wrote; nothing is allocated before its size was compared with the file's.

        Raises: ValueError, naming the file, if it is not as `save` writes it.
        """
        header = Path(folder) / "vectorizer.json"
        settings = _read_header(header)
        num_terms = settings.pop("num_terms")
        path = Path(folder) / "vectorizer.npz"
        try:
            arrays = _read_arrays(path)
            terms = _cut(arrays["terms"].tobytes(), arrays["offsets"])
            if len(terms) != num_terms:
                raise ValueError(f"holds {len(terms)} terms, {header.name} says {num_terms}")
            return cls(terms, arrays["idf"], **settings)
        except (ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{path}: {error}; the file is damaged, get it again") from None

    @classmethod
    def _fit(
        cls, chunks: _words.Spill, words: list[str], ngrams: int, min_df: int, max_features: int | None
    ) -> "TfIdf":
        """The vectorizer of texts as ids of the words found in them."""
        num_documents = chunks.num_documents
        documents, occurrences = _words.frequencies(chunks, lambda chunk: chunk[0], len(words))
        keys = np.empty(0, np.int64)
        if ngrams == 2:
            keys = _words.frequent_pairs(chunks, documents >= min_df, min_df)
            pairs = _words.frequencies(
                chunks, lambda chunk: _words.positions(keys, _words.pair_keys(chunk, len(words))), len(keys)
            )
            documents = np.concatenate((documents, pairs[0]))
            occurrences = np.concatenate((occurrences, pairs[1]))

        def named(candidates: np.ndarray) -> list[tuple[str, int]]:
            single = candidates[candidates < len(words)].tolist()
            paired = candidates[len(single) :]
            first, second = (part.tolist() for part in np.divmod(keys[paired - len(words)], len(words)))
            names = [words[i] for i in single]
            names += [f"{words[i]} {words[j]}" for i, j in zip(first, second, strict=True)]
            return sorted(zip(names, candidates.tolist(), strict=True))

        kept = np.flatnonzero(documents >= min_df)
        if max_features is not None and len(kept) > max_features:
            count = occurrences[kept]
            least = np.partition(count, -max_features)[-max_features]
            above, ties = kept[count > least], named(kept[count == least])
            kept = np.sort(np.append(above, [i for _, i in ties[: max_features - len(above)]]))
        if not len(kept):
            raise ValueError(
                f"min_df ({min_df}) must leave at least one term, but no term is in that many of the "
                f"{num_documents} documents; lower data.min_df"
            )
        terms = named(kept)
        df = documents[[i for _, i in terms]]
        idf = (np.log((1 + num_documents) / (1 + df)) + 1).astype(np.float32)
        names = [name for name, _ in terms]
        return cls(names, idf, ngrams=ngrams, min_df=min_df, max_features=max_features)

    def _columns(self, chunk: _words.Chunk) -> list[np.ndarray]:
        columns = [self._word_columns[chunk[0]]]
        if self.ngrams == 2:
            keys = _words.pair_keys(chunk, len(self._ids))
            columns.append(self._pair_columns[_words.positions(self._pair_keys, keys)])
        return columns

    def _parts(self, chunks: Iterable[_words.Chunk]) -> Iterator[Part]:
        for chunk in chunks:
            num_documents = len(chunk[1]) - 1
            document, column, count = _words.count_columns(chunk[1], self._columns(chunk))
            # Logarithms from a table and squares summed in order: no value depends on where a chunk begins.
            weight = (1 + np.log(np.arange(1, count.max(initial=1) + 1))).astype(np.float32)
            value = weight[count - 1] * self.idf[column]
            norm = np.sqrt(np.bincount(document, np.square(value, dtype=np.float64), num_documents))
            lengths = np.bincount(document, minlength=num_documents)
            yield lengths, column.astype(np.int32), (value / norm[document]).astype(np.float32)

    def _joined(self, parts: Iterable[Part]) -> csr_matrix:
        lengths, columns, values = [np.zeros(1, np.int64)], [np.empty(0, np.int32)], [np.empty(0, np.float32)]
        for part in parts:
            lengths.append(part[0])
            columns.append(part[1])
            values.append(part[2])
        offsets = np.cumsum(np.concatenate(lengths))
        shape = (len(offsets) - 1, self.num_terms)
        rows = csr_matrix((np.concatenate(values), np.concatenate(columns), offsets), shape=shape)
        rows.has_canonical_format = True
        return rows


def _check_settings(ngrams: int, min_df: int, max_features: int | None) -> None:
    if ngrams not in (1, 2):
        raise ValueError(f"ngrams ({ngrams}) must be 1 (words) or 2 (words and pairs of words)")
    if min_df < 1:
        raise ValueError(f"min_df ({min_df}) must be at least 1")
    if max_features is not None and max_features < 1:
        raise ValueError(f"max_features ({max_features}) must be at least 1, or None for all terms")


def _read_header(path: Path) -> dict[str, Any]:
    """Settings and num_terms of a vectorizer.json."""
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(header, dict):
            raise ValueError("must hold one JSON object")
        version = header.pop("format_version", None)
        if version != _FORMAT_VERSION:
            raise ValueError(f"format_version ({version}) must be {_FORMAT_VERSION}")
        expected = {*_SETTINGS, "num_terms"}
        if header.keys() != expected:
            raise ValueError(f"has the keys {sorted(header)}, must have {sorted(expected)}")
        for key, value in header.items():
            if type(value) is not int and not (key == "max_features" and value is None):
                raise ValueError(f"{key} ({value!r}) must be a whole number")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}; the file is damaged or from another version") from None
    return header


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The vectors of an uncompressed .npz, each checked against its place in the file before it is read."""
    arrays = {}
    with zipfile.ZipFile(path) as packed:
        members = {info.filename: info for info in packed.infolist()}
        if members.keys() != {f"{name}.npy" for name in _ARRAYS}:
            raise ValueError(f"holds {sorted(members)}, must hold {sorted(f'{n}.npy' for n in _ARRAYS)}")
        if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in members.values()):
            raise ValueError("must be neither compressed nor encrypted")
        if sum(info.file_size for info in members.values()) > path.stat().st_size:
            raise ValueError("claims to hold more than its own size")
        for name, dtype in _ARRAYS.items():
            info = members[f"{name}.npy"]
            with packed.open(info) as stream:
                if np.lib.format.read_magic(stream) != (1, 0):
                    raise ValueError(f"{name} must be in version 1.0 of the npy format")
                shape, _, found = np.lib.format.read_array_header_1_0(stream)
                size = info.file_size - stream.tell()
                if found != dtype or len(shape) != 1 or shape[0] * dtype.itemsize != size:
                    raise ValueError(f"{name} ({found}, {shape}) must be one row of {dtype}, {size} bytes long")
                arrays[name] = np.frombuffer(stream.read(), dtype)
    return arrays


def _cut(encoded: bytes, offsets: np.ndarray) -> list[str]:
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(encoded) or (np.diff(offsets) < 1).any():
        raise ValueError(f"offsets must rise from 0 to the {len(encoded)} bytes of the terms")
    return [encoded[a:b].decode() for a, b in itertools.pairwise(offsets.tolist())]
