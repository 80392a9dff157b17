"""The loss of a batch with CSR positives, and the fused pass that updates the weights as it goes.

Per chunk of groups, with x gathered, z the logits, g = dloss/dlogits (see `haste.ops._losses`):

    grad_features[:, indices[k]] += g_k @ weight_k         with the old weights
    weight_k = round(rule(weight_k, g_k^T x_k));   bias_k = rule(bias_k, sum_b g_k)

Every row of the weights may have a rate (see `haste.ops._update`). Biases have none: they start at the log odds of
their labels, so those of rare labels have nothing to catch up on, and large steps would only throw them about.

Nothing of size (B, L) exists; `loss` recomputes the logits in its backward, `step` holds no weight gradient either.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from haste.ops._chunks import Chunk, SortedPositives, chunks, groups_per_chunk
from haste.ops._fan_in import check_operands, transpose_features, untranspose
from haste.ops._library import define
from haste.ops._losses import check_loss, loss_and_gradient
from haste.ops._random import signed
from haste.ops._update import check_rates, check_rule, update_tile

Positives = tuple[Tensor, Tensor]


class CheckedPositives(NamedTuple):
    """Positives that `check_positives` has seen, or that were made from such."""

    offsets: Tensor
    labels: Tensor


def _sort_positives(
    features_t: Tensor, weight: Tensor, indices: Tensor | None, offsets: Tensor, labels: Tensor
) -> SortedPositives:
    return SortedPositives(offsets, labels, weight, groups_per_chunk(weight, features_t.shape[1], indices))


def _loss_of(chunk: Chunk, positives: SortedPositives, num_labels: int, loss: str) -> tuple[Tensor, Tensor]:
    num_rows = min(num_labels, chunk.stop * chunk.group_size) - chunk.first_row
    return loss_and_gradient(chunk.logits(), *positives.of(chunk), num_rows, loss, chunk.workspace)


def _loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    indices: Tensor | None,
    offsets: Tensor,
    labels: Tensor,
    num_labels: int,
    loss: str,
) -> Tensor:
    features_t = transpose_features(features)
    positives = _sort_positives(features_t, weight, indices, offsets, labels)
    total = torch.zeros((), dtype=torch.float64, device=features.device)
    for chunk in chunks(features_t, weight, bias, indices):
        total += _loss_of(chunk, positives, num_labels, loss)[0]
    return total.to(features_t.dtype)


def _loss_fake(features: Tensor, *_: object) -> Tensor:
    return features.new_empty((), dtype=torch.float64 if features.dtype == torch.float64 else torch.float32)


def _loss_backward(
    scale: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    indices: Tensor | None,
    offsets: Tensor,
    labels: Tensor,
    num_labels: int,
    loss: str,
) -> tuple[Tensor, Tensor, Tensor]:
    features_t = transpose_features(features)
    positives = _sort_positives(features_t, weight, indices, offsets, labels)
    grad_features = torch.zeros_like(features_t)
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(bias)
    for chunk in chunks(features_t, weight, bias, indices):
        g = _loss_of(chunk, positives, num_labels, loss)[1]
        g.mul_(scale)
        chunk.add_grad_features(g, grad_features)
        grad_weight[chunk.start : chunk.stop] = chunk.grad_weight(g)
        grad_bias[chunk.start : chunk.stop] = g.sum(-1)
    return untranspose(grad_features, features.dtype), grad_weight, grad_bias


def _loss_backward_fake(
    scale: Tensor, features: Tensor, weight: Tensor, bias: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(features, memory_format=torch.contiguous_format),
        torch.empty_like(weight),
        torch.empty_like(bias),
    )


def _step(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight_state: list[Tensor],
    bias_state: list[Tensor],
    indices: Tensor | None,
    offsets: Tensor,
    labels: Tensor,
    lr: Tensor,
    bias_lr: Tensor,
    step: Tensor,
    num_labels: int,
    loss: str,
    scale: float,
    rule: str,
    hyper: list[float],
    bias_hyper: list[float],
    seed: int,
    layer: int,
    first_row: int,
    rates: Tensor | None = None,
    features_too: bool = True,
) -> tuple[Tensor, Tensor]:
    features_t = transpose_features(features)
    positives = _sort_positives(features_t, weight, indices, offsets, labels)
    grad_features = torch.zeros_like(features_t) if features_too else features.new_empty(0)
    total = torch.zeros((), dtype=torch.float64, device=features.device)
    rate, bias_rate, count = lr.item(), bias_lr.item(), int(step.item())
    for chunk in chunks(features_t, weight, bias, indices):
        part, g = _loss_of(chunk, positives, num_labels, loss)
        total += part
        if scale != 1.0:
            g.mul_(scale)
        if features_too:
            chunk.add_grad_features(g, grad_features)
        here = slice(chunk.start, chunk.stop)
        where = {"seed": seed, "layer": layer, "first_row": first_row + chunk.first_row}
        state, of_rows = [s[here] for s in weight_state], None if rates is None else rates.view(bias.shape)[here]
        update_tile(rule, hyper, chunk.weight_view, chunk.grad_weight(g), state, rate, count, rates=of_rows, **where)
        where["first_row"] = first_row // chunk.group_size + chunk.start  # a bias (G, S) has a row for every group
        state = [s[here] for s in bias_state]
        update_tile(rule, bias_hyper, chunk.bias_view, g.sum(-1), state, bias_rate, count, rates=None, **where)
    loss_value = (total * scale).to(features_t.dtype)
    return loss_value, untranspose(grad_features, features.dtype) if features_too else grad_features


def _step_fake(features: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    features_too = len(rest) < 21 or rest[20]
    grad = torch.empty_like(features, memory_format=torch.contiguous_format) if features_too else features.new_empty(0)
    return _loss_fake(features), grad


_LAYER = "Tensor features, Tensor weight, Tensor bias, Tensor? indices, Tensor offsets, Tensor labels"
loss_op = define(f"loss({_LAYER}, int num_labels, str loss) -> Tensor", _loss_fake, _loss)
loss_backward_op = define(
    f"loss_backward(Tensor scale, {_LAYER}, int num_labels, str loss) -> (Tensor, Tensor, Tensor)",
    _loss_backward_fake,
    _loss_backward,
)
step_op = define(
    "step(Tensor features, Tensor(a!) weight, Tensor(b!) bias, Tensor(c!)[] weight_state, Tensor(d!)[] bias_state, "
    "Tensor? indices, Tensor offsets, Tensor labels, Tensor lr, Tensor bias_lr, Tensor step, int num_labels, str loss, "
    "float scale, str rule, float[] hyper, float[] bias_hyper, int seed, int layer, int first_row, "
    "Tensor? rates=None, bool features_too=True) -> (Tensor, Tensor)",
    _step_fake,
    _step,
)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        indices, offsets, labels, num_labels, loss = rest
        ctx.save_for_backward(features, weight, bias, indices, offsets, labels)
        ctx.settings = (num_labels, loss)
        return loss_op(features, weight, bias, *rest)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *loss_backward_op(grads[0], *ctx.saved_tensors, *ctx.settings), *(None,) * 5


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, *rest: Any) -> Tensor:
        loss, grad_features = step_op(features.detach(), *rest, ctx.needs_input_grad[0])
        ctx.save_for_backward(grad_features)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.saved_tensors[0] * grads[0], *(None,) * 20


def check_finite(features: Tensor) -> None:
    """Raise ValueError where features on a CPU hold NaN or infinities."""
    if features.device.type == "cpu" and not features.isfinite().all():
        bad = (~features.isfinite()).any(dim=1).nonzero()[0].item()
        raise ValueError(
            f"features (row {bad}) must be finite; nothing was updated. Lower the encoder's learning rate, or look "
            "for divisions by zero in it"
        )


def check_positives(positives: Positives, batch: int, num_labels: int) -> CheckedPositives:
    """Return positives as int64 on success; what it returns is not checked again.

    Args:
        positives: (offsets (batch + 1,), labels (P,)), CSR over the batch; labels distinct within a row. On a GPU P may
            exceed offsets[-1]: a buffer of fixed capacity, whose rest is not read.
        batch: rows of features.
        num_labels: labels of the layer.

    Raises:
        TypeError: not integers.
        ValueError: wrong shapes, offsets not from 0 to P without decrease, a label out of range, or repeated in a
            row. On a GPU offsets and range are checked by device-side assertions, and repeats are not.
    """
    if isinstance(positives, CheckedPositives):
        return positives
    offsets, labels = positives
    for name, tensor in (("offsets", offsets), ("labels", labels)):
        if tensor.is_floating_point() or tensor.dtype == torch.bool:
            raise TypeError(f"positives {name} ({tensor.dtype}) must be integers; convert them with .long()")
        if tensor.dim() != 1:
            raise ValueError(f"positives {name} {tuple(tensor.shape)} must have one dimension")
    if len(offsets) != batch + 1:
        raise ValueError(f"positives offsets ({len(offsets)} values) must hold batch + 1 = {batch + 1} values")
    offsets, labels = offsets.long(), labels.long()
    counts = offsets.diff()
    if labels.device.type != "cpu":
        span_ok = (offsets[0] == 0) & (offsets[-1] <= len(labels)) & (counts >= 0).all()
        beyond = torch.arange(len(labels), device=labels.device) >= offsets[-1]
        range_ok = (((labels >= 0) & (labels < num_labels)) | beyond).all()
        torch._assert_async(span_ok, "positives offsets must run from 0 to at most len(labels) without decrease")
        torch._assert_async(range_ok, "positives labels must be in [0, num_labels)")
        return CheckedPositives(offsets, labels)
    span_ok = (offsets[0] == 0) & (offsets[-1] == len(labels)) & (counts >= 0).all()
    range_ok = ((labels >= 0) & (labels < num_labels)).all()
    if not span_ok:
        raise ValueError(f"positives offsets must run from 0 to len(labels) = {len(labels)} without decrease")
    if not range_ok:
        bad = labels[(labels < 0) | (labels >= num_labels)][0].item()
        raise ValueError(
            f"positives label ({bad}) must be in [0, {num_labels}); drop labels that the layer does not have"
        )
    points = torch.repeat_interleave(torch.arange(batch), counts)
    pairs = (points * num_labels + labels).sort().values
    repeated = pairs[1:][pairs[1:] == pairs[:-1]]
    if len(repeated):
        point, label = divmod(repeated[0].item(), num_labels)
        raise ValueError(f"positives label ({label}) must not repeat in a row; row {point} holds it more than once")
    return CheckedPositives(offsets, labels)


def loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    indices: Tensor | None,
    positives: Positives,
    *,
    num_labels: int,
    loss: str = "bce",
) -> Tensor:
    """Return the loss summed over batch and labels; differentiable, chunked, never (B, L).

    Args:
        features, weight, bias, indices, num_labels: as `haste.ops.fan_in`.
        positives: as `check_positives`.
        loss: ``bce`` or ``squared_hinge`` (see `haste.ops._losses`).

    Returns:
        0-dim float32 (float64 for float64 features). Gradients have the dtypes of what they are gradients of.
    """
    check_operands(features, weight, bias, indices, num_labels)
    check_loss(loss)
    offsets, labels = check_positives(positives, len(features), num_labels)
    return _Loss.apply(features, weight, bias, indices, offsets, labels, num_labels, loss)


def step(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    indices: Tensor | None,
    positives: Positives,
    *,
    num_labels: int,
    lr: Tensor,
    step: Tensor,
    rule: str,
    hyper: Sequence[float],
    bias_hyper: Sequence[float] | None = None,
    bias_lr: Tensor | None = None,
    weight_state: Sequence[Tensor] = (),
    bias_state: Sequence[Tensor] = (),
    rates: Tensor | None = None,
    loss: str = "bce",
    scale: float = 1.0,
    seed: int = 0,
    layer: int = 0,
    first_row: int = 0,
) -> Tensor:
    """Update weight and bias in place in one pass; return the loss, whose backward gives dloss/dfeatures only.

    Where features need no gradient, none is computed: a third of the products on a CPU.

    Args:
        features, weight, bias, indices, positives, num_labels, loss: as `loss`.
        lr, step: learning rate and number of this step (from 1), 0-dim tensors.
        rule, hyper, weight_state, seed, layer, first_row: as `haste.ops.update`; first_row is a multiple of
            the group size.
        bias_hyper, bias_lr, bias_state: the same for the bias; default those of the weight.
        rates: (G, S) float32, contiguous: factors of lr for the rows of weight, not for the bias; None is 1 throughout.
        scale: factor on loss and gradients (1 / batch for a mean).

    Returns:
        0-dim float32, before the update.

    Raises:
        ValueError: features hold NaN or infinities (on a CPU); nothing is written then.
    """
    check_operands(features, weight, bias, indices, num_labels)
    check_loss(loss)
    for numbers, state in ((hyper, weight_state), (bias_hyper or hyper, bias_state)):
        check_rule(rule, numbers, state)
    check_rates(rates, weight)
    offsets, labels = check_positives(positives, len(features), num_labels)
    check_finite(features)
    return _Step.apply(
        features,
        weight.detach(),
        bias.detach(),
        list(weight_state),
        list(bias_state),
        indices,
        offsets,
        labels,
        lr,
        lr if bias_lr is None else bias_lr,
        step,
        num_labels,
        loss,
        scale,
        rule,
        list(hyper),
        list(bias_hyper or hyper),
        signed(seed),
        layer,
        first_row,
        rates,
    )
