"""What the three training examples share: texts and label ids of a file, a tokenizer, and an encoder of texts.

Without a model of transformers (a folder, or a name on the hub) the encoder is a tiny BERT with random weights, and
its tokenizer is trained here, on the texts: nothing is downloaded.
"""

import argparse
from typing import Any

import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from haste.config import Data
from haste.data.formats import detect
from haste.nn import HeadTail

MAX_TOKENS = 64
SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


def parser(description: str) -> argparse.ArgumentParser:
    """Return the options that all three examples have."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("path", help="csv with columns text and labels, or any other that `haste data check` reads")
    found.add_argument("--encoder", help="folder or hub name of a transformers model (default: a tiny random BERT)")
    found.add_argument("--epochs", type=int, default=10)
    found.add_argument("--batch", type=int, default=32, help="documents of a micro-batch")
    found.add_argument("--accumulate", type=int, default=1, help="micro-batches of an optimizer step of the encoder")
    found.add_argument("--lr", type=float, default=1e-3, help="of the encoder")
    found.add_argument("--step", action="store_true", help="train the output layer in one fused pass")
    found.add_argument("--compile", nargs="?", const="inductor", metavar="BACKEND", help="torch.compile the encoder")
    return found


class Texts(torch.utils.data.Dataset):
    """Tokenised texts with the ids of their labels, such as {"input_ids": [2, 17, 3], ..., "labels": [4, 0]}."""

    def __init__(self, tokenizer: Any, documents: list[tuple[str, list[int]]]) -> None:
        self.tokens = tokenizer([text for text, _ in documents], truncation=True, max_length=MAX_TOKENS)
        self.labels = [labels for _, labels in documents]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {key: values[index] for key, values in self.tokens.items()} | {"labels": self.labels[index]}


class TextModel(nn.Module):
    """An encoder and an output layer; calling it gives features, mean-pooled (B, H)."""

    def __init__(self, encoder: nn.Module, num_labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.config.hidden_size
        # The most frequent twentieth of the labels is dense; groups of 16 of the others share 3/8 of the features.
        self.output = HeadTail(
            width, num_labels, num_head_labels=num_labels // 20, fan_in=3 * width // 8, group_size=16
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[:, :, None].to(hidden.dtype)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def prepare(options: argparse.Namespace) -> tuple[TextModel, Any, Texts, Texts]:
    """Return model, tokenizer, documents to train on, and every tenth, kept from that."""
    source = detect(Data(path=options.path))
    records = [record for record in source.documents("train") if record.labels]
    counts: dict[str, int] = {}
    for number, record in enumerate(records):
        for label in record.labels if number % 10 else ():
            counts[label] = counts.get(label, 0) + 1
    names = sorted(counts, key=lambda name: -counts[name])  # rows of the layer, most frequent first
    ids = {name: number for number, name in enumerate(names)}
    documents = [(record.text, sorted({ids[label] for label in record.labels if label in ids})) for record in records]

    torch.manual_seed(0)
    tokenizer, encoder = pretrained(options.encoder) if options.encoder else tiny_bert([text for text, _ in documents])
    if options.compile:
        encoder.compile(backend=options.compile, dynamic=True)  # in place: names in checkpoints stay
    model = TextModel(encoder, len(names))
    training = [document for number, document in enumerate(documents) if number % 10]
    model.output.initialize_bias([counts[name] for name in names], len(training))
    return model, tokenizer, Texts(tokenizer, training), Texts(tokenizer, documents[::10])


def pretrained(name: str) -> tuple[Any, nn.Module]:
    """Return tokenizer and encoder of a folder, or of the hub."""
    encoder = AutoModel.from_pretrained(name, add_pooling_layer=False)
    return AutoTokenizer.from_pretrained(name), encoder


def tiny_bert(texts: list[str]) -> tuple[Any, nn.Module]:
    """Return a tokenizer trained on the texts, and a BERT of 2 layers with random weights."""
    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(texts, vocab_size=4000, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, **SPECIAL)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer, BertModel(config, add_pooling_layer=False)
