"""The fixed fan-in output layer."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from haste import ops, topology
from haste.ops._losses import check_loss
from haste.ops._step import check_positives
from haste.optim._rule import Role, RuleOptimizer
from haste.rewire import check_settings, rewire_links

Positives: TypeAlias = tuple[Tensor, Tensor]
_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


class FanInLinear(nn.Module):
    """A linear layer in which every group of S labels reads F of the H inputs.

        logits[b, k S + s] = sum_f features[b, indices[k, f]] weight[k, s, f] + bias[k, s]

    Parameters weight (G, S, F) and bias (G, S) are padded to whole groups; padded rows are zero, in no loss, in no
    top-k, and receive no update. Buffer indices (G, F), sorted and unique within a row, is absent where F = H.

    Args:
        in_features: H.
        num_labels: L.
        fan_in: F; None (= H) is the dense layer.
        group_size: S, labels that share inputs; 1 is plain fixed fan-in.
        loss: ``bce`` or ``squared_hinge``, of `loss` and `step`.
        dtype: of the weight: float32, bfloat16 (written with stochastic rounding by `haste.optim`), or float64 for
            checks. The bias is float32 (float64).
        device: where the parameters live.
        seed, layer: of inputs and initial weights; layers of one model take different numbers.
        block: inputs are read and regrown as whole aligned blocks of this many (16 is the block-sparse baseline).
        duplicates: inputs of a group are drawn with replacement, in regrowth too (HASTE's released code).

    Raises:
        ValueError: a size out of range.  TypeError: a dtype not listed.

    HASTE, arXiv 2606.01117, section 3; fixed fan-in (S = 1), arXiv 2306.03725.
    """

    indices: Tensor | None
    regrown: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_labels: int,
        fan_in: int | None = None,
        group_size: int = 32,
        *,
        loss: str = "bce",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        seed: int = 0,
        layer: int = 0,
        block: int = 1,
        duplicates: bool = False,
    ) -> None:
        super().__init__()
        for name, value in {"in_features": in_features, "num_labels": num_labels, "group_size": group_size}.items():
            if value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1")
        if num_labels >= 2**31:
            raise ValueError(f"num_labels ({num_labels}) must be below 2^31")
        if dtype not in _DTYPES:
            raise TypeError(f"dtype ({dtype}) must be one of {', '.join(map(str, _DTYPES))}")
        fan_in = in_features if fan_in is None else fan_in
        topology.check_fan_in(fan_in, in_features)
        check_loss(loss)
        self.in_features, self.num_labels, self.fan_in, self.group_size = in_features, num_labels, fan_in, group_size
        self.loss_name, self.layer, self._failure = loss, layer, ""
        self.block, self.duplicates = block, duplicates
        groups = -(-num_labels // group_size)
        bias_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.weight = nn.Parameter(torch.empty((groups, group_size, fan_in), dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.zeros((groups, group_size), dtype=bias_dtype, device=device))
        dense = fan_in == in_features
        topology.initial_weights(
            self.weight.data, dense=dense, seed=seed, layer=layer, first_row=0, num_labels=num_labels
        )
        indices = regrown = None
        if not dense:
            sizes = in_features, groups, fan_in
            indices = topology.draw_indices(
                *sizes, seed=seed, layer=layer, block=block, duplicates=duplicates, device=device
            )
            regrown = torch.zeros_like(indices, dtype=torch.bool)
        self.register_buffer("indices", indices)
        self.register_buffer("regrown", regrown)
        self._mark()

    @property
    def num_groups(self) -> int:
        """G, the last group perhaps partly padded."""
        return self.weight.shape[0]

    @property
    def sparsity(self) -> float:
        """1 - fan_in / in_features."""
        return 1 - self.fan_in / self.in_features

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, num_labels={self.num_labels}, fan_in={self.fan_in}, "
            f"group_size={self.group_size}, loss={self.loss_name}, dtype={self.weight.dtype}"
        )

    def initialize_bias(self, counts: np.ndarray, num_points: int) -> None:
        """Start the bias at what the label frequencies say: log odds for bce, -1 for squared hinge.

            bias = log((n + 0.5) / (N - n + 0.5))

        Args:
            counts: (num_labels,) positives n of every row.
            num_points: training points N.

        Raises:
            ValueError: not as many counts as labels, or a count beyond num_points.
        """
        n = torch.as_tensor(np.asarray(counts), dtype=torch.float64)
        if len(n) != self.num_labels:
            raise ValueError(f"counts ({len(n)} values) must hold num_labels = {self.num_labels} values")
        if n.min() < 0 or n.max() > num_points:
            found = f"{n.min():.0f} to {n.max():.0f}"
            raise ValueError(f"counts ({found}) must lie between 0 and num_points ({num_points})")
        odds = torch.log((n + 0.5) / (num_points - n + 0.5)) if self.loss_name == "bce" else torch.full_like(n, -1.0)
        self.bias.data.view(-1)[: self.num_labels] = odds.to(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, num_labels), float32; differentiable. For small L: it has a column for every label."""
        self._check_width(features)
        return ops.fan_in(features, self.weight, self.bias, self.indices, self.num_labels)

    def loss(self, features: Tensor, positives: Positives, reduction: str = "sum") -> Tensor:
        """Return the loss over all labels; differentiable, chunked, never (B, L).

        Args:
            features: (B, H), floating.
            positives: (offsets (B + 1,), labels (P,)) integers, CSR over the batch, labels distinct within a row.
            reduction: ``sum`` over labels and batch (Renée, HASTE), or ``mean``, that divided by B.

        Returns:
            0-dim float32, accumulated in float32 within and float64 between groups.

        Raises:
            ValueError, TypeError: shapes, values or dtypes that do not fit, each named.
        """
        self._check_width(features)
        operands = (features, self.weight, self.bias, self.indices, positives)
        value = ops.loss(*operands, num_labels=self.num_labels, loss=self.loss_name)
        return value * _scale(reduction, len(features))

    def step(self, features: Tensor, positives: Positives, update: RuleOptimizer, reduction: str = "sum") -> Tensor:
        """Train on a batch in one fused pass; return the loss, whose ``backward`` gives dloss/dfeatures only.

        The weights are updated when this returns, by ``update``'s rule, with the gradients that
        ``loss(...).backward()`` would leave in ``.grad``; neither logits nor weight gradients are ever held.

        Args:
            features, positives, reduction: as `loss`.
            update: `haste.optim.SGD` or `AdamW` over this layer's parameters; its state and step count advance.

        Returns:
            0-dim float32, before the update.

        Raises:
            ValueError: as `loss`, or NaN and infinities in features (CPU); nothing is written then.
            RuntimeError: ``weight.grad`` present, gradients disabled, called from a backward pass (activation
                checkpointing), more than one process, or the layer failed in an earlier step.
        """
        self._check_step(update)
        self._check_width(features)
        scale = _scale(reduction, len(features))
        weight, bias = update.arguments(self.weight), update.arguments(self.bias)
        operands = (features, self.weight, self.bias, self.indices, positives)
        with self._unusable_on_failure():
            value = ops.step(
                *operands,
                num_labels=self.num_labels,
                lr=weight.lr,
                bias_lr=bias.lr,
                step=weight.step,
                rule=weight.rule,
                hyper=weight.hyper,
                bias_hyper=bias.hyper,
                weight_state=weight.state,
                bias_state=bias.state,
                rates=weight.rates,
                loss=self.loss_name,
                scale=scale,
                seed=weight.seed,
                layer=weight.role.layer,
                first_row=weight.role.first_row,
            )
        update.advance(self.weight)
        update.advance(self.bias)
        return value

    def topk(self, features: Tensor, k: int, exclude: Positives | None = None) -> tuple[Tensor, Tensor]:
        """Return the k best labels of every row: higher score first, then lower label.

        Args:
            features: (B, H).
            k: labels to return.
            exclude: CSR (offsets, labels) over the batch of labels that may not be returned.

        Returns:
            scores (B, k) float32 logits and labels (B, k) int64; -inf and -1 where there are fewer than k.

        Raises:
            ValueError: a score is NaN.
        """
        return ops.unpack_keys(self.topk_keys(features, k, exclude))

    def topk_keys(
        self, features: Tensor, k: int, exclude: Positives | None = None, row_labels: Tensor | None = None
    ) -> Tensor:
        """Return `haste.ops.topk` keys (B, k), of ``row_labels`` where rows are not labels."""
        self._check_width(features)
        if exclude is not None:
            exclude = check_positives(exclude, len(features), self.num_labels)
        return ops.topk(
            features,
            self.weight,
            self.bias,
            self.indices,
            num_labels=self.num_labels,
            k=k,
            exclude=exclude,
            row_labels=row_labels,
        )

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
        """Prune the weakest links and regrow as many (`haste.rewire`), in place.

        Args:
            fraction: of the links, to replace; at most H - F per group.
            optimizer: whose state of ``weight`` moves along (ours or torch's): first moments of new links are zero,
                second moments the mean over the label's surviving links. So does ``weight.grad``, zero at new links.
            step: of the training, completed so far; another one for each call, for it decides what is drawn at random.
            regrow: ``random`` (SET) or ``gradient`` (RigL: largest mean |dloss/dweight| on ``batch``).
            batch: (features, positives) for ``gradient``.
            scope: lowest fraction per ``group``, or over all groups, ``global``.
            threshold: prune all links of mean |weight| below it instead (Spartex).
            init: new weights, ``zero`` or ``uniform``.
            state: of new links: ``mean``, as above; ``zero``, second moments too; ``keep``, that of the old link.
            seed: of the random numbers.

        Returns:
            fraction, survivors, inputs_used, inputs_unused (`haste.rewire.rewire_links`).

        Raises:
            ValueError: a setting that does not exist, no batch for ``gradient``, an optimizer that does not hold the
                weight, or the layer is dense.
        """
        self.check_usable()
        check_settings(fraction, regrow, scope, threshold, init, state)
        if self.indices is None or self.regrown is None:
            raise ValueError(f"fan_in ({self.fan_in}) must be below in_features to rewire; this layer is dense")
        if regrow == "gradient" and batch is None:
            raise ValueError("regrow (gradient) needs batch=(features, positives); pass one, or use regrow='random'")
        if regrow == "gradient" and (self.block > 1 or self.duplicates):
            raise ValueError("regrow (gradient) must be random for a layer with block above 1 or duplicates")
        tensors: dict[str, Any] = {"grad": self.weight.grad}
        if optimizer is not None:
            if not any(p is self.weight for group in optimizer.param_groups for p in group["params"]):
                raise ValueError("optimizer must hold the weight of this layer; pass the one that trains it, or none")
            tensors |= optimizer.state.get(self.weight, {})
        moved = {n: t for n, t in tensors.items() if isinstance(t, Tensor) and t.shape == self.weight.shape}

        def candidates(most: int) -> Tensor:
            assert batch is not None
            assert self.indices is not None
            self._check_width(batch[0])
            positives = check_positives(batch[1], len(batch[0]), self.num_labels)
            operands = (batch[0], self.weight, self.bias, self.indices, positives)
            return ops.regrow_gradient(*operands, num_labels=self.num_labels, most=most, loss=self.loss_name)

        with self._unusable_on_failure():
            return rewire_links(
                self.weight.data,
                self.indices,
                self.regrown,
                in_features=self.in_features,
                num_labels=self.num_labels,
                fraction=fraction,
                regrow=regrow,
                scope=scope,
                threshold=threshold,
                init=init,
                candidates=candidates,
                state=moved,
                seed=seed,
                layer=self.layer,
                step=step,
                block=self.block,
                duplicates=self.duplicates,
                new_state=state,
            )

    def _check_step(self, update: RuleOptimizer) -> None:
        self.check_usable()
        if not isinstance(update, RuleOptimizer):
            raise TypeError(
                f"update ({type(update).__name__}) must be haste.optim.SGD or haste.optim.AdamW; "
                "with any other optimizer use loss(...).backward()"
            )
        for param in (self.weight, self.bias):
            update.group_of(param)
        if self.weight.grad is not None or self.bias.grad is not None:
            raise RuntimeError(
                "step must not meet a gradient in weight.grad: it would be lost; call update.zero_grad() first"
            )
        if not torch.is_grad_enabled():
            raise RuntimeError("step must run with gradients enabled; use topk to predict")
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "step must not run inside a backward pass: activation checkpointing would train the layer twice; "
                "keep the output layer outside the checkpointed part"
            )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            ranks = torch.distributed.get_world_size()
            if ranks > 1:
                raise RuntimeError(
                    f"step must not run on {ranks} replicas: they would diverge; train with loss() there"
                )

    def _check_width(self, features: Tensor) -> None:
        if features.dim() != 2 or features.shape[1] != self.in_features:
            expected = f"(batch, {self.in_features}), in_features of this layer"
            raise ValueError(f"features {tuple(features.shape)} must have shape {expected}")

    @contextlib.contextmanager
    def _unusable_on_failure(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError):
            raise  # of the checks before anything is written
        except BaseException as error:
            self._failure = f"{type(error).__name__}: {error}"
            raise

    def check_usable(self) -> None:
        """Raise RuntimeError if a step or rewiring of this layer failed half-way: part of its weights is updated."""
        if self._failure:
            raise RuntimeError(
                f"this layer must not be used any more: a step or rewiring failed half-way ({self._failure}); "
                "load the last checkpoint"
            )

    def _mark(self) -> None:
        self.weight.haste_role = Role(layer=self.layer)  # type: ignore[attr-defined]
        self.bias.haste_role = Role(layer=self.layer, decayed=False)  # type: ignore[attr-defined]

    def _apply(self, fn: Any, recurse: bool = True) -> "FanInLinear":
        super()._apply(fn, recurse)
        self._mark()  # a conversion may make new parameters
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mark()  # a copy of a parameter loses its attributes

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._mark()  # assign=True makes new parameters
        if all(prefix + name in state_dict for name, _ in (*self.named_parameters(), *self.named_buffers())):
            self._failure = ""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.check_usable()
        super()._save_to_state_dict(destination, prefix, keep_vars)


def _scale(reduction: str, batch: int) -> float:
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction ({reduction}) must be sum or mean")
    return 1.0 if reduction == "sum" else 1.0 / max(1, batch)
