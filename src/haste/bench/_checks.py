"""Every variant against the float32 reference at a small shape; the fused step at the shape to be timed too."""

import torch
from torch import Tensor

from haste.bench._case import Case, batch_of
from haste.bench._expected import check_step, tolerance_of
from haste.bench._harness import check
from haste.bench._variants import Grouped, NotRunError, Variant
from haste.ops import reference

_LR = 0.05  # large enough that a missing update shows in bfloat16
_checked: dict[tuple[str, Case, tuple[str, ...], str], float] = {}


def check_timed_step(ours: Grouped) -> float:
    """Compare one step at the shape to be timed with the formulas, then undo it; return the largest error.

    Raises:
        CheckError: it differs (`haste.bench._expected.check_step`).
    """
    case, groups = ours.case, ours.update.param_groups
    features, positives = batch_of(case, ours.device)
    weight, bias, indices = ours.operands()
    before = weight.clone(), bias.clone(), indices
    rates = [group["lr"] for group in groups]
    for group in groups:
        group["lr"] = _LR
    try:
        found = ours.step(features, positives)
        return check_step(case, before, (weight, bias), features, positives, _LR, found)
    finally:
        weight.copy_(before[0])
        bias.copy_(before[1])
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate


def check_small(kind: type[Variant], small: Case, operations: tuple[str, ...], device: torch.device) -> float:
    """Compare a variant with the reference at a small shape, once; return the largest error.

    Raises:
        CheckError: it differs.
    """
    known = (kind.name, small, operations, str(device))
    if known not in _checked:
        _checked[known] = _check_small(kind, small, operations, device)
    return _checked[known]


def _check_small(kind: type[Variant], small: Case, operations: tuple[str, ...], device: torch.device) -> float:
    worst = 0.0
    tolerance = tolerance_of(small)
    features, positives = batch_of(small, device)
    if "topk" in operations:
        worst = max(worst, _check_topk(kind(small, device), features, tolerance))
    if "forward" in operations:
        worst = max(worst, _check_products(kind(small, device), features, tolerance))
    if "step" in operations:
        worst = max(worst, _check_step(kind(small, device, _LR), features, positives, tolerance))
    return worst


def _check_products(variant: Variant, features: Tensor, tolerance: float) -> float:
    x, what = variant.inputs(features).detach(), f"{variant.name} against the reference"
    try:
        logits = variant.forward(x)
        g = torch.randn_like(logits)
        found = {"logits": logits, **dict(zip(("grad_features", "grad_weight"), variant.backward(x, g), strict=True))}
    except NotRunError:
        return 0.0
    weight, bias, indices = (None if t is None else t.cpu() for t in variant.operands())
    assert weight is not None
    assert bias is not None
    operands = (x.cpu().float(), weight.float(), bias.float(), indices)
    grads = reference.fan_in_backward(g.cpu().float(), *operands)
    mask = getattr(variant, "mask", None)
    expected = {
        "logits": reference.fan_in(*operands, variant.case.num_labels),
        "grad_features": grads[0],
        "grad_weight": grads[1] if mask is None else grads[1] * mask.cpu()[:, None, :],
    }
    return check(what, {name: tensor.cpu() for name, tensor in found.items()}, expected, tolerance)


def _check_topk(variant: Variant, features: Tensor, tolerance: float) -> float:
    x = variant.inputs(features).detach()
    scores, labels = (tensor.cpu() for tensor in variant.topk(x))
    weight, bias, indices = (None if t is None else t.cpu() for t in variant.operands())
    assert weight is not None
    assert bias is not None
    logits = reference.fan_in(x.cpu().float(), weight.float(), bias.float(), indices, variant.case.num_labels)
    # labels may change places where rounding brings their scores together
    expected = {"scores": logits.topk(variant.case.k, dim=1).values, "scores of the labels": logits.gather(1, labels)}
    return check(f"{variant.name} top-k against the reference", dict.fromkeys(expected, scores), expected, tolerance)


def _check_step(variant: Variant, features: Tensor, positives: tuple[Tensor, Tensor], tolerance: float) -> float:
    x, case = variant.inputs(features), variant.case
    weight, bias, indices = (None if t is None else t.detach().cpu().clone() for t in variant.operands())
    assert weight is not None
    assert bias is not None
    weight, has_bias = weight.clone(), bool(bias.any())
    lr, hyper = torch.tensor(variant.lr, dtype=torch.float64), [0.0, 0.0]
    rounded = weight.dtype == torch.bfloat16
    before = weight.float().clone()
    wide = before.clone() if rounded else weight
    offsets, labels = (t.cpu() for t in positives)
    loss, grad = reference.step(
        x.detach().cpu().float(), wide, bias, [], [], indices, offsets, labels, lr, lr, torch.tensor(1),
        num_labels=case.num_labels, loss="bce", scale=1.0, rule="sgd", hyper=hyper, bias_hyper=hyper,
        seed=0, layer=0, first_row=0,
    )  # fmt: skip
    mask = getattr(variant, "mask", None)
    if mask is not None:
        wide = torch.where(mask.cpu()[:, None, :], wide, before)
    found = dict(zip(("loss", "grad_features"), variant.step(x, positives), strict=True))
    after = variant.operands()
    found |= {"weight": after[0].detach()} | ({"bias": after[1].detach()} if has_bias else {})
    expected = {"loss": loss, "grad_features": grad, "weight": wide, "bias": bias}
    return check(
        f"{variant.name} step against the reference",
        {name: tensor.cpu() for name, tensor in found.items()},
        {name: expected[name] for name in found},
        tolerance,
    )
