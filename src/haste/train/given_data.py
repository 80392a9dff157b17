"""The data of a run: what to say where it is missing, and where it is not what the settings expect."""

import os
from collections.abc import Callable
from pathlib import Path

from haste.config import Config, Data, expand_path
from haste.data.dataset import Dataset, load_dataset
from haste.data.source import DataError
from haste.data.tokens import Tokenizer
from haste.nn import check_encoder


def load_given(config: Config, *, log: Callable[[str], None]) -> Dataset:
    """Load the data set that the settings describe.

    Raises:
        DataError: it is missing, with where it comes from (data.origin) and what it holds (data.expected), or damaged.
        ValueError: the encoder is one that cannot be trained; said before any document is read.
    """
    check_present(config)
    tokenizer, label_texts = tokenizer_of(config), config.label_texts.read
    dataset = load_dataset(config.data, seed=config.run.seed, log=log, label_texts=label_texts, tokenizer=tokenizer)
    for line in differences(config.data, dataset):
        log(line)
    return dataset


def tokenizer_of(config: Config) -> Tokenizer | None:
    """The tokenizer of a run's transformer; None where the encoder is no transformer.

    Raises:
        ValueError: the encoder is one that cannot be trained.
    """
    check_encoder(config)
    if config.encoder.kind != "transformer":
        return None
    return Tokenizer.pretrained(config.encoder.name or "", config.data.max_tokens)


def check_present(config: Config) -> None:
    """Raise DataError where data.origin is given and there is nothing at data.path."""
    data = config.data
    if data.origin is None:
        return
    try:
        path = Path(expand_path(data.path, "data.path"))
    except ValueError as error:
        raise DataError(f"{error}; {_described(config)}") from None
    # A path may also be what the names of files begin with.
    siblings = os.listdir(path.parent) if path.parent.is_dir() else []
    found = any(path.iterdir()) if path.is_dir() else any(name.startswith(path.name) for name in siblings)
    if not found:
        raise DataError(f"{path}: there is no data; {_described(config)}")


def _described(config: Config) -> str:
    data = config.data
    counts = [
        f"{count:,} {what}"
        for count, what in (
            (data.expected.train, "training documents (N)"),
            (data.expected.labels, "labels (L)"),
            (data.expected.test, "test documents"),
        )
        if count is not None
    ]
    width = config.output.intermediate or config.encoder.features
    counts += [f"{width:,} features that labels read (H)"] if width else []
    return f"it is {data.origin}; expected: {', '.join(counts)}; put it there, or set data.path"


def differences(data: Data, dataset: Dataset) -> list[str]:
    """A line for every count that is not the expected one."""
    # Documents of dev that were drawn from train belong to it.
    drawn = len(dataset.dev) if dataset.dev is not None and data.dev_fraction > 0 else 0
    found = {
        "train": {len(dataset.train), len(dataset.train) + drawn},
        "test": {len(dataset.test) if dataset.test is not None else 0},
        "labels": {len(dataset.labels.names)},
    }
    lines = []
    for name, counts in found.items():
        expected = getattr(data.expected, name)
        if expected is not None and expected not in counts:
            where = f"data.expected.{name} ({expected:,})"
            lines.append(f"{where} is not what was found ({max(counts):,}): is this the data set that is meant?")
    return lines
