"""Settings of a run on data of which nothing but the path is known."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from haste.config import Config, Run, expand_path
from haste.data.prepare import prepare
from haste.data.store import Store, open_store
from haste.data.text import TfIdf
from haste.train.budget import fit_settings
from haste.train.device import resolve_device
from haste.train.files import write_text
from haste.train.preset import Facts, fill, flatten, free_memory
from haste.train.progress import print_line
from haste.train.run_folder import RunFolder, read_config
from haste.train.trainer import train

_SAMPLE = 1000  # documents whose words are counted


def train_auto(
    values: dict[str, Any],
    *,
    resume: bool = False,
    log: Callable[[str], None] | None = None,
    choose: bool = True,
    memory_budget: float | None = None,
) -> Path:
    """Train with what the user gave, and for the rest what `complete` chooses; preset.txt in the run folder says why.

    values: nested dictionaries of settings; data.path is among them
    resume, log: as in `train`
    choose, memory_budget: as in `complete`
    Returns: the run folder.
    Raises: as `train`.
    """
    say = log or print_line
    completed, reasons = complete(values, resume=resume, log=say, choose=choose, memory_budget=memory_budget)
    config = Config.from_dict(completed)
    folder = Path(expand_path(config.run.dir, "run.dir"))
    for line in reasons:
        say(line)
    try:
        return train(config, resume=resume, log=log)
    finally:
        started = folder / "config.yaml"
        if reasons and started.is_file() and read_config(started) == config:
            write_text(folder / "preset.txt", "".join(f"{line}\n" for line in reasons))


def complete(
    values: dict[str, Any],
    *,
    resume: bool = False,
    log: Callable[[str], None] = print_line,
    choose: bool = True,
    memory_budget: float | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """What the user gave with all that follows from the data, as preset auto chooses it.

    The data set is made ready on the way, for the run to open.

    Args:
        values: nested dictionaries of what the user gave; data.path is among them.
        resume: take what is missing from the run in run.dir, if there is one, instead of choosing anew.
        log: takes lines of text.
        choose: take what fits the data; otherwise every setting has its default.
        memory_budget: bytes that training may take; what was not given is lowered until it does.

    Returns:
        Nested dictionaries for `Config.from_dict`, and what was chosen and why; nothing of a run that is resumed.

    Raises:
        ValueError: settings or data that cannot be used.
    """
    folder = values.get("run", {}).get("dir", Run().dir)
    started = Path(expand_path(folder, "run.dir")) / "config.yaml"
    if resume and started.is_file():
        return _merged(read_config(started).to_dict(), values), []
    # What can be refused before the data is read. The other two sections depend on it.
    given = Config.from_dict({**values, "encoder": {}, "output": {"fan_in": 1}})
    RunFolder(given, resume=resume)
    store = open_store(given.data, log=log)
    device = values.get("run", {}).get("device", Run().device)
    facts = facts_of(store, device, label_texts=given.label_texts.read)
    if memory_budget is not None:
        facts = replace(facts, memory_bytes=min(facts.memory_bytes, int(memory_budget)))
    completed, lines = fill(values, facts) if choose else (values, [])
    if memory_budget is not None:
        facts = with_terms(facts, store, Config.from_dict(completed), log=log)
        completed, more = fit_settings(completed, facts, memory_budget, fixed=set(flatten(values)))
        lines = [*lines, *more]
    return completed, lines


def facts_of(store: Store, device: str, *, label_texts: bool = False) -> Facts:
    """What settings are chosen from. Words are counted in some documents, evenly spread.

    device: as in run.device
    label_texts: whether labels without a training document count where they have a text
    """
    found = resolve_device(device)
    train = store.splits["train"]
    labels = train.labels[1]
    trained = np.unique(labels)
    if label_texts:
        trained = np.union1d(trained, np.flatnonzero(store.described()))
    num_documents = len(train)
    rows = np.unique(np.linspace(0, num_documents - 1, min(num_documents, _SAMPLE)).astype(np.int64))
    words = None
    if train.texts is not None:
        words = float(np.mean([len(train.texts[int(row)].split()) for row in rows]))
    return Facts(
        num_documents=num_documents,
        num_labels=len(trained),
        labels_per_document=len(labels) / num_documents,
        kind=store.kind,
        num_inputs=None if train.features is None else train.features.shape[1],
        words_per_document=words,
        has_dev="dev" in store.splits,
        memory_bytes=torch.cuda.mem_get_info(found)[0] if found.type == "cuda" else free_memory(),
        device=found.type,
    )


def with_terms(facts: Facts, store: Store, config: Config, *, log: Callable[[str], None]) -> Facts:
    """The facts, and how many terms the encoder reads of texts; those are made ready on the way, for the run to open.

    Raises:
        DataError: as `haste.data.prepare.prepare`.
    """
    if facts.kind != "text" or config.encoder.kind == "transformer":
        return facts
    prepared = prepare(store, config.data, seed=config.run.seed, log=log, label_texts=config.label_texts.read)
    assert isinstance(prepared.vectorizer, TfIdf)
    return replace(facts, num_terms=prepared.vectorizer.num_terms, document_bytes=prepared.mapped_bytes())


def _merged(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The values with those that were given in their place."""
    merged = dict(values)
    for name, value in given.items():
        merged[name] = _merged(values[name], value) if isinstance(value, dict) else value
    return merged
