"""The sections of a configuration: every setting, what it means, its default and its limits."""

import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from haste.config._checked import Checked, require


@dataclass(frozen=True, kw_only=True)
class Expected(Checked):
    """What a data set is known to hold; a run says where it finds anything else.

    train: training documents (null = not known), those that dev is drawn from too
    test: test documents
    labels: labels, those without a training document too
    """

    _section: ClassVar[str] = "data.expected"
    train: int | None = None
    test: int | None = None
    labels: int | None = None

    def _check(self) -> None:
        self._at_least(1, "train", "test", "labels")


@dataclass(frozen=True, kw_only=True)
class Propensity(Checked):
    """Constants of PSP and PSnDCG (Jain et al., 2016).

    a: exponent of the labels' frequencies
    b: added to them
    """

    _section: ClassVar[str] = "data.propensity"
    a: float = 0.55
    b: float = 1.5

    def _check(self) -> None:
        self._at_least(0, "a", "b")


@dataclass(frozen=True, kw_only=True)
class Data(Checked):
    """Where the documents and labels come from and how text becomes terms.

    path: folder or file of documents, or what the names of its files begin with; ${NAME} is read from the environment
    dev: a file of dev documents, where path is the one of train
    test: a file of test documents, where path is the one of train
    format: auto finds it from names and content
    input: what is read where there are both texts and given features (auto = text)
    text: key or column of the text; several, joined by a space, as title+body (null = text; lf: title+content)
    labels: key or column of the labels (null = labels)
    id: key or column of the documents' ids (null = id, where there is one)
    separator: between the labels in a string (null = found from the first documents)
    filter: never predict the pairs of document and label that filter files list
    max_features: keep only the most frequent terms (null = all)
    ngrams: 1 = single words, 2 = words and pairs of words
    min_df: drop terms found in fewer documents than this
    max_tokens: of a text, for a transformer; longer texts are cut
    buckets: batches of a transformer sorted by length together, so that few pads are needed (0 = none)
    dev_fraction: part of train used as dev where there is no dev file (0 = no dev split)
    max_documents: train on this many documents at most, drawn at random (null = all)
    cache: folder of the data sets made from the files (null = $HASTE_CACHE, else ~/.cache/haste)
    origin: where the data comes from; said where it is missing
    """

    _section: ClassVar[str] = "data"
    path: str
    dev: str | None = None
    test: str | None = None
    format: Literal["auto", "jsonl", "csv", "parquet", "bow", "split", "npz", "raw", "lf", "haste"] = "auto"
    input: Literal["auto", "text", "features"] = "auto"
    text: str | None = None
    labels: str | None = None
    id: str | None = None
    separator: str | None = None
    filter: bool = True
    max_features: int | None = None
    ngrams: int = 1
    min_df: int = 2
    max_tokens: int = 128
    buckets: int = 50
    dev_fraction: float = 0.05
    max_documents: int | None = None
    cache: str | None = None
    origin: str | None = None
    expected: Expected = field(default_factory=Expected)
    propensity: Propensity = field(default_factory=Propensity)

    def _check(self) -> None:
        for name in ("path", "dev", "test", "text", "labels", "id", "separator", "cache", "origin"):
            require(getattr(self, name) != "", self._key(name), "''", "not be empty")
        require(self.ngrams in (1, 2), "data.ngrams", self.ngrams, "be 1 (unigrams) or 2 (uni- and bigrams)")
        self._at_least(1, "max_features", "min_df", "max_tokens", "max_documents")
        self._at_least(0, "buckets")
        require(0 <= self.dev_fraction < 1, "data.dev_fraction", self.dev_fraction, "be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Encoder(Checked):
    """The text model: turns a document into numbers for the output layer.

    kind: bag = weighted sum of the embeddings of terms (tf-idf, or given sparse features), features = given features, \
transformer = a model of the package transformers
    name: of a transformer: a folder, or a model of the Hugging Face hub; ${NAME} is read from the environment
    pooling: of a transformer's outputs
    features: width of its output; 0 = as wide as given features, which then go straight to the output layer, or as \
the transformer; one of another width is projected
    hidden: width of a hidden layer (0 = none)
    dropout: probability of dropping a feature in training
    normalize: scale the input of every document to unit length; not of a transformer
    lora: rank of the adapters (LoRA) that are trained in place of a transformer's weights; 0 = all weights are trained
    dtype: of its weights; bfloat16 trains with optim.encoder.name kahan_adamw
    autocast: a transformer computes in bfloat16 with float32 weights (mixed precision)
    attention: of a transformer; auto = what the package transformers takes, flash_attention_2 needs its own package
    checkpointing: a transformer keeps one activation a layer and computes the others again: less memory, more time
    compile: compile a transformer with torch.compile
    """

    _section: ClassVar[str] = "encoder"
    kind: Literal["bag", "features", "transformer"] = "bag"
    name: str | None = None
    pooling: Literal["cls", "mean", "max"] = "mean"
    features: int = 768
    hidden: int = 0
    dropout: float = 0.5
    normalize: bool = True
    lora: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    autocast: bool = False
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    checkpointing: bool = False
    compile: bool = False

    def _check(self) -> None:
        self._at_least(0, "features", "hidden", "lora")
        named = bool(self.name) == (self.kind == "transformer")
        require(named, "encoder.name", self.name, "be given with encoder.kind transformer, and with no other")
        transformer = self.kind == "transformer"
        allowed = self.features > 0 or transformer or (self.kind == "features" and self.hidden == 0)
        must = "be at least 1 unless encoder.kind is transformer, or features with encoder.hidden 0"
        require(allowed, "encoder.features", 0, must)
        must = "be {} unless encoder.kind is transformer"
        require(transformer or self.attention == "auto", "encoder.attention", self.attention, must.format("auto"))
        for name in ("autocast", "checkpointing", "compile"):
            require(transformer or not getattr(self, name), self._key(name), True, must.format("false"))
        require(transformer or self.lora == 0, "encoder.lora", self.lora, must.format("0"))
        must = "be false with encoder.dtype bfloat16, which computes in bfloat16 as it is"
        require(not self.autocast or self.dtype == "float32", "encoder.autocast", True, must)
        require(not transformer or self.hidden == 0, "encoder.hidden", self.hidden, "be 0 for a transformer")
        require(0 <= self.dropout < 1, "encoder.dropout", self.dropout, "be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Output(Checked):
    """The label model: a dense head of frequent labels and a sparse tail.

    fan_in: inputs each tail label reads; all of them, or 0, makes the tail dense
    group_size: tail labels that share their inputs
    block: inputs are read as whole aligned blocks of this many (16 = block-sparse)
    duplicates: inputs of a group are drawn with replacement, at first and in regrowth (HASTE's released code)
    inputs: of a group at first: random, or positives = those in which its labels' documents differ most from others
    head_ratio: part of the labels, the most frequent, that reads every feature
    grouping: how tail labels are put into groups
    regroup: part of all steps after which tail labels are put into groups anew, by what the encoder has learned, and \
take their weights along (0 = never)
    frequencies: documents that are counted to rank labels: train, or all (released HASTE: test labels leak)
    intermediate: width of a layer between encoder and output layer, which then reads it (0 = none)
    activation: of the intermediate layer; none makes it a bottleneck
    private_features: whether head and tail read their own features
    loss: bce gives probabilities, squared_hinge scores
    dtype: of the weights
    bias_init: prior = log odds of each label in train, zero
    """

    _section: ClassVar[str] = "output"
    fan_in: int = 128
    group_size: int = 16
    block: int = 1
    duplicates: bool = False
    inputs: Literal["random", "positives"] = "random"
    head_ratio: float = 0.1
    grouping: Literal["semantic", "frequency", "random"] = "semantic"
    regroup: float = 0.0
    frequencies: Literal["train", "all"] = "train"
    intermediate: int = 0
    activation: Literal["relu", "none"] = "relu"
    private_features: Literal["none", "slice", "projection"] = "none"
    loss: Literal["bce", "squared_hinge"] = "bce"
    dtype: Literal["float32", "bfloat16"] = "float32"
    bias_init: Literal["prior", "zero"] = "prior"

    def _check(self) -> None:
        self._at_least(0, "fan_in", "intermediate")
        self._at_least(1, "group_size", "block")
        require(0 <= self.head_ratio <= 1, "output.head_ratio", self.head_ratio, "be in [0, 1]")
        whole = self.fan_in % self.block == 0 and self.intermediate % self.block == 0
        require(whole, "output.block", self.block, "divide output.fan_in and output.intermediate")
        require(0 <= self.regroup < 1, "output.regroup", self.regroup, "be in [0, 1)")
        allowed = self.regroup == 0 or (self.grouping == "semantic" and self.block == 1 and not self.duplicates)
        must = "be 0 unless output.grouping is semantic, output.block 1 and output.duplicates false"
        require(allowed, "output.regroup", self.regroup, must)
        allowed = self.block == 1 or not self.duplicates
        require(allowed, "output.duplicates", self.duplicates, "be false with output.block above 1")
        whole = self.block == 1 and not self.duplicates and self.intermediate == 0 and self.private_features == "none"
        allowed = self.inputs == "random" or whole
        must = "be random with output.block, output.duplicates, output.intermediate or output.private_features"
        require(allowed, "output.inputs", self.inputs, must)


@dataclass(frozen=True, kw_only=True)
class LabelTexts(Checked):
    """What is learned from texts of labels; a label with a text then has weights without any training document too.

    With either, pairs of a training document and a label that the filter lists are learned as true.

    train: labels' texts are trained on too, each a document whose label is the one it describes
    share: part of the texts that an epoch passes over, others in every epoch
    init: weights start from the mean features of a label's documents and its text
    """

    _section: ClassVar[str] = "label_texts"
    train: bool = False
    share: float = 1.0
    init: bool = False

    def _check(self) -> None:
        require(0 < self.share <= 1, "label_texts.share", self.share, "be above 0, and 1 at most")

    @property
    def read(self) -> bool:
        """Whether the texts are needed at all."""
        return self.train or self.init


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
    fused: update weights inside the pass that computes the loss (least memory)
    """

    _section: ClassVar[str] = "optim.output"
    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    rarity: float = 0.0
    fused: bool = True

    def _check(self) -> None:
        self._at_least(0, "lr", "weight_decay")
        require(0 <= self.momentum < 1, "optim.output.momentum", self.momentum, "be in [0, 1)")
        allowed = self.name == "sgd" or self.momentum == 0
        require(allowed, "optim.output.momentum", self.momentum, "be 0 with optim.output.name adamw")
        require(0 <= self.rarity <= 1, "optim.output.rarity", self.rarity, "be in [0, 1]")


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
