"""The systems that `haste compare` knows: output layers on one encoder, as changes to the settings of a run."""

import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from haste.config import Config, settings, unknown_key
from haste.topology import num_head_labels

SPARSITY = 0.83  # of a tail whose settings do not make it sparse
_HEAD = 0.1  # most labels that read everything
_WHOLE = 16  # fan_in is a multiple of this: what kernels on a GPU multiply at once
_LABELS_PER_CLUSTER = 64  # of the auxiliary classifier
_CURVATURE = 8  # of the squared hinge, over that of cross-entropy


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What of a data set decides settings.

    inputs: features of the encoder where encoder.features is 0: columns of given features, or as wide as a transformer
    labels: with a training document
    documents: of train
    """

    inputs: int
    labels: int
    documents: int


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What the systems of a comparison have in common.

    config: settings of all runs
    sizes: of the data
    sparsity: of labels beyond the head; None = as config says where its tail is sparse, else 0.83
    given: dotted keys that a run has whatever its system says; those that decide widths and steps decide sizes too
    """

    config: Config
    sizes: Sizes
    sparsity: float | None = None
    given: Mapping[str, Any] = field(default_factory=dict)

    def value(self, key: str) -> Any:
        """A setting of the run, where its system does not decide it."""
        if key in self.given:
            return self.given[key]
        found: Any = self.config
        for name in key.split("."):
            found = getattr(found, name)
        return found

    @property
    def width(self) -> int:
        """Features that the encoder gives the output layer."""
        return int(self.value("encoder.features") or self.sizes.inputs)

    @property
    def steps(self) -> int:
        """Of the whole training."""
        per_epoch = math.ceil(self.sizes.documents / self.value("optim.batch_size"))
        return int(self.value("optim.epochs") * per_epoch)

    @property
    def head_ratio(self) -> float:
        """Part of the labels in the dense head: at most a tenth."""
        ratio = self.config.output.head_ratio
        return min(ratio, _HEAD) if self.is_sparse else _HEAD

    @property
    def is_sparse(self) -> bool:
        """Whether the labels beyond the head read a part of the features by the settings already."""
        return 0 < self.config.output.fan_in < replace(self, given={}).tail_width()

    def tail_width(self, own: Mapping[str, Any] | None = None) -> int:
        """Features that the labels beyond the head could read; own: dotted keys of a system."""
        settings = {**(own or {}), **self.given}
        names = ("output.intermediate", "output.private_features")
        intermediate, private = (settings[name] if name in settings else self.value(name) for name in names)
        width = int(intermediate or self.width)
        return width // 2 if private == "slice" else width

    def fan_in(self, inputs: int) -> int:
        """Inputs that a label reads of so many."""
        if self.sparsity is None and self.is_sparse:
            return self.config.output.fan_in
        return fan_in_at(SPARSITY if self.sparsity is None else self.sparsity, inputs)


@dataclass(frozen=True, kw_only=True)
class System:
    """A kind of output layer.

    title: its name in tables
    text: what it is, in a line
    sparse: whether labels read a part of the features
    sized: whether a sparsity that is asked for decides its size
    changes: the dotted keys that make it
    """

    title: str
    text: str
    sparse: bool
    sized: bool
    changes: Callable[[Shared], dict[str, Any]]


def fan_in_at(sparsity: float, inputs: int) -> int:
    """The largest fan_in of at least this sparsity, a whole multiple of 16 where there is one.

    Raises:
        ValueError: not between 0 and 1, or it leaves no input.
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity ({sparsity:g}) must be above 0 and below 1; it is 1 - fan_in / inputs")
    most = math.floor((1 - sparsity) * inputs + 1e-9)
    if most < 1:
        raise ValueError(
            f"sparsity ({sparsity:g}) must leave a label one of its {inputs} inputs at least; lower it, or raise "
            "encoder.features"
        )
    return most // _WHOLE * _WHOLE or most


def apply(config: Config, changes: Mapping[str, Any]) -> Config:
    """The configuration with the values of dotted keys in the place of its own.

    Raises:
        ValueError, TypeError: an unknown key, or a value that does not fit.
    """
    values = config.to_dict()
    known = {setting.key for setting in settings()}
    for key, value in changes.items():
        if key not in known:
            raise unknown_key(key)
        *sections, name = key.split(".")
        target = values
        for section in sections:
            target = target[section]
        target[name] = value
    return Config.from_dict(values)


def parse_value(key: str, text: str) -> tuple[str, Any]:
    """A setting and its value from their texts; a key may be its last part where only one setting ends so.

    Raises:
        ValueError: no such setting, several of them, or not a value of its type.
    """
    known = {setting.key: setting.type for setting in settings()}
    found = [key] if key in known else [name for name in known if name.endswith(f".{key}")]
    if not found:
        raise unknown_key(key)
    if len(found) > 1:
        raise ValueError(f"{key} must name one setting; write {' or '.join(found)}")
    key, kind = found[0], known[found[0]]
    if isinstance(kind, types.UnionType):  # a type or None
        if text in ("null", "none"):
            return key, None
        kind = typing.get_args(kind)[0]
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(f"{key} ({text}) must be true or false")
        return key, text == "true"
    if kind in (int, float):
        try:
            return key, kind(text)
        except ValueError:
            raise ValueError(f"{key} ({text}) must be of type {kind.__name__}") from None
    return key, text


def _plain(shared: Shared) -> dict[str, Any]:
    """An output layer without anything special: what the other systems start from."""
    return {
        "output.head_ratio": 0.0,
        "output.group_size": 1,
        "output.block": 1,
        "output.duplicates": False,
        "output.intermediate": 0,
        "output.frequencies": "train",
        "output.regroup": 0.0,
        "output.private_features": "none",
        "rewire.interval": 0,
        "rewire.scope": "group",
        "rewire.threshold": None,
        "rewire.state": "mean",
        "auxiliary.clusters": 0,
    }


def _dense(shared: Shared) -> dict[str, Any]:
    return {**_plain(shared), "output.group_size": 16, "output.fan_in": 0}


def _dense_bf16(shared: Shared) -> dict[str, Any]:
    low = {"output.dtype": "bfloat16", "encoder.dtype": "bfloat16", "optim.encoder.name": "kahan_adamw"}
    return {**_dense(shared), **low}


def _bottleneck(shared: Shared) -> dict[str, Any]:
    """As wide as takes the multiplications of HASTE: D (H + L) of them."""
    haste = {key: value for key, value in shared.given.items() if key.startswith("encoder.")}
    products = output_products(apply(shared.config, {**haste, **_haste(replace(shared, given=haste))}), shared.sizes)
    narrow = products / (shared.width + shared.sizes.labels)
    narrow = max(1, min(shared.width, round(narrow / _WHOLE) * _WHOLE or round(narrow)))
    return {**_dense(shared), "output.intermediate": narrow, "output.activation": "none"}


def _rewired(shared: Shared, regrow: str) -> dict[str, Any]:
    """Links are replaced as often as the settings say; where they do not, some four times a run."""
    interval = shared.config.rewire.interval or min(300, max(1, round(shared.steps / 6)))
    return {"rewire.interval": interval, "rewire.regrow": regrow}


def _sparse(shared: Shared, regrow: str = "random") -> dict[str, Any]:
    plain = _plain(shared)
    return {**plain, "output.fan_in": shared.fan_in(shared.tail_width(plain)), **_rewired(shared, regrow)}


def _block_sparse(shared: Shared) -> dict[str, Any]:
    sparse = _sparse(shared)
    fan_in = sparse["output.fan_in"] // _WHOLE * _WHOLE or _WHOLE  # whole blocks
    return {**sparse, "output.fan_in": fan_in, "output.group_size": _WHOLE, "output.block": _WHOLE}


def _rigl(shared: Shared) -> dict[str, Any]:
    return _sparse(shared, "gradient")


def _fixed_fan_in(shared: Shared) -> dict[str, Any]:
    """With the squared hinge, whose curvature is 2 where that of cross-entropy is at most 1/4: smaller steps of sgd."""
    output, found = shared.config.optim.output, {**_sparse(shared), "output.loss": "squared_hinge"}
    if output.name == "sgd" and shared.config.output.loss == "bce":
        found["optim.output.lr"] = output.lr / _CURVATURE
    return found


def _spartex(shared: Shared) -> dict[str, Any]:
    labels = shared.sizes.labels
    clusters = min(labels, max(2, labels // _LABELS_PER_CLUSTER))
    # Where given features go straight to the output layer there is no encoder for the auxiliary objective to help.
    straight = shared.value("encoder.kind") == "features" and not shared.value("encoder.features")
    clusters = 0 if straight else clusters
    rate = shared.config.optim.output.lr if shared.config.auxiliary.lr is None else shared.config.auxiliary.lr
    return {**_fixed_fan_in(shared), "auxiliary.clusters": clusters, "auxiliary.lr": rate}


def _spartex_intermediate(shared: Shared) -> dict[str, Any]:
    return {**_spartex(shared), "output.intermediate": shared.width, "output.activation": "relu"}


def _haste(shared: Shared) -> dict[str, Any]:
    output = shared.config.output
    return {
        "output.fan_in": shared.fan_in(shared.tail_width()),
        "output.group_size": output.group_size if output.group_size > 1 else 16,
        "output.head_ratio": shared.head_ratio,
        **_rewired(shared, shared.config.rewire.regrow),
    }


def _static(shared: Shared) -> dict[str, Any]:
    return {**_haste(shared), "rewire.interval": 0}


SYSTEMS = {
    "dense": System(
        title="dense",
        text="every label reads every feature (Renée)",
        sparse=False,
        sized=False,
        changes=_dense,
    ),
    "dense-bf16": System(
        title="dense, bf16",
        text="the same with bfloat16 weights, stochastic rounding, and a Kahan-summed optimizer of the encoder (ELMO)",
        sparse=False,
        sized=False,
        changes=_dense_bf16,
    ),
    "bottleneck": System(
        title="bottleneck",
        text="every label reads a narrow linear layer, with as many multiplications as HASTE",
        sparse=False,
        sized=True,
        changes=_bottleneck,
    ),
    "block-sparse": System(
        title="block-sparse",
        text="groups of 16 labels read whole blocks of 16 inputs, replaced at random",
        sparse=True,
        sized=True,
        changes=_block_sparse,
    ),
    "rigl": System(
        title="RigL",
        text="every label reads inputs of its own, the weakest replaced where the gradient is largest",
        sparse=True,
        sized=True,
        changes=_rigl,
    ),
    "fixed-fan-in": System(
        title="fixed fan-in",
        text="every label reads inputs of its own, the weakest replaced at random (SET); squared hinge",
        sparse=True,
        sized=True,
        changes=_fixed_fan_in,
    ),
    "spartex": System(
        title="Spartex",
        text="fixed fan-in with an auxiliary objective that fades out",
        sparse=True,
        sized=True,
        changes=_spartex,
    ),
    "spartex-intermediate": System(
        title="Spartex, intermediate",
        text="Spartex behind one more layer as wide as the features",
        sparse=True,
        sized=True,
        changes=_spartex_intermediate,
    ),
    "static": System(
        title="static",
        text="HASTE whose links stay as they are drawn",
        sparse=True,
        sized=True,
        changes=_static,
    ),
    "haste": System(
        title="HASTE",
        text="dense head of frequent labels; groups of the others share inputs, replaced during training",
        sparse=True,
        sized=True,
        changes=_haste,
    ),
}


def settings_of(system: System, shared: Shared, changes: Mapping[str, Any]) -> Config:
    """Settings of a system's run.

    Args:
        system: what to train.
        shared: what it is compared on.
        changes: dotted keys that win over the system's own, and that its sizes follow.

    Raises:
        ValueError, TypeError: a setting that cannot be.
    """
    return apply(shared.config, {**system.changes(replace(shared, given=changes)), **changes})


def output_products(config: Config, sizes: Sizes) -> int:
    """Multiplications of the output layer for a document, forward."""
    shared = Shared(config=config, sizes=sizes)
    output, inputs = config.output, shared.tail_width()
    head = num_head_labels(sizes.labels, output.head_ratio, output.group_size)
    of_tail = output.fan_in or inputs
    return shared.width * output.intermediate + head * inputs + (sizes.labels - head) * of_tail
