"""Update rules: one in-place rule for a tile of float32 numbers, and its storage with rounding.

    sgd     m = momentum * m + (g + weight_decay * w);  w -= lr * m                          (torch.optim.SGD)
    adamw   w *= 1 - lr * weight_decay;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
            w -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)                        (torch.optim.AdamW)

Where rows have rates, the lr of row r is lr * rates[r], wherever it stands: in adamw's weight decay too.

Arithmetic is float32. Weights and moments stored as bfloat16 are written with stochastic rounding on the bits of
`haste.ops._random`, one stream a tensor.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from haste.ops import _random as random
from haste.ops._library import define

RULES = {"sgd": 2, "adamw": 4}  # name -> number of hyperparameters
_TILE = 1 << 17  # elements of one tile


def apply_rule(
    rule: str,
    hyper: Sequence[float],
    weight: Tensor,
    grad: Tensor,
    state: Sequence[Tensor],
    lr: float,
    step: int,
    rates: Tensor | None = None,
) -> None:
    """Apply a rule to one tile in place.

    Args:
        rule: ``sgd`` with hyper (momentum, weight_decay) and state () or (momentum,), or ``adamw`` with hyper
            (beta1, beta2, eps, weight_decay) and state (first moment, second moment).
        weight, grad, state: float32 (or float64) tensors of one shape; grad is used up.
        lr: learning rate.
        step: number of this step, from 1.
        rates: factors of lr, of weight's dtype, (..., 1) for a tile (..., columns); None is 1 throughout.
    """
    if rule == "sgd":
        momentum, weight_decay = hyper
        if weight_decay:
            grad.add_(weight, alpha=weight_decay)
        direction = grad
        if state:
            direction = state[0].mul_(momentum).add_(grad)
        if rates is not None:
            direction = torch.mul(direction, rates, out=grad)
        weight.sub_(direction, alpha=lr)
    else:
        beta1, beta2, eps, weight_decay = hyper
        first, second = state
        if weight_decay:
            decay = lr * weight_decay
            weight.mul_(1 - decay if rates is None else (1 - decay * rates.double()).to(weight.dtype))
        first.lerp_(grad, 1 - beta1)
        second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        torch.sqrt(second, out=grad).div_(math.sqrt(1 - beta2**step)).add_(eps)
        if rates is not None:
            grad.div_(rates)
        weight.addcdiv_(first, grad, value=-lr / (1 - beta1**step))


def check_rule(rule: str, hyper: Sequence[float], state: Sequence[Tensor]) -> None:
    """Raise ValueError for a rule that does not exist, or hyperparameters or state that are not this rule's."""
    if rule not in RULES:
        raise ValueError(f"rule ({rule}) must be one of {', '.join(RULES)}")
    if len(hyper) != RULES[rule]:
        raise ValueError(f"hyper ({len(hyper)} numbers) must hold {RULES[rule]} numbers for {rule}")
    expected = 2 if rule == "adamw" else int(hyper[0] != 0)
    if len(state) != expected:
        raise ValueError(f"state ({len(state)} tensors) must hold {expected} tensors for {rule} with hyper {hyper}")


def check_rates(rates: Tensor | None, weight: Tensor) -> None:
    """Raise TypeError or ValueError for rates that are not float32, contiguous, one for every row of weight."""
    if rates is None:
        return
    if rates.dtype != torch.float32:
        raise TypeError(f"rates ({rates.dtype}) must be torch.float32; convert them with .float()")
    rows = weight.numel() // max(1, weight.shape[-1]) if weight.dim() else 1
    if rates.numel() != rows or not rates.is_contiguous():
        raise ValueError(f"rates {tuple(rates.shape)} must be contiguous, one for each of the {rows} rows of weight")


def store(target: Tensor, values: Tensor, first_row: int, stream: int, *, seed: int, step: int, layer: int) -> None:
    """Write float32 values into their storage, with stochastic rounding where that is bfloat16.

    Args:
        target: (..., columns) storage; its rows, flattened, are rows first_row, first_row + 1, ... of the tensor.
        values: float32 of the same shape; nothing is done where it is the storage itself.
    """
    if target.dtype != torch.bfloat16:
        if values.data_ptr() != target.data_ptr():
            target.copy_(values)
        return
    columns = target.shape[-1]
    bits = random.bits16(
        first_row,
        target.numel() // columns,
        columns,
        seed=seed,
        step=step,
        layer=layer,
        stream=stream,
        device=target.device,
    )
    target.copy_(random.round_stochastically(values, bits.view(target.shape)))


def update_tile(
    rule: str,
    hyper: Sequence[float],
    weight: Tensor,
    grad: Tensor,
    state: Sequence[Tensor],
    lr: float,
    step: int,
    *,
    seed: int,
    layer: int,
    first_row: int,
    rates: Tensor | None = None,
) -> None:
    """Read a tile of weight and state, apply the rule in float32 (float64 for float64 weights), write it back.

    grad is used up. rates has a number for every row of the tile, (...) of (..., columns).
    """
    wide = _wide_dtype(weight)
    tiles = [t.to(wide) for t in (weight, *state)]
    column = None if rates is None else rates[..., None].to(wide)
    apply_rule(rule, hyper, tiles[0], grad.to(wide), tiles[1:], lr, step, column)
    for stream, (target, values) in enumerate(zip((weight, *state), tiles, strict=True)):
        store(target, values, first_row, stream, seed=seed, step=step, layer=layer)


def _wide_dtype(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _update(
    weight: Tensor,
    grad: Tensor,
    rows: Tensor | None,
    state: list[Tensor],
    lr: Tensor,
    step: Tensor,
    rule: str,
    hyper: list[float],
    seed: int,
    layer: int,
    first_row: int,
    rates: Tensor | None = None,
) -> None:
    columns = weight.shape[-1] if weight.dim() else 1
    flat, flat_state = weight.view(-1, columns), [s.view(-1, columns) for s in state]
    flat_grad, flat_rates = grad.reshape(-1, columns), None if rates is None else rates.view(-1)
    rate, count = lr.item(), int(step.item())
    wide, per_tile = _wide_dtype(weight), max(1, _TILE // columns)
    # Fresh memory for every tile of rows would cost more in page faults than the rule in arithmetic.
    buffers = [t.new_empty((per_tile, columns)) for t in (flat, *flat_state)] if rows is not None else []
    for start in range(0, len(flat_grad), per_tile):
        here = slice(start, start + per_tile)
        g = flat_grad[here].to(wide, copy=True)
        if rows is None:
            where = {"seed": seed, "layer": layer, "first_row": first_row + start}
            of_rows = None if flat_rates is None else flat_rates[here]
            tile_state = [s[here] for s in flat_state]
            update_tile(rule, hyper, flat[here], g, tile_state, rate, count, rates=of_rows, **where)
        else:
            chosen = rows[here]
            pairs = zip((flat, *flat_state), buffers, strict=True)
            tiles = [torch.index_select(t, 0, chosen, out=b[: len(chosen)]).to(wide) for t, b in pairs]
            column = None if flat_rates is None else flat_rates[chosen][:, None].to(wide)
            apply_rule(rule, hyper, tiles[0], g, tiles[1:], rate, count, column)
            for target, values in zip((flat, *flat_state), tiles, strict=True):
                target.index_copy_(0, chosen, values.to(target.dtype))


def _update_fake(weight: Tensor, *_: object) -> None:
    return None


update_op = define(
    "update(Tensor(a!) weight, Tensor grad, Tensor? rows, Tensor(b!)[] state, Tensor lr, Tensor step, str rule, "
    "float[] hyper, int seed, int layer, int first_row, Tensor? rates=None) -> ()",
    _update_fake,
    _update,
)


def update(
    weight: Tensor,
    grad: Tensor,
    state: Sequence[Tensor],
    *,
    lr: Tensor,
    step: Tensor,
    rule: str,
    hyper: Sequence[float],
    rows: Tensor | None = None,
    rates: Tensor | None = None,
    seed: int = 0,
    layer: int = 0,
    first_row: int = 0,
) -> None:
    """Apply an update rule to a tensor in place, tile by tile.

    Args:
        weight: any shape, float32, float64 or bfloat16; contiguous.
        grad: of weight's shape, or (len(rows), columns) where rows is given.
        state: the rule's state tensors, of weight's shape (see `apply_rule`).
        lr: learning rate, 0-dim tensor.
        step: number of this step, from 1, 0-dim tensor.
        rule: ``sgd`` or ``adamw``.
        hyper: the rule's hyperparameters.
        rows: distinct row numbers, int64; only these rows are read and written (float32 storage only).
        rates: (weight's rows,) float32, contiguous, of any shape: factors of lr; None is 1 throughout.
        seed, layer, first_row: coordinates of the rounding bits; first_row is the global number of row 0.
    """
    check_rule(rule, hyper, state)
    if not weight.is_contiguous() or not all(s.is_contiguous() and s.shape == weight.shape for s in state):
        raise ValueError("weight and state must be contiguous and of one shape; call .contiguous() first")
    if rows is not None and any(t.dtype == torch.bfloat16 for t in (weight, *state)):
        raise TypeError("row-sparse updates need float32 weights and state, got bfloat16; use float32 for this tensor")
    check_rates(rates, weight)
    where = random.signed(seed), layer, first_row
    update_op(weight, grad, rows, list(state), lr, step, rule, list(hyper), *where, rates)
