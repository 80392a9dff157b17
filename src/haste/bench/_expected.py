"""The layer computed again for the timed shape, group chunk by group chunk in float32, by code of its own.

The reference is one Python loop turn a group: right for 200 labels, hopeless for millions. This holds a few hundred MB.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from haste.bench._case import Case, Positives, rows_of
from haste.bench._harness import CheckError, check
from haste.bench._variants import Operands

_ELEMENTS = 1 << 26  # of the largest temporary
_HALF_STEP = 2**-8  # of bfloat16: half the distance of neighbours, relative, at most
_LOSS_TOLERANCE = 1e-4  # in every dtype: logits are float32


class _Chunk:
    def __init__(self, operands: Operands, features_t: Tensor, start: int, stop: int) -> None:
        weight, bias, indices = operands
        self.start, self.stop, self.group_size = start, stop, weight.shape[1]
        self.weight, self.bias = weight[start:stop].float(), bias[start:stop].float()
        assert indices is not None
        self.inputs = indices[start:stop].long().flatten()
        self.x = features_t[self.inputs].view(stop - start, weight.shape[2], -1)

    def logits(self) -> Tensor:
        """Return (n, S, B)."""
        return torch.bmm(self.weight, self.x) + self.bias[:, :, None]

    def rows(self, num_labels: int) -> slice:
        """Return the rows of the layer, padding left out."""
        return slice(self.start * self.group_size, min(num_labels, self.stop * self.group_size))


def _chunks(operands: Operands, features: Tensor) -> Iterator[_Chunk]:
    features_t = features.detach().float().t().contiguous()
    groups, group_size, fan_in = operands[0].shape
    length = max(1, _ELEMENTS // (max(group_size, fan_in) * len(features)))
    for start in range(0, groups, length):
        yield _Chunk(operands, features_t, start, min(groups, start + length))


def check_products(
    case: Case, operands: Operands, features: Tensor, g: Tensor, logits: Tensor, grads: tuple[Tensor, Tensor]
) -> float:
    """Compare logits (B, L) and the gradients of ``g`` with the formulas; return the largest error (`check`)."""
    worst, tolerance = 0.0, tolerance_of(case)
    grad_t = torch.zeros_like(features.detach().float().t().contiguous())
    for chunk in _chunks(operands, features):
        rows = chunk.rows(case.num_labels)
        z = chunk.logits().flatten(0, 1)
        slopes = torch.zeros_like(z)
        slopes[: rows.stop - rows.start] = g[:, rows].t()
        slopes = slopes.view(len(chunk.weight), -1, len(features))
        grad_t.index_add_(0, chunk.inputs, torch.bmm(chunk.weight.transpose(1, 2), slopes).flatten(0, 1))
        expected = {"logits": z[: rows.stop - rows.start], "grad_weight": torch.bmm(slopes, chunk.x.transpose(1, 2))}
        found = {"logits": logits[:, rows].t(), "grad_weight": grads[1][chunk.start : chunk.stop]}
        worst = max(worst, check("chunk by chunk", found, expected, tolerance))
    return max(worst, check("chunk by chunk", {"grad_features": grads[0]}, {"grad_features": grad_t.t()}, tolerance))


def check_step(
    case: Case,
    before: Operands,
    after: tuple[Tensor, Tensor],
    features: Tensor,
    positives: Positives,
    lr: float,
    found: tuple[Tensor, Tensor],
) -> float:
    """Compare a fused BCE step with the formulas; return the largest error of loss and feature gradient.

    Every weight must lie within a bfloat16 step of where the formulas put it (float32: within 1e-5 of the largest), and
    what gradients of logits rounded to bfloat16 may shift it.

    Args:
        case: sizes.
        before: the layer before the step.
        after: its weight and bias afterwards.
        features, positives: of the step.
        lr: of plain SGD.
        found: loss and gradient of the features that the step gave.

    Raises:
        CheckError: something is off.
    """
    tolerance, rounded = tolerance_of(case), case.dtype == "bfloat16"
    points, labels = rows_of(positives)
    loss = torch.zeros((), dtype=torch.float64, device=features.device)
    grad_t = torch.zeros_like(features.detach().float().t().contiguous())
    for chunk in _chunks(before, features):
        rows = chunk.rows(case.num_labels)
        z = chunk.logits().flatten(0, 1)
        here = (labels >= rows.start) & (labels < rows.stop)
        index = (labels[here] - rows.start, points[here])
        valid = z[: rows.stop - rows.start]
        loss += torch.nn.functional.softplus(valid).double().sum() - z[index].double().sum()
        g = torch.sigmoid(z)
        g[index] -= 1
        g[len(valid) :] = 0
        g = g.view(len(chunk.weight), -1, len(features))
        grad_t.index_add_(0, chunk.inputs, torch.bmm(chunk.weight.transpose(1, 2), g).flatten(0, 1))
        expected = chunk.weight - lr * torch.bmm(g, chunk.x.transpose(1, 2))
        if rounded:
            allowed = 2 * _HALF_STEP * expected.abs()
            allowed += lr * _HALF_STEP * torch.bmm(g.abs(), chunk.x.abs().transpose(1, 2))
        else:
            allowed = torch.full_like(expected, 1e-5 * expected.abs().max().item())
        _within("weight", after[0][chunk.start : chunk.stop], expected, allowed, chunk)
        expected = chunk.bias - lr * g.sum(-1)
        slack = lr * _HALF_STEP * g.abs().sum(-1) if rounded else 0.0
        _within("bias", after[1][chunk.start : chunk.stop], expected, 1e-5 * (1 + expected.abs()) + slack, chunk)
    what = "step, chunk by chunk"
    return max(
        check(what, {"loss": found[0]}, {"loss": loss}, _LOSS_TOLERANCE),
        check(what, {"grad_features": found[1]}, {"grad_features": grad_t.t()}, tolerance),
    )


def check_topk(
    case: Case, operands: Operands, features: Tensor, found: tuple[Tensor, Tensor], excess: float = 1e-5
) -> float:
    """Compare scores (B, k) and labels (B, k) with the formulas; return the largest error of a score.

    Labels may change places where their scores are as near as rounding: each label's own score must be the one given,
    and the scores, sorted, the largest there are.
    """
    scores, labels = found
    tolerance = tolerance_of(case) if case.dtype == "bfloat16" else excess
    own = torch.full_like(scores, torch.nan)
    best = scores.new_full(scores.shape, -torch.inf)
    for chunk in _chunks(operands, features):
        rows = chunk.rows(case.num_labels)
        z = chunk.logits().flatten(0, 1)[: rows.stop - rows.start].t().contiguous()
        inside = (labels >= rows.start) & (labels < rows.stop)
        own = torch.where(inside, z.gather(1, (labels - rows.start).clamp(0, z.shape[1] - 1)), own)
        best = torch.cat((best, z.topk(min(scores.shape[1], z.shape[1]), dim=1).values), dim=1)
        best = best.topk(scores.shape[1], dim=1).values
    results = {"scores of the labels": own, "largest scores": best}
    if not (labels.sort(dim=1).values.diff(dim=1) > 0).all():
        raise CheckError("top-k, chunk by chunk: a label is returned twice")
    return check("top-k, chunk by chunk", dict.fromkeys(results, scores), results, tolerance)


def tolerance_of(case: Case) -> float:
    """Return the error that passes, relative to the largest value: sums in another order, bfloat16 in between."""
    return 2**-6 if case.dtype == "bfloat16" else 2e-5


def _within(what: str, found: Tensor, expected: Tensor, allowed: Tensor, chunk: _Chunk) -> None:
    bad = ~((found.float() - expected).abs() <= allowed + 1e-30)  # NaN is bad
    if bad.any():
        at = tuple(bad.nonzero()[0].tolist())
        raise CheckError(
            f"step, chunk by chunk: {what} {(at[0] + chunk.start, *at[1:])} is {found[at].item():.6g}, "
            f"must lie within {allowed[at].item():.1e} of {expected[at].item():.6g}"
        )
