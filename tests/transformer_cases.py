"""A tiny transformer with random weights, and a tokenizer made on the spot: nothing is downloaded."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from haste.config import Config
from haste.nn import Transformer, build_encoder

LENGTHS = (7, 3, 5)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def save_tokenizer(folder: Path, texts: Iterable[str], *, size: int = 200) -> PreTrainedTokenizerFast:
    """Save a WordPiece tokenizer of the letters and most frequent words of some texts, as `transformers` does.

    `tokenizers` breaks ties between pieces in another order each time it trains: not a basis for tests.
    """
    split = pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in texts for word, _ in split.pre_tokenize_str(text))
    letters = sorted(set("".join(words)))
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    frequent = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    pieces += frequent[: max(0, size - len(pieces))]
    backend = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = split
    backend.add_special_tokens(SPECIAL)
    around = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **names)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_bert(folder: Path, texts: Iterable[str], *, width: int = 32, layers: int = 2) -> Path:
    """Save a BERT with random weights and its tokenizer into a folder."""
    tokenizer = save_tokenizer(folder, texts)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def make_config(folder: Path, **encoder: Any) -> Config:
    """Settings of a transformer in a folder; ``optim`` is of its weights."""
    optim = encoder.pop("optim", {"lr": 1e-4})
    values = {"kind": "transformer", "name": str(folder), "features": 0, **encoder}
    return Config.from_dict(
        {
            "data": {"path": "x", "max_tokens": 32},
            "encoder": values,
            "output": {"fan_in": 8, "group_size": 4},
            "optim": {"encoder": optim},
        }
    )


def make(folder: Path, **encoder: Any) -> Transformer:
    """The transformer of these settings, not in training."""
    built = build_encoder(make_config(folder, **encoder), 123)
    assert isinstance(built, Transformer)
    return built.eval()


def batch(extra: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens of three documents and their mask, padded by some columns more."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 123, (3, max(LENGTHS) + extra), generator=generator)
    mask = (torch.arange(ids.shape[1]) < torch.tensor(LENGTHS)[:, None]).long()
    return ids * mask, mask
