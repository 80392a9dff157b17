"""preset="auto": settings from the size of the data and the memory there is, each with its reason.

The figures come from tuning on sets of 60 to 588,000 documents; between them they are interpolated by powers of two.
"""

import copy
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haste.config import Config, Encoder, Output
from haste.data.source import Kind
from haste.nn.transformer import transformer_width

_SMALL_LAYER = 4 * 2**20  # bytes of a dense output layer below which sparsity would save nothing worth having
_MOST_HEAD = 10_000  # labels of the dense head
_SMALL_BATCH = 32  # documents of a step that is over before threads have shared it out
_FEW_INPUTS = 64  # given numbers of a document below which they are measurements rather than an embedding

Choices = dict[str, tuple[Any, str]]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What settings are chosen from.

    num_documents: to train on, before any are taken for dev
    num_labels: with a training document
    labels_per_document: mean
    kind: text, or given features, sparse or dense
    num_inputs: columns of given features
    num_terms: of the vocabulary of texts, where it was counted
    document_bytes: of texts as their terms, where those were counted
    words_per_document: mean, of texts
    has_dev: whether there are dev documents of their own
    memory_bytes: main memory free now, of the GPU where the device is one
    device: cpu or cuda
    """

    num_documents: int
    num_labels: int
    labels_per_document: float
    kind: Kind = "text"
    num_inputs: int | None = None
    num_terms: int | None = None
    document_bytes: int = 0
    words_per_document: float | None = None
    has_dev: bool = False
    memory_bytes: int
    device: str = "cpu"

    def describe(self) -> str:
        """One line for the log."""
        shape = f"{self.num_inputs:,} {self.kind} features" if self.num_inputs else "text"
        if self.words_per_document is not None:
            shape = f"text of {self.words_per_document:.0f} words on average"
        return (
            f"{self.num_documents:,} documents of {shape}, {self.num_labels:,} labels, "
            f"{self.labels_per_document:.1f} a document; {self.memory_bytes / 2**30:.1f} GiB of memory free"
        )


def fill(values: Mapping[str, Any], facts: Facts) -> tuple[dict[str, Any], list[str]]:
    """Complete settings with those that fit the data; what the user gave wins and the rest follows from it.

    Args:
        values: nested dictionaries of what the user gave.
        facts: about the data and the machine.

    Returns:
        Nested dictionaries for `Config.from_dict`, and lines for the log such as "encoder.features 512: why".

    Raises:
        ValueError, TypeError: as `Config.from_dict`, for what the user gave.
    """
    _check_given(values, facts)
    complete = copy.deepcopy({name: dict(section) for name, section in values.items()})
    lines = [f"preset auto: {facts.describe()}"]
    for key, (value, reason) in choose(facts, flatten(values)).items():
        *sections, name = key.split(".")
        place = complete
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
        lines.append(f"{key} {_shown(value)}: {reason}")
    return complete, lines


def choose(facts: Facts, given: Mapping[str, Any] | None = None) -> Choices:
    """Choose settings: dotted key -> (value, reason); none of those in `given`, which others follow from."""
    chooser = _Chooser(facts, given or {})
    chooser.text()
    chooser.encoder()
    chooser.output()
    chooser.length()
    return chooser.choices


class _Chooser:
    def __init__(self, facts: Facts, given: Mapping[str, Any]) -> None:
        self.facts, self.given = facts, given
        self.choices: Choices = {}

    def pick(self, key: str, value: Any, reason: str) -> Any:
        """The user's value of a setting, else this one."""
        if key in self.given:
            return self.given[key]
        self.choices[key] = (value, reason)
        return value

    def text(self) -> None:
        """Vocabulary and dev documents."""
        facts, num = self.facts, self.facts.num_documents
        if not facts.has_dev:
            fraction = 0.0 if num < 1000 else 0.1 if num < 10_000 else 0.05
            why = f"{num:,} documents are too few to spare any" if not fraction else f"{num:,} documents"
            self.pick("data.dev_fraction", fraction, why)
        self.num_inputs = facts.num_inputs or 0
        if facts.kind != "text" or self.given.get("encoder.kind") == "transformer":
            return
        words = facts.words_per_document or 100.0
        pairs = num >= (1000 if words < 50 else 20_000) and num * words < 2e9
        why = f"{num:,} texts of {words:.0f} words: " + ("pairs of words too" if pairs else "single words suffice")
        ngrams = self.pick("data.ngrams", 2 if pairs else 1, why)
        min_df = 1 if num < 1000 else 2 if num < 20_000 else 3
        self.pick("data.min_df", min_df, f"{num:,} documents")
        # The encoder's embedding and its two moments must fit.
        most = self.pick("data.max_features", 100_000 if num < 200_000 else 200_000, "rarer terms add little")
        self.num_inputs = _terms(facts, ngrams, most)

    def encoder(self) -> None:
        """The encoder's kind and width."""
        facts, labels = self.facts, self.facts.num_labels
        dense = facts.kind == "dense"
        kind = self.pick("encoder.kind", "features" if dense else "bag", f"documents are {_KINDS[facts.kind]}")
        few_inputs = self.num_inputs < _FEW_INPUTS
        if kind == "transformer":
            self._transformer()
            return
        if kind == "features" and self._straight(few_inputs):
            return
        width = _power_of_two(16 * math.sqrt(labels), 64, 1024)
        why = f"{labels:,} labels"
        fan_in = self.given.get("output.fan_in")
        if fan_in is not None and fan_in > width:
            width, why = fan_in, f"output.fan_in {fan_in}"
        while width > 64 and self._encoder_bytes(width) > facts.memory_bytes / 4 and width > (fan_in or 0):
            width, why = width // 2, f"{_size(self._encoder_bytes(width))} at twice the width would not fit in memory"
        self.width = self.pick("encoder.features", width, why) or self.num_inputs
        if kind == "features":
            why = "numbers of their own scale" if few_inputs else "embeddings differ in direction"
            self.pick("encoder.normalize", not few_inputs, f"{self.num_inputs} {why}")
        dropout, why = 0.2 if kind == "features" else 0.5, f"documents are {_KINDS[facts.kind]}"
        if facts.num_documents >= 100_000 and (facts.words_per_document or 100.0) < 20:
            dropout, why = 0.0, f"{facts.num_documents:,} texts of few words are not learned by heart"
        self.pick("encoder.dropout", dropout, why)
        if facts.num_documents < 2000 and self._value("optim.output.name", "sgd") == "sgd":
            rate = 0.2 if facts.num_documents < 200 else 0.1
            self.pick("optim.output.lr", rate, f"labels of {facts.num_documents:,} documents are seen rarely")

    def _transformer(self) -> None:
        """A transformer as wide as it is, and learning rates for one that knows a language already."""
        found = transformer_width(str(self.given["encoder.name"]))
        self.width = self.pick("encoder.features", 0, f"as wide as the transformer, {found}") or found
        self.pick("encoder.dropout", 0.2, "beside the transformer's own")
        if self._value("optim.encoder.name", "adamw") != "sgd":
            if self.given.get("encoder.lora", 0):
                self.pick("optim.encoder.lr", 2e-4, "usual for adapters of a transformer")
            else:
                self.pick("optim.encoder.lr", 5e-5, "usual for transformers")

    def _straight(self, few_inputs: bool) -> bool:
        """Whether given features go straight to the output layer; its optimizer then, which has no encoder to help."""
        given = self.given.get("encoder.features", 0) or self.given.get("encoder.hidden", 0)
        fan_in = self.given.get("output.fan_in", 0)
        if given or few_inputs or fan_in > self.num_inputs:
            return False
        self.width = self.num_inputs
        self.pick("encoder.features", 0, f"{self.num_inputs} features go straight to the output layer")
        self.pick("encoder.normalize", True, "embeddings differ in direction")
        self.pick("encoder.dropout", 0.0, "given features are kept whole")
        moments = 8 * self.facts.num_labels * self.width
        adam = moments < self.facts.memory_bytes / 8
        name = self.pick("optim.output.name", "adamw" if adam else "sgd", f"its moments take at most {_size(moments)}")
        self.pick("optim.output.lr", 0.02 if name == "adamw" else 2.0, "for features of unit length")
        return True

    def _encoder_bytes(self, width: int) -> int:
        return 12 * self.num_inputs * width  # float32 and the two moments of AdamW

    def output(self) -> None:
        """Head, tail and the dtype of their weights."""
        facts, labels = self.facts, self.facts.num_labels
        width = self.given.get("output.intermediate") or self.width
        whole = 4 * labels * width
        dense = whole <= _SMALL_LAYER
        if dense:
            fan_in, why = width, f"all features: the dense layer takes {_size(whole)}"
        else:
            fan_in = min(width, max(16, width // 6 // 8 * 8))
            why = f"a sixth of the features; all of them would take {_size(whole)}"
        fan_in = self.pick("output.fan_in", fan_in, why) or width
        sparse = fan_in < width
        group_size = 1 if not sparse else 16 if labels < 100_000 else 32 if labels < 1_000_000 else 64
        if sparse:
            group_size = self.pick("output.group_size", group_size, f"{labels:,} labels")
        ratio = min(0.1, _MOST_HEAD / labels) if sparse else 0.0
        why = "the most frequent labels" if ratio == 0.1 else f"{_MOST_HEAD:,} labels at most"
        ratio = self.pick("output.head_ratio", round(ratio, 6), why if sparse else "every label reads all features")
        size = 4 * labels * (ratio * width + (1 - ratio) * fan_in)
        if size > facts.memory_bytes / 4:
            self.pick("output.dtype", "bfloat16", f"{_size(size)} of float32 would fill the memory")
        if sparse and 12 * labels * 128 > facts.memory_bytes / 2:
            self.pick("output.grouping", "frequency", f"embeddings of {labels:,} labels would fill the memory")
        self.sparse = sparse

    def length(self) -> None:
        """Batches, epochs and what is counted in steps."""
        facts, num = self.facts, self.facts.num_documents
        num -= 0 if facts.has_dev else min(5000, int(num * self._value("data.dev_fraction", 0.05)))
        batch = self.pick(
            "optim.batch_size",
            _power_of_two(num / (64 if num < 2000 else 32), 8, 256),
            f"{num:,} documents to train on",
        )
        if facts.device == "cpu" and batch <= _SMALL_BATCH:
            self.pick("run.threads", 1, f"several would wait for each other over batches of {batch}")
        epochs = 40 if num < 200 else 20 if num < 20_000 else 10 if num < 500_000 else 5
        epochs = self.pick("optim.epochs", epochs, f"{num:,} documents to train on")
        per_epoch = math.ceil(num / batch)
        steps = epochs * per_epoch
        self.pick("optim.warmup_steps", min(100, steps // 10), f"{steps:,} steps")
        if self.sparse:
            interval = min(300, max(20, round(steps / 6)))
            self.pick("rewire.interval", interval, f"{steps:,} steps")
        else:
            self.pick("rewire.interval", 0, "no label leaves a feature out")
        without_dev = not facts.has_dev and self._value("data.dev_fraction", 0.05) == 0
        every = float(epochs) if without_dev else max(1.0, epochs / 10)
        self.pick("run.evaluate_every", every, "there is no dev split" if without_dev else f"{epochs} epochs")

    def _value(self, key: str, default: Any) -> Any:
        return self.given.get(key, self.choices.get(key, (default,))[0])


def vocabulary(config: Config, facts: Facts) -> int:
    """How many inputs the encoder will have: columns of given features, or terms; about how many where not counted."""
    return facts.num_inputs or _terms(facts, config.data.ngrams, config.data.max_features)


def _terms(facts: Facts, ngrams: int, most: int | None) -> int:
    """What a vocabulary has, or about what it grows to."""
    if facts.num_terms is not None:
        return min(facts.num_terms, most or facts.num_terms)
    num = facts.num_documents
    found = 50 + num * (facts.words_per_document or 100.0) * (2 if ngrams == 2 else 1)
    terms = int(min(100_000 if num < 200_000 else 200_000, found))
    return min(terms, most or 10 * terms)


_KINDS = {"text": "text", "sparse": "sparse rows", "dense": "rows of numbers"}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of nested dictionaries."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def free_memory() -> int:
    """Bytes of main memory that can be had now, within the limit of a container."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    info = Path("/proc/meminfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    for limit, used in _CONTAINER:
        try:
            # What the kernel holds of files counts as used, and is given up when memory is asked for.
            stat = dict(line.split() for line in Path(used).with_name("memory.stat").read_text().splitlines())
            of_files = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()) + of_files)
        except (OSError, ValueError):  # no such limit
            continue
    return max(free, 0)


_CONTAINER = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def _check_given(values: Mapping[str, Any], facts: Facts) -> None:
    """Raise for what the user gave as `Config` would, before anything is computed with it."""
    path = {"path": ".", **values.get("data", {})}
    kind = {"kind": "features" if facts.kind == "dense" else "bag"}
    Config.from_dict({**values, "data": path, "encoder": {}, "output": {"fan_in": 1}})
    for section, given in ((Encoder, {**kind, **values.get("encoder", {})}), (Output, values.get("output", {}))):
        section(**given)


def _power_of_two(value: float, low: int, high: int) -> int:
    return min(high, max(low, 2 ** round(math.log2(max(value, 1)))))


def _size(count: float) -> str:
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1024:
            return f"{count:,.1f} {unit}"
    return f"{count / 1024:,.1f} GiB"


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else f"{value}"
