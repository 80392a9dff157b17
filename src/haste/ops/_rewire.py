"""Rewiring one layer: link scores, new inputs at random or by gradient, and the move of values and state.

    score[k, f] = mean over the group's labels s of |weight[k, s, f]|

A link is a slot f of group k: input indices[k, f], shared by the S labels of the group.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from haste.ops import _random as random
from haste.ops._chunks import Chunk, SortedPositives, chunks
from haste.ops._fan_in import transpose_features
from haste.ops._library import define
from haste.ops._losses import loss_and_gradient

_ELEMENTS = {"cpu": 1 << 21}  # of the temporaries of one run of groups
_REGROWN = 1 << 31  # set in the step of regrown weights, whose numbers then differ from that step's rounding bits


def _run_length(device: torch.device, per_group: int) -> int:
    return max(1, _ELEMENTS.get(device.type, 1 << 26) // per_group)


def _labels_of(start: int, stop: int, group_size: int, num_labels: int, device: torch.device) -> Tensor:
    """Return how many labels groups [start, stop) hold: group_size, but for the last group."""
    return (num_labels - torch.arange(start, stop, device=device) * group_size).clamp_(max=group_size)


def _link_scores(weight: Tensor, num_labels: int) -> Tensor:
    groups, group_size, fan_in = weight.shape
    scores = torch.empty((groups, fan_in), device=weight.device)
    length = _run_length(weight.device, group_size * fan_in)
    for start in range(0, groups, length):
        tile = weight[start : start + length]
        # Padded rows are zero, so that summing all rows and dividing by the labels is the mean over the labels.
        count = _labels_of(start, start + len(tile), group_size, num_labels, weight.device)
        scores[start : start + length] = tile.abs().sum(dim=1, dtype=torch.float32) / count[:, None]
    return scores


def _link_scores_fake(weight: Tensor, num_labels: int) -> Tensor:
    return weight.new_empty((weight.shape[0], weight.shape[2]), dtype=torch.float32)


def _held(indices: Tensor, in_features: int) -> Tensor:
    mask = torch.zeros((len(indices), in_features), dtype=torch.bool, device=indices.device)
    return mask.scatter_(1, indices.long(), True)


def _regrow_random(
    indices: Tensor, in_features: int, most: int, seed: int, layer: int, step: int, first: int
) -> Tensor:
    new = torch.empty((len(indices), most), dtype=torch.int64, device=indices.device)
    length = _run_length(indices.device, 8 * in_features)
    for start in range(0, len(indices), length):
        here = indices[start : start + length]
        keys = random_keys(
            first + start, len(here), in_features, seed=seed, layer=layer, step=step, device=indices.device
        )
        keys.masked_fill_(_held(here, in_features), torch.iinfo(torch.int64).max)
        new[start : start + length] = keys.topk(most, dim=1, largest=False, sorted=True).indices
    return new


def random_keys(
    first: int, groups: int, columns: int, *, seed: int, layer: int, step: int, device: torch.device
) -> Tensor:
    """Return distinct random int64 keys for every input of every group, (groups, columns)."""
    words = random.words32(
        first, groups, columns, seed=seed, step=step, layer=layer, stream=random.STRUCTURE, device=device
    )
    return (words << 28) | torch.arange(columns, device=device)


def _regrow_random_fake(indices: Tensor, in_features: int, most: int, *_: object) -> Tensor:
    return indices.new_empty((indices.shape[0], most), dtype=torch.int64)


def _regrow_gradient(
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
    features_t = transpose_features(features)
    in_features, batch = features_t.shape
    groups, group_size, fan_in = weight.shape
    length = _run_length(
        weight.device, group_size * (in_features + 2 * batch + fan_in) + fan_in * batch + 4 * in_features
    )
    positives = SortedPositives(offsets, labels, weight, length)
    new = torch.empty((groups, most), dtype=torch.int64, device=weight.device)
    for chunk in chunks(features_t, weight, bias, indices, per_chunk=length):
        scores = _gradient_scores(chunk, positives, num_labels, loss)
        scores.masked_fill_(_held(indices[chunk.start : chunk.stop], in_features), -1.0)
        # A stable order: equal gradients (an input that is zero in the batch) are taken in order of input.
        ranked = scores.sort(dim=1, descending=True, stable=True).indices
        new[chunk.start : chunk.stop] = ranked[:, :most]
    return new


def _gradient_scores(chunk: Chunk, positives: SortedPositives, num_labels: int, loss: str) -> Tensor:
    """Return the mean over the group's labels of |dloss/dweight| for every input, (n, H)."""
    group_size, in_features = chunk.group_size, len(chunk.features_t)
    num_rows = min(num_labels, chunk.stop * group_size) - chunk.first_row
    _, g = loss_and_gradient(chunk.logits(), *positives.of(chunk), num_rows, loss, chunk.workspace)
    grad = chunk.workspace.take("all_inputs", len(g) * group_size, in_features)
    torch.mm(g.view(len(grad), -1), chunk.features_t.t(), out=grad)
    count = _labels_of(chunk.start, chunk.stop, group_size, num_labels, grad.device)
    return grad.abs_().view(len(g), group_size, in_features).sum(dim=1) / count[:, None]


def _regrow_gradient_fake(features: Tensor, weight: Tensor, *rest: object) -> Tensor:
    most = rest[-1]
    assert isinstance(most, int | torch.SymInt)
    return weight.new_empty((weight.shape[0], most), dtype=torch.int64)


link_scores_op = define("link_scores(Tensor weight, int num_labels) -> Tensor", _link_scores_fake, _link_scores)
regrow_random_op = define(
    "regrow_random(Tensor indices, int in_features, int most, int seed, int layer, int step, int first_group) "
    "-> Tensor",
    _regrow_random_fake,
    _regrow_random,
)
regrow_gradient_op = define(
    "regrow_gradient(Tensor features, Tensor weight, Tensor bias, Tensor indices, Tensor offsets, Tensor labels, "
    "int num_labels, str loss, int most) -> Tensor",
    _regrow_gradient_fake,
    _regrow_gradient,
)


def link_scores(weight: Tensor, num_labels: int) -> Tensor:
    """Return the mean |weight| of every link over its group's labels, float32 (G, F)."""
    return link_scores_op(weight.detach(), num_labels)


def regrow_random(
    indices: Tensor,
    in_features: int,
    most: int,
    *,
    seed: int,
    step: int,
    layer: int = 0,
    first_group: int = 0,
) -> Tensor:
    """Return ``most`` distinct inputs for every group among those it does not hold, in random order, (G, most).

    The keys of group k are those of global group first_group + k: the same for any chunking or sharding.
    """
    return regrow_random_op(indices, in_features, most, random.signed(seed), layer, step, first_group)


def regrow_gradient(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    indices: Tensor,
    positives: tuple[Tensor, Tensor],
    *,
    num_labels: int,
    most: int,
    loss: str = "bce",
) -> Tensor:
    """Return for every group the ``most`` inputs it does not hold with the largest mean |dloss/dweight|, (G, most).

    Largest first. Cost 2 B L H FLOP; memory one run of groups. RigL, arXiv 1911.11134.
    """
    return regrow_gradient_op(
        features.detach(), weight.detach(), bias.detach(), indices, *positives, num_labels, loss, most
    )


def replace_links(
    indices: Tensor,
    regrown: Tensor,
    rank: Tensor,
    counts: Tensor,
    new: Tensor,
    tensors: Sequence[tuple[Tensor, str]],
    *,
    num_labels: int,
    init: str,
    seed: int,
    layer: int,
    step: int,
    first_group: int = 0,
) -> None:
    """Replace the lowest-ranked links of every group and re-sort its slots, in place.

    Args:
        indices: (G, F); rewritten, each row sorted.
        regrown: (G, F) bool; set to whether a slot holds a new link.
        rank: (G, F) rank of every link by score within its group, 0 the lowest.
        counts: (G,) links to replace; those of rank < count go.
        new: (G, >= max(1, counts)) inputs to take, in order.
        tensors: tensors of the weight's shape and what becomes of new links there: ``weight`` (the initial value),
            ``zero``, ``mean`` (the mean over the label's surviving links), or ``keep`` (the pruned link's).
        num_labels, init, seed, layer, step, first_group: of the initial value (``zero`` or ``uniform``).
    """
    groups, fan_in = indices.shape
    group_size = tensors[0][0].shape[1]
    length = _run_length(indices.device, 4 * group_size * fan_in)
    for start in range(0, groups, length):
        here = slice(start, min(start + length, groups))
        gone = rank[here] < counts[here, None]
        # The j-th pruned slot of a group takes its j-th new input.
        taken = new[here].gather(1, (gone.cumsum(1) - 1).clamp_(min=0, max=new.shape[1] - 1))
        inputs = torch.where(gone, taken, indices[here].long())
        inputs, order = inputs.sort(dim=1)
        indices[here] = inputs.to(indices.dtype)
        regrown[here] = gone = gone.gather(1, order)
        spread = order[:, None, :].expand(-1, group_size, -1)
        for tensor, fill in tensors:
            moved = tensor[here].gather(2, spread)
            fresh = gone[:, None, :].expand_as(moved)
            if fill == "keep":
                pass
            elif fill == "mean":
                kept = moved.float().masked_fill(fresh, 0).sum(2) / (~gone).sum(1).clamp(min=1)[:, None]
                value = kept.to(moved.dtype)[:, :, None].expand_as(moved)
                moved = torch.where(fresh, value, moved)
            else:
                moved.masked_fill_(fresh, 0)
                if fill == "weight" and init == "uniform":
                    rows = moved.shape[0] * group_size
                    first = (first_group + start) * group_size
                    drawn = random.uniform(
                        first,
                        rows,
                        fan_in,
                        seed=seed,
                        step=step | _REGROWN,
                        layer=layer,
                        stream=random.WEIGHT,
                        device=moved.device,
                    )
                    drawn[max(0, num_labels - start * group_size) :] = 0.5  # padded rows stay zero
                    drawn = drawn.sub_(0.5).mul_(2 / fan_in**0.5).view(moved.shape)
                    moved = torch.where(fresh, drawn.to(moved.dtype), moved)
            tensor[here] = moved
