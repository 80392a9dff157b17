"""What an encoder holds and computes: none, a bag of terms, dense layers, or a transformer. Bytes unless said.

Activations of a transformer with attention that keeps no (tokens, tokens) matrix, for every token and layer, with h
its width, i that of the inner layer and e the bytes of a number:

    e (8 h + 2 i) + 2 m h      m = bytes of a dropout mask's element: 1 on a GPU, e on a CPU

that is the inputs of the linear layers (h, h, h, i), query, key and value (3 h), the inputs of both layer norms (2 h)
and of the activation (i). With i = 4 h and e = 2 this is the 34 h of Korthikanti et al. (arXiv 2205.05198) less the
attention matrices. With gradient checkpointing every layer keeps its input, e h, and one layer at a time the rest.
A CPU has no such attention with dropout: there 12 T bytes a head are kept too, three float32 rows of T tokens, and
query, key and value in float32 instead of bfloat16 (6 h more).

In mixed precision e is 2 and weights, their gradients and the stream between layers are float32: 8 h more, for the
norms read float32 (4 h) and query, key and value each a bfloat16 copy of their own (4 h). The weights of the linear
layers have such copies too, from the forward to the backward pass, or with gradient checkpointing a layer at a time.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Given:
    """Given features, straight to the output layer or through dense layers.

    widths: of the layers, the inputs first; one number = no layer at all.
    element: bytes of a weight and of an activation: 4 = float32, 2 = bfloat16.
    state: bytes that the optimizer keeps for a weight; 8 = the two moments of AdamW in float32.
    """

    widths: tuple[int, ...]
    kind: str = "features"
    element: int = 4
    state: int = 8

    @property
    def parameters(self) -> int:
        """Numbers in the layers."""
        return sum((a + 1) * b for a, b in zip(self.widths, self.widths[1:], strict=False))

    def held(self) -> dict[str, float]:
        """Bytes from the first step to the last, by part."""
        return {
            "encoder weights": float(self.element * self.parameters),
            "encoder optimizer": float(self.state * self.parameters),
        }

    def activations(self, batch: int, device: str) -> float:
        """Held from the forward to the backward pass."""
        return self.element * batch * (self.widths[0] + 3.0 * sum(self.widths[1:]))

    def backward(self, batch: int, device: str) -> float:
        """Temporaries of the backward pass; the largest gradient is copied once, for its layout."""
        matrices = (a * b for a, b in zip(self.widths, self.widths[1:], strict=False))
        return self.element * (2.0 * batch * max(self.widths) + max(matrices, default=0))

    def gradients(self, batch: int) -> float:
        """Held from the backward pass to the update."""
        return float(self.element * self.parameters)

    def flop(self, batch: int) -> float:
        """Of one step."""
        return 6.0 * batch * self.parameters

    def traffic(self, batch: int) -> float:
        """Bytes a step must move."""
        return (4 * self.element + 2 * self.state) * self.parameters


@dataclass(frozen=True, kw_only=True)
class Bag(Given):
    """A weighted bag of terms: an embedding of which a batch updates some rows, and perhaps one dense layer.

    widths: of the embedding, then of the layer. num_inputs: terms. terms: of a document, on average.
    """

    num_inputs: int
    terms: float = 100.0
    kind: str = "bag"

    def _rows(self, batch: int) -> float:
        """Distinct terms of a batch if all are as frequent; fewer where some are frequent, as in text."""
        return self.num_inputs * -math.expm1(-batch * self.terms / self.num_inputs)

    @property
    def parameters(self) -> int:
        """Numbers in embedding and layer."""
        return self.num_inputs * self.widths[0] + self.widths[0] + self._dense

    @property
    def _dense(self) -> int:
        return sum((a + 1) * b for a, b in zip(self.widths, self.widths[1:], strict=False))

    def activations(self, batch: int, device: str) -> float:
        """Held from the forward to the backward pass."""
        return 12.0 * batch * sum(self.widths) + 20 * batch * self.terms

    def gradients(self, batch: int) -> float:
        """The embedding's is held in rows; twice, while they are added up."""
        return self.element * (2 * self._rows(batch) * self.widths[0] + self._dense)

    def flop(self, batch: int) -> float:
        """Of one step."""
        return 4.0 * batch * self.terms * self.widths[0] + 6.0 * batch * self._dense

    def traffic(self, batch: int) -> float:
        """Bytes a step must move."""
        return (4 * self.element + 2 * self.state) * (self._rows(batch) * self.widths[0] + self._dense)


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """A BERT-like encoder, trained in bfloat16 with Kahan-summed Adam whose moments are bfloat16 too.

    Args:
        layers, width, inner, vocabulary, positions, heads: of the model; a pooler is not counted.
        tokens: of a document.
        checkpointing: keep one activation a layer and compute the others again in the backward pass.
        element: bytes of a weight and of an activation: 2 = bfloat16, 4 = float32.
        autocast: weights are float32, products bfloat16 (mixed precision).
        state: bytes that the optimizer keeps for a weight; 6 = two moments and the compensation, all bfloat16.
        lora: rank of the adapters that are trained in place of the weights; 0 = all weights are trained.
    """

    kind: str
    layers: int
    width: int
    inner: int
    vocabulary: int
    positions: int = 512
    heads: int = 12
    tokens: int = 128
    checkpointing: bool = False
    element: int = 2
    autocast: bool = False
    state: int = 6
    lora: int = 0

    @property
    def computed(self) -> int:
        """Bytes of a number in a product."""
        return 2 if self.autocast else self.element

    @property
    def _matrices(self) -> int:
        """Numbers in the linear layers of one layer."""
        return 4 * self.width**2 + 2 * self.width * self.inner

    @property
    def parameters(self) -> int:
        """Numbers in embeddings and layers."""
        of_layer = self._matrices + 9 * self.width + self.inner
        return (self.vocabulary + self.positions + 4) * self.width + self.layers * of_layer

    @property
    def trained(self) -> int:
        """Numbers that have gradients: all, or those of adapters."""
        adapters = self.lora * self.layers * (4 * 2 * self.width + 2 * (self.width + self.inner))
        return adapters or self.parameters

    def held(self) -> dict[str, float]:
        """Bytes from the first step to the last, by part."""
        return {
            "encoder weights": float(self.element * (self.parameters + (self.trained if self.lora else 0))),
            "encoder optimizer": float(self.state * self.trained),
        }

    def layer_activations(self, device: str) -> float:
        """Held of one layer for every token."""
        kept = self.computed * (8 * self.width + 2 * self.inner) + (8 * self.width if self.autocast else 0)
        if device != "cpu":
            return kept + 2 * self.width
        matrices = 12.0 * self.heads * self.tokens + (6 * self.width if self.computed == 2 else 0)
        return kept + 2 * self.computed * self.width + matrices

    def _copies(self, layers: int) -> float:
        """Held of the weights of so many layers beside those that are trained."""
        return 2.0 * layers * self._matrices if self.autocast else 0.0

    def activations(self, batch: int, device: str) -> float:
        """Held from the forward to the backward pass."""
        per_token = self.layers * (self.element * self.width if self.checkpointing else self.layer_activations(device))
        embeddings = 2 * self.element * self.width + 3 * 8  # before its norm and after dropout; token numbers
        return batch * self.tokens * (per_token + embeddings) + self._copies(0 if self.checkpointing else self.layers)

    def backward(self, batch: int, device: str) -> float:
        """Temporaries: two gradients of the inner width, and a layer computed again under checkpointing."""
        again = self.layer_activations(device) if self.checkpointing else 0.0
        copies = self._copies(1 if self.checkpointing else 0)
        return batch * self.tokens * (again + 2 * self.computed * self.inner) + copies

    def gradients(self, batch: int) -> float:
        """Held from the backward pass to the update."""
        return float(self.element * self.trained)

    def flop(self, batch: int) -> float:
        """Of one step: 2 for every weight and token, 4 tokens x width in attention; backward twice, once for LoRA."""
        forward = self.layers * batch * self.tokens * (2 * self._matrices + 4 * self.tokens * self.width)
        backward = 1.0 if self.lora else 2.0  # frozen weights have no gradients
        return (1.0 + backward + self.checkpointing) * forward

    def traffic(self, batch: int) -> float:
        """Bytes a step must move: weights, gradients and state, activations written and read."""
        kept = self.activations(batch, "cuda")
        frozen = self.parameters if self.lora else 0  # read forward and backward
        return self.element * (4 * self.trained + 2 * frozen) + 2 * self.state * self.trained + 2 * kept


Encoder = Given | Transformer

MODELS: Mapping[str, Transformer] = MappingProxyType(
    {
        "bert-base": Transformer(kind="bert-base", layers=12, width=768, inner=3072, vocabulary=30_522),
        "distilbert": Transformer(kind="distilbert", layers=6, width=768, inner=3072, vocabulary=30_522),
        "distilroberta": Transformer(kind="distilroberta", layers=6, width=768, inner=3072, vocabulary=50_265),
        "roberta-base": Transformer(kind="roberta-base", layers=12, width=768, inner=3072, vocabulary=50_265),
        "roberta-large": Transformer(
            kind="roberta-large", layers=24, width=1024, inner=4096, vocabulary=50_265, heads=16
        ),
        "minilm-l6": Transformer(kind="minilm-l6", layers=6, width=384, inner=1536, vocabulary=30_522),
    }
)


def transformer(name: str, *, tokens: int = 128, checkpointing: bool = False) -> Transformer:
    """Return a known model.

    Raises:
        ValueError: it is not known.
    """
    if name not in MODELS:
        raise ValueError(f"encoder ({name}) must be one of none, {', '.join(MODELS)}")
    return replace(MODELS[name], tokens=tokens, checkpointing=checkpointing)
