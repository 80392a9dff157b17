"""Settings of the model: every one, what it means, its default and its limits."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from haste.config._checked import Checked, require


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
        shared = self.grouping == "semantic" and self.group_size > 1
        allowed = self.regroup == 0 or (shared and self.block == 1 and not self.duplicates)
        must = "be 0 unless output.grouping is semantic, output.group_size above 1, block 1 and duplicates false"
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

    With any, pairs of a training document and a label that the filter lists are learned as true.

    train: labels' texts are trained on too, each a document whose label is the one it describes
    share: part of the texts that an epoch passes over, others in every epoch
    init: weights start from the mean features of a label's documents and its text
    group: tail labels are grouped by their texts alone, those without one by their documents
    """

    _section: ClassVar[str] = "label_texts"
    train: bool = False
    share: float = 1.0
    init: bool = False
    group: bool = False

    def _check(self) -> None:
        require(0 < self.share <= 1, "label_texts.share", self.share, "be above 0, and 1 at most")

    @property
    def read(self) -> bool:
        """Whether the texts are needed at all."""
        return self.train or self.init or self.group
