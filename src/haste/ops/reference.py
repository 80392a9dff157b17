"""The truth: every operator as the formulas say it, one group at a time, in float32 or float64.

Imported by tests, benchmarks and where ``HASTE_KERNELS=reference``; slow by design, and free to hold (B, L).
Each function has the schema of the operator of its name.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from haste.ops._random import round_stochastically


def _inputs(features: Tensor, indices: Tensor | None, group: int) -> Tensor:
    return features if indices is None else features[:, indices[group].long()]


def _wide(features: Tensor) -> Tensor:
    return features.double() if features.dtype == torch.float64 else features.float()


def fan_in(features: Tensor, weight: Tensor, bias: Tensor, indices: Tensor | None, num_labels: int) -> Tensor:
    x = _wide(features)
    logits = [_inputs(x, indices, k) @ weight[k].to(x.dtype).t() + bias[k].to(x.dtype) for k in range(weight.shape[0])]
    return torch.cat(logits, dim=1)[:, :num_labels]


def fan_in_backward(
    grad: Tensor, features: Tensor, weight: Tensor, bias: Tensor, indices: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    x = _wide(features)
    groups, group_size, _ = weight.shape
    padded = x.new_zeros((len(x), groups * group_size))
    padded[:, : grad.shape[1]] = grad
    grad_features, grad_weight, grad_bias = (
        torch.zeros_like(x),
        torch.zeros_like(weight),
        torch.zeros_like(bias),
    )
    for k in range(groups):
        g = padded[:, k * group_size : (k + 1) * group_size]
        grad_weight[k] = g.t() @ _inputs(x, indices, k)
        grad_bias[k] = g.sum(0)
        columns = torch.arange(x.shape[1]) if indices is None else indices[k].long()
        grad_features.index_add_(1, columns, g @ weight[k].to(x.dtype))  # a group may hold an input twice
    return grad_features.to(features.dtype), grad_weight, grad_bias


def indicator(offsets: Tensor, labels: Tensor, num_labels: int, dtype: torch.dtype) -> Tensor:
    """Return positives as a 0/1 matrix (B, num_labels)."""
    y = torch.zeros((len(offsets) - 1, num_labels), dtype=dtype)
    for b in range(len(offsets) - 1):
        y[b, labels[offsets[b] : offsets[b + 1]]] = 1
    return y


def _terms(z: Tensor, y: Tensor, loss: str) -> Tensor:
    if loss == "bce":
        return torch.nn.functional.softplus(z, threshold=80) - y * z
    return (1 - (2 * y - 1) * z).clamp(min=0).square()


def _slopes(z: Tensor, y: Tensor, loss: str) -> Tensor:
    if loss == "bce":
        return torch.sigmoid(z) - y
    t = 2 * y - 1
    return -2 * t * (1 - t * z).clamp(min=0)


def loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    indices: Tensor | None,
    offsets: Tensor,
    labels: Tensor,
    num_labels: int,
    loss: str,
) -> Tensor:
    z = fan_in(features, weight, bias, indices, num_labels)
    return _terms(z, indicator(offsets, labels, num_labels, z.dtype), loss).double().sum().to(z.dtype)


def loss_backward(
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
    z = fan_in(features, weight, bias, indices, num_labels)
    g = _slopes(z, indicator(offsets, labels, num_labels, z.dtype), loss) * scale
    return fan_in_backward(g, features, weight, bias, indices)


def apply_rule(
    rule: str,
    hyper: Sequence[float],
    weight: Tensor,
    grad: Tensor,
    state: Sequence[Tensor],
    lr: float | Tensor,
    step: int,
) -> tuple[Tensor, list[Tensor]]:
    """Return the new weight and state of `haste.ops._update.apply_rule`, written as the formulas are.

    lr may be a tensor (..., 1), the rows' rates in it.
    """
    if rule == "sgd":
        momentum, weight_decay = hyper
        m = grad + weight_decay * weight
        if state:
            m = momentum * state[0] + m
        return weight - lr * m, [m] if state else []
    beta1, beta2, eps, weight_decay = hyper
    w = weight * (1 - lr * weight_decay)
    m = beta1 * state[0] + (1 - beta1) * grad
    v = beta2 * state[1] + (1 - beta2) * grad**2
    w = w - lr * (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + eps)
    return w, [m, v]


def philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, ...]:
    """Philox4x32-10 on Python integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def bits16(row: int, f: int, columns: int, *, seed: int, step: int, layer: int, stream: int) -> int:
    """Return the 16 random bits of element (row, f) of a tensor with this many columns."""
    block = row * -(-columns // 8) + f // 8
    counter = (block & 0xFFFFFFFF, block >> 32, 4 * layer + stream, step)
    word = philox(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))[(f % 8) // 2]
    return (word >> 16) if f % 2 else word & 0xFFFF


def _write(target: Tensor, values: Tensor, first_row: int, stream: int, seed: int, step: int, layer: int) -> None:
    if target.dtype != torch.bfloat16:
        target.copy_(values)
        return
    columns = target.shape[-1]
    rows = values.numel() // columns
    bits = [
        bits16(first_row + r, f, columns, seed=seed, step=step, layer=layer, stream=stream)
        for r in range(rows)
        for f in range(columns)
    ]
    target.copy_(round_stochastically(values, torch.tensor(bits, dtype=torch.int32).view(target.shape)))


def step(
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
    x = _wide(features)
    z = fan_in(x, weight, bias, indices, num_labels)
    y = indicator(offsets, labels, num_labels, z.dtype)
    value = (_terms(z, y, loss).double().sum() * scale).to(z.dtype)
    grads = fan_in_backward(_slopes(z, y, loss) * scale, x, weight.to(x.dtype), bias.to(x.dtype), indices)
    weight_lr = lr.item() if rates is None else lr.item() * rates.to(x.dtype).view(bias.shape)[..., None]
    for target, grad, state, rate, numbers, first in (
        (weight, grads[1], weight_state, weight_lr, hyper, first_row),
        (bias, grads[2], bias_state, bias_lr.item(), bias_hyper, first_row // weight.shape[1]),
    ):
        wide_state = [s.to(x.dtype) for s in state]
        new, new_state = apply_rule(rule, numbers, target.to(x.dtype), grad, wide_state, rate, int(step.item()))
        for stream, (t, values) in enumerate(zip((target, *state), (new, *new_state), strict=True)):
            _write(t, values, first, stream, seed, int(step.item()), layer)
    return value, grads[0].to(features.dtype) if features_too else features.new_empty(0)


def link_scores(weight: Tensor, num_labels: int) -> Tensor:
    groups, group_size, fan_in = weight.shape
    scores = torch.empty((groups, fan_in))
    for k in range(groups):
        labels = min(group_size, num_labels - k * group_size)
        scores[k] = weight[k, :labels].float().abs().mean(0)
    return scores


def regrow_gradient(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    indices: Tensor,
    offsets: Tensor,
    labels: Tensor,
    num_labels: int,
    loss: str,
    most: int,
) -> Tensor:
    x = _wide(features)
    z = fan_in(x, weight, bias, indices, num_labels)
    slopes = _slopes(z, indicator(offsets, labels, num_labels, z.dtype), loss)
    groups, group_size, _ = weight.shape
    new = []
    for k in range(groups):
        g = slopes[:, k * group_size : (k + 1) * group_size]
        scores = (g.t() @ x).abs().mean(0)
        scores[indices[k].long()] = -1
        new.append(scores.sort(descending=True, stable=True).indices[:most])
    return torch.stack(new)


def topk(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    indices: Tensor | None,
    row_labels: Tensor | None,
    num_labels: int,
    k: int,
    exclude_offsets: Tensor | None,
    exclude_rows: Tensor | None,
) -> Tensor:
    from haste.ops._topk import pack_keys

    scores = fan_in(features, weight, bias, indices, num_labels).float()
    if scores.isnan().any():
        raise ValueError("scores must not be NaN; the features or the weights of this layer are not finite")
    if exclude_offsets is not None and exclude_rows is not None:
        for b in range(len(scores)):
            scores[b, exclude_rows[exclude_offsets[b] : exclude_offsets[b + 1]]] = -torch.inf
    labels = torch.arange(num_labels) if row_labels is None else row_labels
    none = torch.full((len(scores), k), -torch.inf)
    keys = torch.cat(
        (
            pack_keys(scores, labels[:num_labels]),
            pack_keys(none, torch.full_like(none, 2**31 - 1, dtype=torch.int64)),
        ),
        dim=1,
    )
    return keys.sort(dim=1, descending=True).values[:, :k]
