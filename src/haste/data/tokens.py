"""Tokens: text to ragged rows of token ids, with a transformer's own tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from haste.config import expand_path

if TYPE_CHECKING:
    import tokenizers

TokenPart: TypeAlias = tuple[np.ndarray, np.ndarray]  # some documents: their lengths (int64), the ids of all of them
FILE = "tokenizer.json"
_TOGETHER = 4096  # texts tokenised together, in parallel
_MOST_UINT16 = 1 << 16


class Tokens:
    """Token ids of documents, one behind the other; document i is ids[offsets[i] : offsets[i + 1]].

    offsets: (N + 1,) int64
    ids: (n,) uint16, or int32 where the vocabulary needs it; may be mapped into memory
    num_terms: tokens of the vocabulary
    pad: id that batches are filled up with
    """

    def __init__(self, offsets: np.ndarray, ids: np.ndarray, *, num_terms: int, pad: int) -> None:
        self.offsets, self.ids, self.num_terms, self.pad = offsets, ids, num_terms, pad

    @property
    def shape(self) -> tuple[int, int]:
        """(N, num_terms), as that of a matrix of terms."""
        return len(self), self.num_terms

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64 tokens of every document."""
        return np.diff(self.offsets)

    def __getitem__(self, rows: np.ndarray | slice) -> Tokens:
        """The documents of some rows, in their order; of rows that follow each other, without a copy of their ids."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                offsets = self.offsets[start : max(start, stop) + 1]
                ids = self.ids[offsets[0] : offsets[-1]]
                return Tokens(offsets - offsets[0], ids, num_terms=self.num_terms, pad=self.pad)
            rows = np.arange(start, stop, step)
        starts, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return Tokens(offsets, self.ids[places], num_terms=self.num_terms, pad=self.pad)

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids, mask), (N, T) int64 each, T being the longest document's length; pads stand behind, with mask 0."""
        lengths = self.lengths
        mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
        ids = np.full(mask.shape, self.pad, np.int64)
        ids[mask] = self.ids
        return ids, mask.astype(np.int64)


class Tokenizer:
    """Texts as token ids, special tokens among them, cut at ``max_tokens``.

    backend: of the package tokenizers; what stands around a text and where it is cut is decided by it
    pad: id that batches are filled up with
    max_tokens: longest row
    num_terms: one more than the largest id of the vocabulary

    Raises:
        ValueError: a padding token that is not of the vocabulary, or rows without room for a token.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, pad: int, max_tokens: int) -> None:
        # Once: some versions copy the vocabulary each time they are asked about it.
        self.num_terms = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        if not 0 <= pad < self.num_terms:
            raise ValueError(f"the padding token ({pad}) must be in [0, {self.num_terms}), the vocabulary")
        special = backend.num_special_tokens_to_add(False)
        if max_tokens <= special:
            raise ValueError(f"max_tokens ({max_tokens}) must be above {special}, the special tokens of a text")
        self._dtype: type[np.generic] = np.uint16 if self.num_terms <= _MOST_UINT16 else np.int32
        direction = (backend.truncation or {}).get("direction", "right")
        backend.no_padding()
        backend.enable_truncation(max_tokens, direction=direction)
        self._backend, self.pad, self.max_tokens = backend, pad, max_tokens

    @classmethod
    def pretrained(cls, name: str, max_tokens: int) -> Tokenizer:
        """The fast tokenizer of a folder, or of a model of the Hugging Face hub; ${NAME} is read from the environment.

        Raises:
            ValueError: there is none, it is a slow one, it has no token to pad with, or max_tokens leaves no room
                beside its special tokens.
        """
        try:
            from transformers import AutoTokenizer

            found = AutoTokenizer.from_pretrained(expand_path(name, "encoder.name"), trust_remote_code=False)
        except ImportError as error:
            message = f"the tokenizer of encoder.name ({name}) needs a package; pip install 'haste-xmc[text]'; {error}"
            raise ValueError(message) from None
        except (OSError, ValueError, KeyError) as error:
            line = " ".join(str(error).split())[:300]
            raise ValueError(f"encoder.name ({name}) must have a fast tokenizer (tokenizer.json); {line}") from None
        if not found.is_fast:
            kind = type(found).__name__
            raise ValueError(f"encoder.name ({name}) must have a fast tokenizer (tokenizer.json); {kind} is a slow one")
        if found.pad_token_id is None:
            raise ValueError(f"encoder.name ({name}) must have a padding token; set pad_token in its tokenizer")
        special = found.num_special_tokens_to_add()
        if max_tokens <= special:
            raise ValueError(f"data.max_tokens ({max_tokens}) must be above {special}, the special tokens of a text")
        return cls(found.backend_tokenizer, pad=found.pad_token_id, max_tokens=max_tokens)

    def digest(self) -> str:
        """SHA-256 of all that decides the rows, in hexadecimal digits."""
        return hashlib.sha256(self._description().encode()).hexdigest()

    def transform(self, texts: Iterable[str]) -> Tokens:
        """Token ids of the documents."""
        parts = list(self.parts(texts))
        lengths = np.concatenate([np.empty(0, np.int64), *(part[0] for part in parts)])
        ids = np.concatenate([np.empty(0, self._dtype), *(part[1] for part in parts)])
        return self.tokens(np.concatenate(([0], np.cumsum(lengths))), ids)

    def tokens(self, offsets: np.ndarray, ids: np.ndarray) -> Tokens:
        """Rows that `parts` gave, as documents."""
        return Tokens(offsets, ids, num_terms=self.num_terms, pad=self.pad)

    def parts(self, texts: Iterable[str]) -> Iterator[TokenPart]:
        """The rows of `transform`, some whole documents at a time; tokenised in parallel, on all cores.

        A text without any token, of a tokenizer without special ones, is one padding token.
        """
        remaining = iter(texts)
        while block := list(islice(remaining, _TOGETHER)):
            rows = [encoded.ids or [self.pad] for encoded in self._backend.encode_batch_fast(block)]
            lengths = np.fromiter(map(len, rows), np.int64, len(rows))
            yield lengths, np.concatenate([np.array(row, self._dtype) for row in rows])

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json into `folder`, in the format of the package tokenizers."""
        (Path(folder) / FILE).write_text(self._description(), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read what `save` wrote; runs no code of the folder.

        Raises:
            ValueError: the file is missing or damaged, or the package tokenizers is.
        """
        path = Path(folder) / FILE
        try:
            import tokenizers

            text = path.read_text(encoding="utf-8")
            pad, cut = json.loads(text)["padding"], json.loads(text)["truncation"]
            backend = tokenizers.Tokenizer.from_str(text)
            return cls(backend, pad=int(pad["pad_id"]), max_tokens=int(cut["max_length"]))
        except ImportError:
            raise ValueError(f"{path}: needs the package tokenizers; pip install 'haste-xmc[text]'") from None
        except Exception as error:  # noqa: BLE001, tokenizers raises nothing narrower
            raise ValueError(f"{path}: {error}; the file is damaged, get it again") from None

    def _description(self) -> str:
        """The tokenizer as JSON, with the length it cuts at and the token that pads."""
        values = json.loads(self._backend.to_str())
        padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_type_id": 0}
        token = self._backend.id_to_token(self.pad)
        values["padding"] = {**padding, "pad_id": self.pad, "pad_token": token}
        return json.dumps(values, ensure_ascii=False)
