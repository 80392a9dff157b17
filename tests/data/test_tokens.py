"""Texts as token ids: as the model's own tokenizer makes them, ragged, kept on the disk."""

import json
from pathlib import Path

import numpy as np
import pytest

from haste.config import Data
from haste.data.dataset import load_dataset
from haste.data.tokens import Tokenizer, Tokens
from transformer_cases import save_tokenizer

TEXTS = ["word1 word2", "", "word7 unknown/x " * 20, "WORD3, word4!", "word5"]


def transform(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    tokens = tokenizer.transform(texts)
    return [tokens[np.array([row])].ids.tolist() for row in range(len(tokens))]


@pytest.mark.parametrize("max_tokens", [3, 8, 64])
def test_ids_are_those_of_the_models_own_tokenizer(tiny_bert: Path, max_tokens: int) -> None:
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(tiny_bert)
    expected = own(TEXTS, truncation=True, max_length=max_tokens)["input_ids"]
    tokenizer = Tokenizer.pretrained(str(tiny_bert), max_tokens)
    assert transform(tokenizer, TEXTS) == expected
    assert (tokenizer.num_terms, tokenizer.pad) == (len(own), own.pad_token_id)
    assert max(map(len, expected)) == min(max_tokens, len(own(TEXTS[2])["input_ids"]))


def test_a_saved_tokenizer_is_the_same(tiny_bert: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.pretrained(str(tiny_bert), 9)
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert transform(again, TEXTS) == transform(tokenizer, TEXTS)
    assert (again.digest(), again.pad, again.max_tokens) == (tokenizer.digest(), tokenizer.pad, 9)
    assert Tokenizer.pretrained(str(tiny_bert), 10).digest() != tokenizer.digest()


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"padding": {"pad_id": 0}, "truncation": {"max_length": 5}}'])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "tokenizer.json").write_text(damage)
    with pytest.raises(ValueError, match=r"tokenizer.json: .*; the file is damaged, get it again"):
        Tokenizer.load(tmp_path)


def test_batches_are_padded_behind() -> None:
    tokens = Tokens(np.array([0, 3, 4, 6]), np.array([5, 6, 7, 8, 9, 10], np.uint16), num_terms=20, pad=1)
    ids, mask = tokens[np.array([2, 0])].padded()
    assert ids.tolist() == [[9, 10, 1], [5, 6, 7]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert (ids.dtype, mask.dtype) == (np.int64, np.int64)
    assert tokens[1:3].ids.tolist() == [8, 9, 10]
    assert tokens[1:3].shape == (2, 20)
    assert tokens[np.array([], np.int64)].padded()[0].shape == (0, 0)


def test_a_data_set_is_tokenised_once(tiny_data: Path, tiny_bert: Path) -> None:
    lines: list[str] = []
    config = Data(path=str(tiny_data))
    tokenizer = Tokenizer.pretrained(str(tiny_bert), 8)
    loaded = [load_dataset(config, seed=0, tokenizer=tokenizer, log=lines.append) for _ in range(2)]
    assert sum(line.startswith("train: tokens of 240 documents") for line in lines) == 1
    assert loaded[0].digest == loaded[1].digest
    tokens = loaded[1].train.features
    assert isinstance(tokens, Tokens)
    assert not tokens.ids.flags.writeable
    assert tokens.ids.dtype == np.uint16
    texts = [json.loads(line)["text"] for line in (tiny_data / "train.jsonl").read_text().splitlines()]
    assert np.array_equal(tokens.ids, tokenizer.transform(texts).ids)
    (ids,) = loaded[1].train.batch(np.array([3, 0]))[0]  # both cut, so without pads
    assert ids.shape == (2, 8)
    longer = load_dataset(config, seed=0, tokenizer=Tokenizer.pretrained(str(tiny_bert), 9), log=lines.append)
    assert longer.digest != loaded[0].digest


def test_the_padding_token_must_be_of_the_vocabulary(tiny_bert: Path) -> None:
    backend = Tokenizer.pretrained(str(tiny_bert), 8)._backend
    backend.add_tokens(["a word of its own"])
    largest = max(backend.get_vocab(with_added_tokens=True).values())
    assert Tokenizer(backend, pad=largest, max_tokens=8).num_terms == largest + 1
    for pad in (-1, largest + 1):
        with pytest.raises(ValueError, match=rf"the padding token \({pad}\) must be in \[0, {largest + 1}\)"):
            Tokenizer(backend, pad=pad, max_tokens=8)


def test_what_has_no_fast_tokenizer_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"encoder.name \(.*\) must have a fast tokenizer"):
        Tokenizer.pretrained(str(tmp_path), 8)
    with pytest.raises(ValueError, match=r"data.max_tokens \(2\) must be above 2, the special tokens of a text"):
        Tokenizer.pretrained(str(tiny_bert), 2)
    own = save_tokenizer(tmp_path, ["a b"])
    own.pad_token = None
    own.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must have a padding token"):
        Tokenizer.pretrained(str(tmp_path), 8)
