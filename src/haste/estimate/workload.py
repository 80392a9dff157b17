"""What is to be trained: sizes of the output layer, of a batch and of the encoder, for every system of the family."""

from dataclasses import dataclass, replace
from math import ceil

from haste import topology
from haste.estimate._encoders import Encoder, Given, Transformer
from haste.estimate._layers import Layer

SYSTEMS = ("dense", "dense-bfloat16", "bottleneck", "block-sparse", "spartex", "haste")
_BLOCK = 16
_CLUSTER_GROUP = 16  # of `haste.nn.Auxiliary`
_BOTTLENECK_STEP = 8
_STATES = {"sgd": 0, "momentum": 1, "adamw": 2}
MOST_LABELS = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model and a batch; the default is HASTE's layer alone.

    Args:
        num_labels: L.
        in_features: H, width of the encoder's output.
        fan_in, group_size: F and S of the tail.
        head_ratio: part of the labels that reads all features.
        private_features: ``none``, ``slice`` or ``projection``, as `haste.nn.HeadTail`.
        intermediate: width of a layer between encoder and output layer, which then reads it; 0 = none.
        clusters: classes of the auxiliary classifier; 0 = none.
        dtype: of the output layer's weights.
        rule: of its optimizer: ``sgd``, ``momentum`` (sgd with it) or ``adamw``; moments are float32.
        rates: whether every label has a learning rate of its own.
        fused: weights are updated inside the pass; otherwise all their gradients are held.
        regrow: ``random``, ``gradient``, or ``none`` where links never change.
        batch_size: B, documents a step.
        positives: labels of a document, on average.
        encoder: what comes before; None is nothing at all.
        documents: bytes of all documents, which lie mapped in memory.

    Raises:
        ValueError: a size out of range.
    """

    num_labels: int
    in_features: int
    fan_in: int = 128
    group_size: int = 32
    head_ratio: float = 0.0
    private_features: str = "none"
    intermediate: int = 0
    clusters: int = 0
    dtype: str = "bfloat16"
    rule: str = "sgd"
    rates: bool = False
    fused: bool = True
    regrow: str = "random"
    batch_size: int = 128
    positives: float = 5.0
    encoder: Encoder | None = None
    documents: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_labels", "in_features", "fan_in", "group_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        if self.num_labels > MOST_LABELS:
            raise ValueError(f"num_labels ({self.num_labels}) must be below 2^31")
        if not 0 <= self.head_ratio <= 1:
            raise ValueError(f"head_ratio ({self.head_ratio}) must be in [0, 1]")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype ({self.dtype}) must be float32 or bfloat16")
        if self.rule not in _STATES:
            raise ValueError(f"optimizer ({self.rule}) must be one of {', '.join(_STATES)}")
        topology.check_fan_in(self.fan_in, self.inputs)

    @property
    def inputs(self) -> int:
        """Features that a layer reads."""
        width = self.intermediate or self.in_features
        return width // 2 if self.private_features == "slice" else width

    @property
    def num_head_labels(self) -> int:
        """Labels that read all features, in whole groups."""
        return topology.num_head_labels(self.num_labels, self.head_ratio, self.group_size)

    def layers(self) -> list[Layer]:
        """Head and tail, where they exist."""
        head = self.num_head_labels
        sizes = ((head, self.inputs), (self.num_labels - head, self.fan_in))
        return [
            Layer(
                num_labels=labels,
                inputs=self.inputs,
                fan_in=fan_in,
                group_size=self.group_size,
                dtype=self.dtype,
                states=_STATES[self.rule],
                rates=self.rates,
            )
            for labels, fan_in in sizes
            if labels
        ]

    def auxiliary(self) -> Layer | None:
        """The auxiliary classifier, where there is one: dense, float32, with the output layer's optimizer."""
        if not self.clusters:
            return None
        return Layer(
            num_labels=min(self.clusters, self.num_labels),
            inputs=self.in_features,
            fan_in=self.in_features,
            group_size=_CLUSTER_GROUP,
            dtype="float32",
            states=_STATES[self.rule],
        )

    def between(self) -> list[Given]:
        """Dense layers between encoder and output layer, which train with the encoder."""
        found = []
        if isinstance(self.encoder, Transformer) and self.encoder.width != self.in_features:
            found.append(Given(widths=(self.encoder.width, self.in_features)))
        widths = [self.in_features, self.intermediate] if self.intermediate else [self.in_features]
        if self.intermediate:
            found.append(Given(widths=tuple(widths)))
        if self.private_features == "projection":
            found.append(Given(widths=(widths[-1], 2 * widths[-1])))
        if self.encoder is None:
            return found
        return [replace(part, element=self.encoder.element, state=self.encoder.state) for part in found]

    def of_system(self, system: str) -> "Workload":
        """Return the same work done by another system of HASTE's Table 1, as `haste.estimate.published` compares them.

        `haste compare` and `haste estimate` make theirs of settings: `haste.train.systems`.

        dense: float32, every label reads all features, SGD without momentum unless given (Renée).
        dense-bfloat16: the same in bfloat16 with stochastic rounding, no momentum (ELMO).
        bottleneck: a dense layer behind an intermediate one so narrow that a step costs the FLOP of this workload.
        block-sparse: no head, inputs in aligned blocks of 16.
        spartex: no head, inputs of its own for every label, the auxiliary classifier where this workload has one.
        haste: as it is.

        Raises:
            ValueError: a system that does not exist.
        """
        read = self.intermediate or self.in_features
        dense = replace(self, head_ratio=0.0, private_features="none", fan_in=read, clusters=0, regrow="none")
        if system == "haste":
            return self
        if system == "dense":
            return replace(dense, dtype="float32")
        if system == "dense-bfloat16":
            return replace(dense, dtype="bfloat16", rule="sgd" if self.rule == "momentum" else self.rule)
        if system == "bottleneck":
            width = self._matched_width()
            return replace(dense, fan_in=width, intermediate=width)
        if system == "block-sparse":
            fan_in = ceil(self.fan_in / _BLOCK) * _BLOCK
            return replace(self, head_ratio=0.0, fan_in=min(fan_in, self.inputs), clusters=0)
        if system == "spartex":
            return replace(self, head_ratio=0.0, group_size=1)
        raise ValueError(f"system ({system}) must be one of {', '.join(SYSTEMS)}")

    def _matched_width(self) -> int:
        """Inner width at which a dense layer behind it takes the FLOP of this output layer."""
        links = sum(layer.rows * layer.fan_in for layer in self.layers())
        width = links / (self.num_labels + self.in_features)
        return max(_BOTTLENECK_STEP, int(width // _BOTTLENECK_STEP) * _BOTTLENECK_STEP)
