"""Settings of a run: frozen dataclasses, checked where they are made, read from YAML and dotted overrides."""

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

_Section = TypeVar("_Section", bound="_Checked")


def _require(ok: bool, name: str, value: object, must: str, remedy: str = "") -> None:
    if not ok:
        raise ValueError(f"{name} ({value}) must {must}" + (f"; {remedy}" if remedy else ""))


class _Checked:
    """Base of the sections: checks every field against its annotation before the section's own checks."""

    _section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            object.__setattr__(self, name, _checked(self._key(name), getattr(self, name), hint))
        self._check()

    def _check(self) -> None:
        pass

    @classmethod
    def _key(cls, name: str) -> str:
        return f"{cls._section}.{name}" if cls._section else name

    def _at_least(self, low: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            _require(value is None or value >= low, self._key(name), value, f"be at least {low}")


def _hints(section: type[_Checked]) -> dict[str, Any]:
    """Name -> annotation of every field of a section."""
    hints = typing.get_type_hints(section)
    return {spec.name: hints[spec.name] for spec in dataclasses.fields(section)}  # type: ignore[arg-type]


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, _Checked)


def _checked(key: str, value: Any, hint: Any) -> Any:
    """`value` if it fits the annotation (an int fits a float); otherwise raises."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        _require(value in choices, key, value, "be one of " + ", ".join(choices))
        return value
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        found = f"{type(value).__name__} {value!r}"
        raise TypeError(f"{key} ({found}) must be of type {hint.__name__}")
    if hint is float:
        _require(value - value == 0.0, key, value, "be finite")
    return value


@dataclass(frozen=True, kw_only=True)
class Data(_Checked):
    """Where the documents and labels come from and how text becomes terms.

    path: folder with train.jsonl[.gz] (and dev, test), or one such file; ${NAME} is read from the environment
    format: auto finds it from the file names
    text: name of the JSON key that holds the text
    labels: name of the JSON key that holds the list of labels
    max_features: keep only the most frequent terms (null = all)
    ngrams: 1 = single words, 2 = words and pairs of words
    min_df: drop terms found in fewer documents than this
    dev_fraction: part of train used as dev where there is no dev file (0 = no dev split)
    """

    _section: ClassVar[str] = "data"
    path: str
    format: Literal["auto", "jsonl"] = "auto"
    text: str = "text"
    labels: str = "labels"
    max_features: int | None = None
    ngrams: int = 1
    min_df: int = 2
    dev_fraction: float = 0.05

    def _check(self) -> None:
        for name in ("path", "text", "labels"):
            _require(getattr(self, name) != "", self._key(name), "''", "not be empty")
        _require(self.ngrams in (1, 2), "data.ngrams", self.ngrams, "be 1 (unigrams) or 2 (uni- and bigrams)")
        self._at_least(1, "max_features", "min_df")
        _require(0 <= self.dev_fraction < 1, "data.dev_fraction", self.dev_fraction, "be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Encoder(_Checked):
    """The text model: turns a document into numbers for the output layer.

    kind: bag = tf-idf weighted sum of term embeddings
    features: width of its output
    hidden: width of a hidden layer behind the sum (0 = none)
    dropout: probability of dropping a feature in training
    """

    _section: ClassVar[str] = "encoder"
    kind: Literal["bag"] = "bag"
    features: int = 768
    hidden: int = 0
    dropout: float = 0.5

    def _check(self) -> None:
        self._at_least(1, "features")
        self._at_least(0, "hidden")
        _require(0 <= self.dropout < 1, "encoder.dropout", self.dropout, "be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Output(_Checked):
    """The label model: a dense head of frequent labels and a sparse tail.

    fan_in: inputs each tail label reads; equal to encoder.features makes the tail dense
    group_size: tail labels that share their inputs
    head_ratio: part of the labels, the most frequent, that reads every feature
    grouping: how tail labels are put into groups
    private_features: whether head and tail read their own features
    loss: bce gives probabilities, squared_hinge scores
    dtype: of the weights
    bias_init: prior = log odds of each label in train, zero
    """

    _section: ClassVar[str] = "output"
    fan_in: int = 128
    group_size: int = 16
    head_ratio: float = 0.1
    grouping: Literal["semantic", "frequency", "random"] = "semantic"
    private_features: Literal["none", "slice", "projection"] = "none"
    loss: Literal["bce", "squared_hinge"] = "bce"
    dtype: Literal["float32", "bfloat16"] = "float32"
    bias_init: Literal["prior", "zero"] = "prior"

    def _check(self) -> None:
        self._at_least(1, "fan_in", "group_size")
        _require(0 <= self.head_ratio <= 1, "output.head_ratio", self.head_ratio, "be in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Rewire(_Checked):
    """When and how links of the tail are replaced during training.

    interval: steps between two replacements (0 = never)
    fraction: part of the links replaced each time
    end: part of all steps after which links stay
    regrow: new links at random, or where the gradient is largest
    scope: weakest links within each group, or over all groups
    threshold: drop links weaker than this instead of a fraction (null = off)
    schedule: cosine anneals the fraction to 0 at the end
    init: value of new links
    """

    _section: ClassVar[str] = "rewire"
    interval: int = 300
    fraction: float = 0.25
    end: float = 0.66
    regrow: Literal["random", "gradient"] = "gradient"
    scope: Literal["group", "global"] = "group"
    threshold: float | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    init: Literal["zero", "uniform"] = "zero"

    def _check(self) -> None:
        self._at_least(0, "interval", "threshold")
        _require(0 <= self.fraction <= 1, "rewire.fraction", self.fraction, "be in [0, 1]")
        _require(0 <= self.end <= 1, "rewire.end", self.end, "be in [0, 1], a fraction of all steps")


@dataclass(frozen=True, kw_only=True)
class OptimEncoder(_Checked):
    """The encoder's optimizer.

    name: update rule
    lr: learning rate after warm-up
    weight_decay: adamw: decoupled, sgd: added to the gradient
    """

    _section: ClassVar[str] = "optim.encoder"
    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 5e-3
    weight_decay: float = 0.0

    def _check(self) -> None:
        self._at_least(0, "lr", "weight_decay")


@dataclass(frozen=True, kw_only=True)
class OptimOutput(_Checked):
    """The output layer's optimizer.

    name: update rule
    lr: learning rate after warm-up; the loss is summed over the batch
    momentum: of sgd (0 = none, and no memory for it)
    weight_decay: of weights, never of biases
    fused: update weights inside the pass that computes the loss (least memory)
    """

    _section: ClassVar[str] = "optim.output"
    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    fused: bool = True

    def _check(self) -> None:
        self._at_least(0, "lr", "weight_decay")
        _require(0 <= self.momentum < 1, "optim.output.momentum", self.momentum, "be in [0, 1)")
        allowed = self.name == "sgd" or self.momentum == 0
        _require(allowed, "optim.output.momentum", self.momentum, "be 0 with optim.output.name adamw")


@dataclass(frozen=True, kw_only=True)
class Optim(_Checked):
    """Length of training, batches and both optimizers; both follow a warm-up and a cosine to 0.

    epochs: passes over train
    batch_size: documents a step
    warmup_steps: steps over which learning rates rise from 0
    """

    _section: ClassVar[str] = "optim"
    epochs: int = 10
    batch_size: int = 256
    warmup_steps: int = 100
    encoder: OptimEncoder = field(default_factory=OptimEncoder)
    output: OptimOutput = field(default_factory=OptimOutput)

    def _check(self) -> None:
        self._at_least(1, "epochs", "batch_size")
        self._at_least(0, "warmup_steps")


@dataclass(frozen=True, kw_only=True)
class Run(_Checked):
    """Where and on what a run happens, how often it is evaluated and kept.

    dir: folder of the run; ${NAME} is read from the environment
    seed: of everything random
    device: auto, cpu, cuda or cuda:N
    threads: CPU threads (null = PyTorch's choice)
    evaluate_every: epochs between evaluations on dev
    patience: stop after this many evaluations without a better dev nDCG@5 (0 = never)
    checkpoint_every: steps between checkpoints besides those at evaluations (0 = none)
    deterministic: on a GPU, bitwise the same result each time, at some cost in speed
    """

    _section: ClassVar[str] = "run"
    dir: str = "runs/last"
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    evaluate_every: float = 1.0
    patience: int = 0
    checkpoint_every: int = 0
    deterministic: bool = False

    def _check(self) -> None:
        _require(self.dir != "", "run.dir", "''", "not be empty")
        _require(0 <= self.seed < 2**63, "run.seed", self.seed, "be in [0, 2^63)")
        known = re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device)
        _require(known is not None, "run.device", self.device, "be auto, cpu, cuda or cuda:N")
        self._at_least(1, "threads")
        _require(self.evaluate_every > 0, "run.evaluate_every", self.evaluate_every, "be more than 0 epochs")
        self._at_least(0, "patience", "checkpoint_every")


@dataclass(frozen=True, kw_only=True)
class Config(_Checked):
    """Everything that decides a run."""

    data: Data
    encoder: Encoder = field(default_factory=Encoder)
    output: Output = field(default_factory=Output)
    rewire: Rewire = field(default_factory=Rewire)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=Run)

    def _check(self) -> None:
        fan_in, features = self.output.fan_in, self.encoder.features
        remedy = "lower output.fan_in or raise encoder.features"
        _require(fan_in <= features, "output.fan_in", fan_in, f"not exceed encoder.features ({features})", remedy)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """Build from nested dictionaries.

        Raises:
            ValueError: an unknown key (with the nearest known one), or a value out of range.
            TypeError: a value of the wrong type.
        """
        check_keys(values)
        return _build(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries of plain values; `from_dict` reads them back."""
        return dataclasses.asdict(self)


def _build(section: type[_Section], values: dict[str, Any]) -> _Section:
    if section is Data and "path" not in values:
        raise ValueError("data.path must be given; set it to a folder or file of documents")
    arguments: dict[str, Any] = {}
    for name, hint in _hints(section).items():
        if _is_section(hint):
            arguments[name] = _build(hint, values.get(name, {}))
        elif name in values:
            arguments[name] = values[name]
    return section(**arguments)


@dataclass(frozen=True)
class Setting:
    """One key of the configuration: dotted name, annotation, default (MISSING = must be given), meaning."""

    key: str
    type: Any
    default: Any
    help: str


def settings(section: type[_Checked] = Config) -> Iterator[Setting]:
    """Every key that holds a value, in the order of the sections."""
    lines = (line.strip().partition(": ") for line in (section.__doc__ or "").splitlines())
    meaning = {name: text for name, _, text in lines}
    for name, hint in _hints(section).items():
        if _is_section(hint):
            yield from settings(hint)
        else:
            default = getattr(section, name, dataclasses.MISSING)
            yield Setting(section._key(name), hint, default, meaning[name])


def unknown_key(key: str) -> ValueError:
    """The error for an unknown dotted key: names the key and the nearest known one."""
    keys = [setting.key for setting in settings()]
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.8)
    leaf = key.rpartition(".")[2]
    if not close:
        leaves = {known.rpartition(".")[2]: known for known in reversed(keys)}
        close = [leaves[name] for name in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.8)]
    if not close:
        close = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
    return ValueError(f"unknown key {key}; the nearest known key is {close[0]}")


def check_keys(values: Any, section: type[_Checked] = Config) -> None:
    """Raise for the first key of nested dictionaries that is not a setting, or section that is no mapping."""
    if not isinstance(values, dict):
        name = section._section or "the configuration"
        raise TypeError(f"{name} ({type(values).__name__}) must be a mapping of keys to values")
    hints = _hints(section)
    for name, value in values.items():
        if name not in hints:
            raise unknown_key(section._key(str(name)))
        if _is_section(hints[name]):
            check_keys(value, hints[name])


def expand_path(value: str, key: str) -> str:
    """`value` with a leading ~ and every ${NAME} replaced from the environment.

    Raises:
        ValueError: a variable is not set; `key` is the setting named in the message.
    """

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if not os.environ.get(name):
            raise ValueError(f"{key} ({value}) must only use variables that are set; export {name}=... first")
        return os.environ[name]

    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", replace, value))
