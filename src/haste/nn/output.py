"""The output layer of a model: a dense head of frequent labels and a sparse tail, in label ids."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from haste import ops
from haste.nn.linear import FanInLinear, Positives
from haste.nn.pairs import pair_logits
from haste.ops._step import CheckedPositives, check_finite, check_positives
from haste.optim._rule import RuleOptimizer

PRIVATE_FEATURES = ("none", "slice", "projection")
ACTIVATIONS = ("relu", "none")


class HeadTail(nn.Module):
    """Two fan-in layers side by side: the most frequent labels dense, the rest group-shared.

    Rows 0 .. num_head_labels - 1 are the head, the others the tail; ``label_order`` says which label a row is.
    Positives in and top-k out are labels.

    Args:
        in_features: H, width of the features.
        num_labels: L.
        num_head_labels: labels of the dense head; 0 is a pure `FanInLinear`, L a dense layer.
        fan_in, group_size, loss, dtype, device, seed, block, duplicates: of the tail, as `FanInLinear`; fan_in 0 is a
            dense tail.
        label_order: (L,) label of every row, most frequent first; default the identity.
        private_features: ``none``: head and tail read all features; ``slice``: the head the second half, the tail the
            first (HASTE's released setting); ``projection``: each its own linear map of them (the paper's text).
        dropout: on what each reads; head and tail share one draw where private_features is ``none``. With an
            intermediate layer, on what that reads instead.
        intermediate: width H2 of a layer ``activation(Linear(H, H2))`` that head and tail then read; 0 for none. Wide
            with ``relu`` it is Spartex's; as narrow as a label's fan_in, with ``none``, the dense bottleneck.
        activation: ``relu`` or ``none``.

    HASTE, arXiv 2606.01117; Spartex, arXiv 2411.03171.
    """

    label_order: Tensor
    row_of_label: Tensor

    def __init__(
        self,
        in_features: int,
        num_labels: int,
        *,
        num_head_labels: int,
        fan_in: int,
        group_size: int,
        label_order: Tensor | None = None,
        private_features: str = "none",
        dropout: float = 0.0,
        loss: str = "bce",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        seed: int = 0,
        block: int = 1,
        duplicates: bool = False,
        intermediate: int = 0,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if not 0 <= num_head_labels <= num_labels:
            raise ValueError(f"num_head_labels ({num_head_labels}) must lie between 0 and num_labels ({num_labels})")
        if private_features not in PRIVATE_FEATURES:
            raise ValueError(f"private_features ({private_features}) must be one of {', '.join(PRIVATE_FEATURES)}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation ({activation}) must be one of {', '.join(ACTIVATIONS)}")
        if intermediate < 0:
            raise ValueError(f"intermediate ({intermediate}) must be at least 0; 0 is no such layer")
        read = intermediate or in_features
        if private_features == "slice" and read % 2:
            name = "intermediate" if intermediate else "in_features"
            raise ValueError(f"{name} ({read}) must be even for private_features: slice")
        self.in_features, self.num_labels, self.num_head_labels = in_features, num_labels, num_head_labels
        self.private_features, self.dropout, self.activation = private_features, dropout, activation
        # A dictionary here takes, in the next backward pass, the norm of the gradient that head and tail send back.
        self.gradient_norms: dict[str, Tensor] | None = None
        width = read // 2 if private_features == "slice" else read
        self.intermediate = self.head_projection = self.tail_projection = None
        generator = torch.Generator().manual_seed(seed)
        if private_features == "projection":
            self.head_projection = _projection(read, read, generator, device)
            self.tail_projection = _projection(read, read, generator, device)
        if intermediate:
            self.intermediate = _projection(in_features, intermediate, generator, device)
        self.head = self.tail = None
        if num_head_labels:
            self.head = FanInLinear(
                width,
                num_head_labels,
                None,
                group_size,
                loss=loss,
                dtype=dtype,
                device=device,
                seed=seed,
                layer=0,
            )
        if num_head_labels < num_labels:
            self.tail = FanInLinear(
                width,
                num_labels - num_head_labels,
                fan_in or None,
                group_size,
                loss=loss,
                dtype=dtype,
                device=device,
                seed=seed,
                layer=1,
                block=block,
                duplicates=duplicates,
            )
        order = torch.arange(num_labels) if label_order is None else torch.as_tensor(label_order).long()
        self.register_buffer("label_order", order.clone().to(device))
        self.register_buffer("row_of_label", torch.empty_like(self.label_order), persistent=False)
        self.set_label_order(order)
        self.register_load_state_dict_post_hook(_set_loaded_order)

    def set_label_order(self, label_order: Tensor) -> None:
        """Say which label every row is; the weights of the rows stay.

        Raises:
            ValueError: not a permutation of the labels.
        """
        if self.label_order.is_meta:
            return
        order = torch.as_tensor(label_order).to(self.label_order.device)
        inverse = torch.full_like(self.label_order, -1)
        if order.shape == inverse.shape and order.min() >= 0 and order.max() < self.num_labels:
            inverse[order] = torch.arange(self.num_labels, device=order.device)
        if order.shape != inverse.shape or (inverse < 0).any():
            raise ValueError(f"label_order must be a permutation of the {self.num_labels} labels")
        self.label_order.copy_(order)
        self.row_of_label.copy_(inverse)

    def initialize_bias(self, counts: np.ndarray, num_points: int) -> None:
        """Start the biases from the label frequencies: counts (L,) by label (see `FanInLinear.initialize_bias`)."""
        if len(counts) != self.num_labels:
            raise ValueError(f"counts ({len(counts)} values) must hold num_labels = {self.num_labels} values")
        by_row = np.asarray(counts)[self.label_order.cpu().numpy()]
        if self.head is not None:
            self.head.initialize_bias(by_row[: self.num_head_labels], num_points)
        if self.tail is not None:
            self.tail.initialize_bias(by_row[self.num_head_labels :], num_points)

    def set_rates(self, update: RuleOptimizer, rates: Tensor) -> None:
        """Give the weights of every label a learning rate of their own: lr * rates[label], rates (L,) by label.

        They go with the rows (`haste.optim.SGD.set_rates`): call it after `set_label_order`.
        """
        if rates.shape != (self.num_labels,):
            raise ValueError(f"rates {tuple(rates.shape)} must hold num_labels = {self.num_labels} values")
        by_row = rates.to(self.label_order.device)[self.label_order]
        parts = by_row.split([layer.num_labels for layer in self.layers()])
        for layer, part in zip(self.layers(), parts, strict=True):
            padded = part.new_ones(layer.num_groups * layer.group_size)
            padded[: layer.num_labels] = part
            update.set_rates(layer.weight, padded)

    def layers(self) -> list[FanInLinear]:
        """Return the layers that exist: head, tail."""
        return [layer for layer in (self.head, self.tail) if layer is not None]

    def layer_parameters(self) -> Iterator[nn.Parameter]:
        """Yield weights and biases of head and tail: what ``update`` holds."""
        for layer in self.layers():
            yield from layer.parameters()

    def projection_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of projections and intermediate layer, which train with the encoder."""
        for projection in (self.head_projection, self.tail_projection, self.intermediate):
            if projection is not None:
                yield from projection.parameters()

    def split_features(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return what head and tail read, (B, H), (B, H2) or half of it, dropout applied in training."""
        dropout = self.dropout
        if self.intermediate is not None:
            features = self.intermediate(nn.functional.dropout(features, dropout, self.training))
            features, dropout = torch.relu(features) if self.activation == "relu" else features, 0.0
        if self.private_features == "none":
            shared = self._as_multiplied(nn.functional.dropout(features, dropout, self.training))
            return shared, shared
        if self.head_projection is not None and self.tail_projection is not None:
            head, tail = self.head_projection(features), self.tail_projection(features)
        else:
            tail, head = features.chunk(2, dim=1)
        head, tail = (nn.functional.dropout(part, dropout, self.training) for part in (head, tail))
        return self._as_multiplied(head), self._as_multiplied(tail)

    def _as_multiplied(self, features: Tensor) -> Tensor:
        """Return features in the dtype that a GPU multiplies at full speed with weights of ours."""
        if features.is_cuda and self.layers()[0].weight.dtype == torch.bfloat16:
            return features.to(torch.bfloat16)
        return features

    def split_labels(self, labels: Positives, batch: int) -> tuple[Positives, Positives]:
        """Return CSR labels of a batch as (head rows, tail rows)."""
        offsets, ids = check_positives(labels, batch, self.num_labels)
        if ids.device.type == "cpu":
            rows = self.row_of_label[ids]
            in_head = rows < self.num_head_labels
            before = torch.nn.functional.pad(in_head.cumsum(0), (1, 0))[offsets]
            head = CheckedPositives(before, rows[in_head])
            return head, CheckedPositives(offsets - before, rows[~in_head] - self.num_head_labels)
        held = torch.arange(len(ids), device=ids.device) < offsets[-1]
        rows = self.row_of_label[torch.where(held, ids, 0)]
        return split_rows(offsets, rows, held, self.num_head_labels)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, L) by label, float32; differentiable. For small L: it has a column for every label."""
        parts = zip((self.head, self.tail), self.split_features(features), strict=True)
        rows = torch.cat([layer(x) for layer, x in parts if layer is not None], dim=1)
        return rows[:, self.row_of_label]

    def loss(self, features: Tensor, positives: Positives, reduction: str = "sum") -> Tensor:
        """Return the loss over all labels, as `FanInLinear.loss`; positives are labels."""
        parts = self.split_features(features)
        return self._sum(parts, positives, lambda layer, x, p: layer.loss(x, p, reduction))

    def step(self, features: Tensor, positives: Positives, update: RuleOptimizer, reduction: str = "sum") -> Tensor:
        """Train on a batch in one fused pass a layer, as `FanInLinear.step`; positives are labels."""
        for layer in self.layers():
            layer._check_step(update)
        parts = self.split_features(features)
        for part in parts:
            check_finite(part)  # of both layers, before one of them is updated
        return self._sum(parts, positives, lambda layer, x, p: layer.step(x, p, update, reduction))

    def watched(self, features: Tensor, name: str) -> Tensor:
        """Return the features; where `gradient_norms` is a dictionary, their gradient's norm goes there when known.

        The norm is the mean over the documents, (B, n) to 0-dim float32.
        """
        norms = self.gradient_norms
        if norms is None or not features.requires_grad:
            return features

        def note(gradient: Tensor) -> None:
            norms[name] = torch.linalg.vector_norm(gradient, dim=1, dtype=torch.float32).mean()

        view = features.view_as(features)
        view.register_hook(note)
        return view

    def _sum(
        self,
        features: tuple[Tensor, Tensor],
        positives: Positives,
        of_layer: Callable[[FanInLinear, Tensor, Positives], Tensor],
    ) -> Tensor:
        features = self.watched(features[0], "head"), self.watched(features[1], "tail")
        split = self.split_labels(positives, len(features[0]))
        parts = zip((self.head, self.tail), features, split, strict=True)
        values = [of_layer(layer, x, p) for layer, x, p in parts if layer is not None]
        return values[0] if len(values) == 1 else values[0] + values[1]

    def topk(self, features: Tensor, k: int, exclude: Positives | None = None) -> tuple[Tensor, Tensor]:
        """Return (scores, labels) of the k best labels of every row, as `FanInLinear.topk`; exclude holds labels."""
        excluded: tuple[Positives | None, Positives | None] = (None, None)
        if exclude is not None:
            excluded = self.split_labels(exclude, len(features))
        cut = self.num_head_labels
        row_labels = (self.label_order[:cut], self.label_order[cut:])
        parts = zip((self.head, self.tail), self.split_features(features), excluded, row_labels, strict=True)
        keys = [layer.topk_keys(x, k, e, labels) for layer, x, e, labels in parts if layer is not None]
        merged = keys[0] if len(keys) == 1 else torch.cat(keys, dim=1).topk(k, dim=1).values
        return ops.unpack_keys(merged)

    @torch.no_grad()
    def scores(self, features: Tensor, pairs: Positives) -> Tensor:
        """Return the logits of chosen labels, (P,) float32, as `topk` scores them up to the order of summation.

        Args:
            features: (B, H).
            pairs: CSR (offsets (B + 1,), labels (P,)) of the labels of every document.
        """
        offsets, labels = pairs
        points = torch.repeat_interleave(torch.arange(len(features), device=labels.device), offsets.diff())
        rows = self.row_of_label[labels]
        out = torch.empty(len(rows), dtype=torch.float32, device=features.device)
        in_head = rows < self.num_head_labels
        parts = zip((self.head, self.tail), self.split_features(features), (in_head, ~in_head), strict=True)
        for layer, x, chosen in parts:
            if layer is not None:
                first = 0 if layer is self.head else self.num_head_labels
                out[chosen] = pair_logits(layer, x, points[chosen], rows[chosen] - first)
        return out

    def rewire(
        self,
        fraction: float,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        step: int,
        regrow: str = "random",
        batch: tuple[Tensor, Positives] | None = None,
        scope: str = "group",
        threshold: float | None = None,
        init: str = "zero",
        state: str = "mean",
        seed: int = 0,
    ) -> dict[str, float]:
        """Rewire the tail, as `FanInLinear.rewire`; batch holds the features of this module and labels.

        Raises:
            ValueError: there is no sparse tail.
        """
        if self.tail is None:
            raise ValueError(f"num_head_labels ({self.num_head_labels}) must be below num_labels to rewire a tail")
        if batch is not None:
            features, positives = batch
            batch = (self.split_features(features)[1], self.split_labels(positives, len(features))[1])
        return self.tail.rewire(
            fraction,
            optimizer,
            regrow=regrow,
            batch=batch,
            scope=scope,
            threshold=threshold,
            init=init,
            state=state,
            seed=seed,
            step=step,
        )


def split_rows(offsets: Tensor, rows: Tensor, held: Tensor, cut: int) -> tuple[Positives, Positives]:
    """Split CSR rows at ``cut`` into (below, from cut on, counted from there), without a word to the host.

    Only the device knows how many go where, so both parts keep the capacity of the whole; ``held`` says which of the
    rows count.
    """
    below = held & (rows < cut)
    above = held & ~below
    before = torch.nn.functional.pad(below.cumsum(0), (1, 0))[offsets]
    first, second = (rows[torch.argsort((~chosen).to(torch.uint8), stable=True)] for chosen in (below, above))
    return CheckedPositives(before, first), CheckedPositives(offsets - before, second - cut)


def _set_loaded_order(module: HeadTail, _: object) -> None:
    module.set_label_order(module.label_order)


def _projection(inputs: int, outputs: int, generator: torch.Generator, device: torch.device | str | None) -> nn.Linear:
    projection = nn.Linear(inputs, outputs, device=device)
    bound = inputs**-0.5
    for parameter in projection.parameters():
        drawn = torch.empty(parameter.shape, device="cpu").uniform_(-bound, bound, generator=generator)
        parameter.data.copy_(drawn)
    return projection
