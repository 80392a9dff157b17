"""The losses on a tile of logits, with their gradients.

bce             sum softplus(z) - sum over positives of z          dloss/dz = sigmoid(z) - y
squared_hinge   sum max(0, 1 - t z)^2, t = +-1                      dloss/dz = -2 t max(0, 1 - t z)
"""

import torch
from torch import Tensor

from haste.ops._chunks import Workspace

LOSSES = ("bce", "squared_hinge")


def check_loss(loss: str) -> None:
    """Raise ValueError for a loss that does not exist."""
    if loss not in LOSSES:
        raise ValueError(f"loss ({loss}) must be one of {', '.join(LOSSES)}")


def loss_and_gradient(
    z: Tensor, rows: Tensor, points: Tensor, num_rows: int, loss: str, workspace: Workspace
) -> tuple[Tensor, Tensor]:
    """Return (loss, dloss/dlogits) of a chunk.

    Args:
        z: logits (n, S, B), float32 or float64; used up.
        rows, points: positives as (row of the chunk, batch point), int64, unique pairs.
        num_rows: rows of the chunk that are labels; the rest is padding, with neither loss nor gradient.
        loss: ``bce`` or ``squared_hinge``.
        workspace: holds the returned gradient.

    Returns:
        loss, 0-dim float64: sums per group in z's dtype, added in float64.
        gradient, of z's shape.
    """
    flat = z.view(-1, z.shape[-1])
    grad, terms = workspace.take("grad", *flat.shape), workspace.take("terms", *flat.shape)
    positive = flat[rows, points]
    if loss == "bce":
        torch.sigmoid(flat, out=grad)
        # softplus(z) = max(z, 0) - log1p(-min(s, 1 - s)) with s = sigmoid(z) spares the exponential.
        torch.sub(1, grad, out=terms)
        torch.minimum(terms, grad, out=terms)
        terms = flat.clamp_(min=0).sub_(terms.neg_().log1p_())
        # -sigmoid(-z) keeps the relative precision that sigmoid(z) - 1 loses for confident positives.
        grad[rows, points] = -torch.sigmoid(-positive)
        of_positives = -positive
    else:
        margin = flat.add_(1).clamp_(min=0)
        torch.mul(margin, 2, out=grad)
        torch.square(margin, out=terms)
        grad[rows, points] = -2 * (1 - positive).clamp(min=0)
        of_positives = (1 - positive).clamp(min=0).square() - (1 + positive).clamp(min=0).square()
    grad[num_rows:] = 0
    terms[num_rows:] = 0
    per_group = terms.view(z.shape).sum(dim=(1, 2))
    return per_group.double().sum() + of_positives.double().sum(), grad.view(z.shape)
