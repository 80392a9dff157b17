"""Launching the pass: logits, then both gradients, one kernel or chunk by chunk (see `plans.Plan`)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from haste.ops.triton import plans
from haste.ops.triton._batch import Batch, SortedPairs, compute_dtype, prepare
from haste.ops.triton._layer import Layer, Sink, grid_of, rule_name
from haste.ops.triton.kernels.elementwise import update_rows_kernel
from haste.ops.triton.kernels.layouts import dense_grad_x_kernel, rows_grad_kernel
from haste.ops.triton.kernels.passes import logits_kernel, step_kernel, update_kernel
from haste.ops.triton.plans import Plan

_DENSE_PARTS = 8  # partial sums of the dense layer's gradient of the features


@dataclass(frozen=True, kw_only=True)
class Slopes:
    """dloss/dlogits of tiles [first, first + count).

    values: (count, leading, S), in the dtype of the products.
    grad_bias: (count, blocks, S) float32, their sums over each block of the batch.
    """

    first: int
    count: int
    values: Tensor
    grad_bias: Tensor


def plan_for(features: Tensor, layer: Layer) -> tuple[Plan, torch.dtype]:
    """Return the plan and the dtype of the products for a batch."""
    dtype = compute_dtype(features, layer.weight)
    plan = plans.choose(
        batch=features.shape[0],
        in_features=features.shape[1],
        group_size=layer.group_size,
        fan_in=layer.fan_in,
        dtype=dtype,
        layout=layer.layout,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        target=plans.target_of(features.device),
    )
    return plan, dtype


def write_logits(features: Tensor, layer: Layer) -> Tensor:
    """Return logits (B, num_labels), float32."""
    plan, dtype = plan_for(features, layer)
    batch = prepare(features, dtype, plan.block_b)
    out = torch.empty((batch.size, layer.num_labels), dtype=torch.float32, device=features.device)
    batch.bad.zero_()  # infinite features have logits, if not a step
    _launch_logits(batch, layer, plan, None, 0, layer.tiles, out, out, out, out, "logits")
    return out


def _launch_logits(
    batch: Batch,
    layer: Layer,
    plan: Plan,
    pairs: SortedPairs | None,
    first: int,
    count: int,
    out: Tensor,
    grad_bias: Tensor,
    losses: Tensor,
    scale: Tensor,
    kind: str,
) -> None:
    sorted_pairs = (out, out, out) if pairs is None else (pairs.rows, pairs.points, pairs.bounds)
    logits_kernel[(count, batch.blocks)](
        batch.xt, layer.weight, layer.bias, layer.index_pointer, *sorted_pairs, out, grad_bias, losses, batch.bad,
        scale, first, layer.num_rows, layer.num_labels, batch.size, batch.leading, S=layer.rows, F=layer.fan_in,
        BLOCK_B=batch.block, BLOCK_F=plan.block_f, OUT=kind, FULL=batch.full, FLUSH=batch.flush, LAYOUT=layer.layout,
        PRECISION=plan.precision, **plan.options(),
    )  # fmt: skip


def chunk_tiles(batch: Batch, layer: Layer, plan: Plan) -> int:
    """Return how many tiles' slopes are held at a time."""
    return max(1, plan.chunk_bytes // (batch.leading * layer.rows * batch.xt.element_size()))


def slopes_of(
    batch: Batch, layer: Layer, plan: Plan, pairs: SortedPairs, loss: str, scale: Tensor, losses: Tensor
) -> Iterator[Slopes]:
    """Yield the slopes of a loss chunk by chunk, in one buffer; losses (tiles, blocks) are filled in."""
    per_chunk = min(layer.tiles, chunk_tiles(batch, layer, plan))
    values = batch.xt.new_empty((per_chunk, batch.leading, layer.rows))
    grad_bias = losses.new_empty((per_chunk, batch.blocks, layer.rows))
    for first in range(0, layer.tiles, per_chunk):
        count = min(per_chunk, layer.tiles - first)
        _launch_logits(batch, layer, plan, pairs, first, count, values, grad_bias, losses, scale, loss)
        yield Slopes(first=first, count=count, values=values[:count], grad_bias=grad_bias[:count])


class FeatureGradient:
    """dloss/dfeatures while it is added up, float32: (H, leading), private copies of it, or (leading, H)."""

    def __init__(self, batch: Batch, layer: Layer, plan: Plan) -> None:
        self._batch, self._by_point = batch, plan.scatter == "atomics_by_point" and layer.layout == "gathered"
        in_features, copies = batch.xt.shape[0], 1
        if layer.layout == "dense":
            copies = min(_DENSE_PARTS, layer.tiles)
        elif plan.scatter == "partials":
            copies = plan.programs
        shape = (copies, batch.leading, in_features) if self._by_point else (copies, in_features, batch.leading)
        self.copies = torch.zeros(shape, dtype=torch.float32, device=batch.xt.device)

    def result(self, dtype: torch.dtype) -> Tensor:
        """Return the gradient (B, H) in a dtype; copies are added in order."""
        total = self.copies[0] if len(self.copies) == 1 else self.copies.sum(0)
        by_point = total if self._by_point else total.t()
        return by_point[: self._batch.size].to(dtype).contiguous()


def add_gradients(
    slopes: Slopes, batch: Batch, layer: Layer, plan: Plan, sink: Sink, gradient: FeatureGradient
) -> None:
    """Sweep 2 for a chunk: add to the gradient of the features, give that of the weights to the sink."""
    if layer.layout == "rows":
        _add_gradients_of_rows(slopes, batch, layer, plan, sink, gradient)
        return
    dense = layer.layout == "dense"
    if dense:
        grid = (triton.cdiv(layer.fan_in, plan.block_f), batch.blocks, len(gradient.copies))
        dense_grad_x_kernel[grid](
            slopes.values, layer.weight, gradient.copies, batch.bad, slopes.first, slopes.count, layer.num_rows,
            batch.leading, S=layer.rows, F=layer.fan_in, BLOCK_B=batch.block, BLOCK_F=plan.block_f,
            PRECISION=plan.precision, **plan.options(),
        )  # fmt: skip
        passes = [(False, True)]
    else:
        passes = [(True, False), (False, True)] if plan.form == "three" else [(True, True)]
    for features, weights in passes:
        programs = plan.programs if features else 0
        update_kernel[grid_of(programs, slopes.count)](
            batch.xt, gradient.copies, *sink.pointers(layer), layer.index_pointer, slopes.values, slopes.grad_bias,
            sink.numbers, sink.step, batch.bad, slopes.first, slopes.count, batch.blocks, layer.group_size,
            layer.num_rows, layer.num_labels, sink.first_row, batch.xt.shape[0], batch.leading, sink.layer, sink.seed,
            S=layer.rows, F=layer.fan_in, BLOCK_B=batch.block, BLOCK_F=plan.block_f, RULE=sink.rule,
            RATED=sink.rates is not None, SCATTER=plan.scatter, LAYOUT=layer.layout, PRECISION=plan.precision,
            FEATURES=features, WEIGHTS=weights, **plan.options(),
        )  # fmt: skip


def _add_gradients_of_rows(
    slopes: Slopes, batch: Batch, layer: Layer, plan: Plan, sink: Sink, gradient: FeatureGradient
) -> None:
    rows, fan_in = layer.rows, layer.fan_in
    grad_weight = torch.empty((slopes.count * rows, fan_in), dtype=torch.float32, device=batch.xt.device)
    scatter = "partials" if plan.scatter == "partials" else "atomics"
    rows_grad_kernel[grid_of(plan.programs, slopes.count)](
        batch.xt, gradient.copies, layer.weight, layer.index_pointer, slopes.values, grad_weight, batch.bad,
        slopes.first, slopes.count, batch.blocks, layer.num_rows, batch.xt.shape[0], batch.leading, S=rows, F=fan_in,
        BLOCK_B=batch.block, SCATTER=scatter, num_warps=4,
    )  # fmt: skip
    here = slice(slopes.first * rows, min(layer.num_rows, (slopes.first + slopes.count) * rows))
    grad_bias = slopes.grad_bias.sum(1).view(-1, 1)
    rates = None if sink.rates is None else sink.rates.view(-1)[here]
    for part, (tensor, state, grad, of_rows) in enumerate(
        ((layer.weight, sink.weight_state, grad_weight, rates), (layer.bias, sink.bias_state, grad_bias, None))
    ):
        flat, grad = tensor.view(layer.num_rows, -1)[here], grad[: here.stop - here.start]
        flat_state = [s.view(layer.num_rows, -1)[here] for s in state]
        if sink.rule == "grad":
            flat_state[0].copy_(grad)
        else:
            first_row = sink.first_row + here.start
            update_rows(flat, grad, None, flat_state, sink, sink.numbers[part], batch.bad, first_row, of_rows)


def update_rows(
    weight: Tensor,
    grad: Tensor,
    rows: Tensor | None,
    state: list[Tensor],
    sink: Sink,
    numbers: Tensor,
    bad: Tensor,
    first_row: int,
    rates: Tensor | None,
) -> None:
    """Apply a rule to a matrix in place; `sink` gives rule, step, seed and layer."""
    columns = weight.shape[1]
    block_columns = min(256, max(8, triton.next_power_of_2(columns)))
    block_rows = max(1, 2048 // block_columns)
    pointers = [*state, *(weight,) * (2 - len(state)), weight if rates is None else rates]
    update_rows_kernel[(triton.cdiv(len(grad), block_rows) * triton.cdiv(columns, block_columns),)](
        weight, grad, grad if rows is None else rows, *pointers, numbers, sink.step, bad, len(grad), columns,
        first_row, sink.layer, sink.seed, -(-columns // 8), ROWS=block_rows, COLUMNS=block_columns,
        RULE=rule_name(sink.rule, state), RATED=rates is not None, CHOSEN=rows is not None,
    )  # fmt: skip


def run_pass(
    features: Tensor, layer: Layer, offsets: Tensor, labels: Tensor, loss: str, scale: Tensor, sink: Sink
) -> tuple[Tensor, Tensor]:
    """Return (loss without scale, dloss/dfeatures), float32 and in the features' dtype; the sink takes the rest.

    The loss is NaN where a feature is not finite, and then nothing is written.
    """
    plan, dtype = plan_for(features, layer)
    batch = prepare(features, dtype, plan.block_b)
    if sink.rule == "grad":
        batch.bad.zero_()  # only an update holds back: gradients of what is not finite are not finite
    if plan.form == "fused" and batch.blocks > 1:
        raise ValueError(f"block_b ({plan.block_b}) must hold the batch ({batch.size}) in the fused form")
    pairs = layer.sort(offsets, labels)
    gradient = FeatureGradient(batch, layer, plan)
    losses = torch.full((layer.tiles, batch.blocks), float("nan"), device=features.device)
    if plan.form == "fused":
        step_kernel[grid_of(plan.programs, layer.tiles)](
            batch.xt, gradient.copies, *sink.pointers(layer), layer.index_pointer, pairs.rows, pairs.points,
            pairs.bounds, losses, sink.numbers, sink.step, batch.bad, scale, layer.tiles, layer.num_labels,
            sink.first_row, batch.size, batch.xt.shape[0], sink.layer, sink.seed, S=layer.rows, F=layer.fan_in,
            BLOCK_B=batch.block, BLOCK_F=plan.block_f, LOSS=loss, FULL=batch.full, FLUSH=batch.flush,
            RULE=sink.rule, RATED=sink.rates is not None, SCATTER=plan.scatter,
            PRECISION=plan.precision, **plan.options(),
        )  # fmt: skip
    else:
        for slopes in slopes_of(batch, layer, plan, pairs, loss, scale, losses):
            add_gradients(slopes, batch, layer, plan, sink, gradient)
    return losses.double().sum().float(), gradient.result(features.dtype)
