"""Settings of a run: frozen dataclasses, checked where they are made, read from YAML and dotted overrides."""

import dataclasses
import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from haste.config._checked import Checked, hints, is_section, require
from haste.config._data import Data, Expected, Propensity
from haste.config._model import Encoder, LabelTexts, Output
from haste.config._training import Auxiliary, Optim, OptimEncoder, OptimOutput, Rewire, Run

__all__ = [
    "Auxiliary",
    "Config",
    "Data",
    "Encoder",
    "Expected",
    "LabelTexts",
    "Optim",
    "OptimEncoder",
    "OptimOutput",
    "Output",
    "Propensity",
    "Rewire",
    "Run",
    "Setting",
    "check_keys",
    "expand_path",
    "settings",
    "unknown_key",
]

_Section = TypeVar("_Section", bound=Checked)
_MOST_RATE = 0.001  # of a transformer: the default is a bag's, with which no transformer learns


@dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """Everything that decides a run."""

    data: Data
    encoder: Encoder = field(default_factory=Encoder)
    output: Output = field(default_factory=Output)
    label_texts: LabelTexts = field(default_factory=LabelTexts)
    rewire: Rewire = field(default_factory=Rewire)
    auxiliary: Auxiliary = field(default_factory=Auxiliary)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=Run)

    def _check(self) -> None:
        output, features = self.output, self.encoder.features
        name, width = "encoder.features", features
        if output.intermediate:
            name, width = "output.intermediate", output.intermediate
        # 0 = as wide as the data or the transformer, known later
        remedy = f"lower output.fan_in or raise {name}"
        fits = width == 0 or output.fan_in <= width
        require(fits, "output.fan_in", output.fan_in, f"not exceed {name} ({width})", remedy)
        require(width % output.block == 0, "output.block", output.block, f"divide {name} ({width})")
        regrow = "be random where output.block or output.duplicates is set"
        special = output.block > 1 or output.duplicates
        allowed = not special or self.rewire.interval == 0 or self.rewire.regrow == "random"
        require(allowed, "rewire.regrow", self.rewire.regrow, regrow, "or set rewire.interval: 0")
        straight = self.encoder.kind == "features" and features == 0
        must = "be random unless the output layer reads the documents' own features"
        remedy = "set encoder.kind: features and encoder.features: 0"
        require(output.inputs == "random" or straight, "output.inputs", output.inputs, must, remedy)
        allowed = not self.label_texts.group or output.grouping == "semantic"
        require(allowed, "label_texts.group", True, f"be false with output.grouping {output.grouping}")
        transformer = self.encoder.kind == "transformer"
        allowed = self.auxiliary.clusters == 0 or features > 0 or transformer
        must = "be 0 where given features go straight to the output layer"
        require(allowed, "auxiliary.clusters", self.auxiliary.clusters, must, "there is no encoder for it to help")
        allowed = self.encoder.dtype == "float32" or self.optim.encoder.name == "kahan_adamw"
        must = "be float32 unless optim.encoder.name is kahan_adamw"
        require(allowed, "encoder.dtype", self.encoder.dtype, must)
        rate = self.optim.encoder.lr
        must = f"be at most {_MOST_RATE} for a transformer"
        require(not transformer or rate <= _MOST_RATE, "optim.encoder.lr", rate, must, "0.00005 is usual")

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
    for name, hint in hints(section).items():
        if is_section(hint):
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


def settings(section: type[Checked] = Config) -> Iterator[Setting]:
    """Every key that holds a value, in the order of the sections."""
    lines = (line.strip().partition(": ") for line in (section.__doc__ or "").splitlines())
    meaning = {name: text for name, _, text in lines}
    for name, hint in hints(section).items():
        if is_section(hint):
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


def check_keys(values: Any, section: type[Checked] = Config) -> None:
    """Raise for the first key of nested dictionaries that is not a setting, or section that is no mapping."""
    if not isinstance(values, dict):
        name = section._section or "the configuration"
        raise TypeError(f"{name} ({type(values).__name__}) must be a mapping of keys to values")
    known = hints(section)
    for name, value in values.items():
        if name not in known:
            raise unknown_key(section._key(str(name)))
        if is_section(known[name]):
            check_keys(value, known[name])


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
