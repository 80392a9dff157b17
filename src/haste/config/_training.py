"""Settings of training: every one, what it means, its default and its limits."""

import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from haste.config._checked import Checked, require


@dataclass(frozen=True, kw_only=True)
class Rewire(Checked):
    """When and how links of the tail are replaced during training.

    interval: steps between two replacements (0 = never)
    fraction: part of the links replaced each time
    end: part of all steps after which links stay
    regrow: new links at random, or where the gradient is largest
    scope: weakest links within each group, or over all groups
    threshold: drop links weaker than this instead of a fraction (Spartex; null = off)
    schedule: cosine anneals the fraction, or the threshold, to 0 at the end; constant is HASTE's released code
    init: value of new links
    state: new links' optimizer state: mean = first moment 0, second the label's mean; zero; keep = the old link's \
(HASTE's released code)
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
    state: Literal["mean", "zero", "keep"] = "mean"

    def _check(self) -> None:
        self._at_least(0, "interval", "threshold")
        require(0 <= self.fraction <= 1, "rewire.fraction", self.fraction, "be in [0, 1]")
        require(0 <= self.end <= 1, "rewire.end", self.end, "be in [0, 1], a fraction of all steps")


@dataclass(frozen=True, kw_only=True)
class Auxiliary(Checked):
    """Spartex's auxiliary objective: a small dense classifier of clusters of labels, which helps the encoder at first.

    clusters: classes of the auxiliary classifier (0 = none); related labels share one with output.grouping semantic
    weight: of its loss at the start, beside that of the labels; it falls by a cosine to 0
    end: part of all steps after which the classifier is dropped
    lr: its learning rate (null = optim.output.lr)
    """

    _section: ClassVar[str] = "auxiliary"
    clusters: int = 0
    weight: float = 0.4
    end: float = 0.15
    lr: float | None = None

    def _check(self) -> None:
        self._at_least(0, "clusters", "weight", "lr")
        require(0 <= self.end <= 1, "auxiliary.end", self.end, "be in [0, 1], a fraction of all steps")


@dataclass(frozen=True, kw_only=True)
class OptimEncoder(Checked):
    """The encoder's optimizer.

    name: update rule; kahan_adamw keeps what bfloat16 weights lose in rounding
    lr: learning rate after warm-up
    weight_decay: adamw: decoupled, sgd: added to the gradient
    state_dtype: of the moments of kahan_adamw
    """

    _section: ClassVar[str] = "optim.encoder"
    name: Literal["adamw", "sgd", "kahan_adamw"] = "adamw"
    lr: float = 5e-3
    weight_decay: float = 0.0
    state_dtype: Literal["float32", "bfloat16"] = "float32"

    def _check(self) -> None:
        self._at_least(0, "lr", "weight_decay")
        allowed = self.state_dtype == "float32" or self.name == "kahan_adamw"
        must = "be float32 unless optim.encoder.name is kahan_adamw"
        require(allowed, "optim.encoder.state_dtype", self.state_dtype, must)


@dataclass(frozen=True, kw_only=True)
class OptimOutput(Checked):
    """The output layer's optimizer.

    name: update rule
    lr: learning rate after warm-up; the loss is summed over the batch
    momentum: of sgd (0 = none, and no memory for it)
    weight_decay: of weights, never of biases
    rarity: the rarer a label, the higher the lr of its weights: times (n_max / n)^rarity, at most 20, n its documents \
of train, n_max those of the most frequent label (0 = one lr for all)
    sparsity: the fewer features a label reads, the higher the lr of its weights: times (features / fan_in)^sparsity \
(0 = one lr for all)
    fused: update weights inside the pass that computes the loss (least memory)
    """

    _section: ClassVar[str] = "optim.output"
    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    rarity: float = 0.0
    sparsity: float = 0.0
    fused: bool = True

    def _check(self) -> None:
        self._at_least(0, "lr", "weight_decay")
        require(0 <= self.momentum < 1, "optim.output.momentum", self.momentum, "be in [0, 1)")
        allowed = self.name == "sgd" or self.momentum == 0
        require(allowed, "optim.output.momentum", self.momentum, "be 0 with optim.output.name adamw")
        for name in ("rarity", "sparsity"):
            require(0 <= getattr(self, name) <= 1, self._key(name), getattr(self, name), "be in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Optim(Checked):
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
class Run(Checked):
    """Where and on what a run happens, how often it is evaluated and kept.

    dir: folder of the run; ${NAME} is read from the environment
    seed: of everything random
    device: auto, cpu, cuda or cuda:N
    threads: CPU threads (null = PyTorch's choice)
    evaluate_every: epochs between evaluations on dev
    patience: stop after this many evaluations without a better dev nDCG@5 (0 = never)
    checkpoint_every: steps between checkpoints besides those at evaluations (0 = none)
    diagnostics_every: steps between measurements of the output layer, in metrics.jsonl (0 = none)
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
    diagnostics_every: int = 200
    deterministic: bool = False

    def _check(self) -> None:
        require(self.dir != "", "run.dir", "''", "not be empty")
        require(0 <= self.seed < 2**63, "run.seed", self.seed, "be in [0, 2^63)")
        known = re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device)
        require(known is not None, "run.device", self.device, "be auto, cpu, cuda or cuda:N")
        self._at_least(1, "threads")
        require(self.evaluate_every > 0, "run.evaluate_every", self.evaluate_every, "be more than 0 epochs")
        self._at_least(0, "patience", "checkpoint_every", "diagnostics_every")
