"""Labels of the tail move to other groups in the middle of training, and take what they have learned along."""

import torch
from torch import Tensor

from haste.nn.linear import FanInLinear
from haste.nn.output import HeadTail
from haste.rewire import SECOND_MOMENTS

_ELEMENTS = 1 << 22  # numbers of the temporaries of one run of groups


@torch.no_grad()
def regroup(output: HeadTail, label_order: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Give the rows of the tail other labels, whose weights, biases and optimizer state move along, in place.

        score[k, i] = sum over the labels of new group k of |weight| of their links to input i
        inputs of k: the F of largest score among those that any of its labels read

    A label keeps its weight at every input that its new group reads and it read before; other weights are zero, with
    first moments zero and second moments the mean over the label's kept links.

    Args:
        output: with a sparse tail of whole inputs, each once (block 1, no duplicates).
        label_order: (L,) label of every row; the head's rows as before.
        optimizer: whose state of the tail's parameters moves along.

    Returns:
        kept: part of the absolute weight of the tail that moved along.

    Memory: one more copy of the tail's weights.

    Raises:
        ValueError: the head's labels would change.
    """
    tail, head = output.tail, output.num_head_labels
    assert tail is not None
    assert tail.indices is not None
    assert tail.regrown is not None
    tail.check_usable()
    order = label_order.to(output.label_order.device)
    if not torch.equal(order[:head], output.label_order[:head]):
        raise ValueError("label_order must leave the labels of the head where they are")
    moved = torch.full((tail.num_groups * tail.group_size,), -1, device=order.device)
    moved[: tail.num_labels] = output.row_of_label[order[head:]] - head
    moved = moved.view(tail.num_groups, tail.group_size)
    before = float(tail.weight.abs().sum(dtype=torch.float64))
    indices = _new_inputs(tail, moved)
    state = optimizer.state.get(tail.weight, {})
    for name, tensor in (("weight", tail.weight.data), *state.items()):
        if isinstance(tensor, Tensor) and tensor.shape == tail.weight.shape:
            _move(tensor, tail.indices, indices, moved, tail.in_features, mean=name in SECOND_MOMENTS)
    for tensor in (tail.bias.data, *optimizer.state.get(tail.bias, {}).values(), *state.values()):  # and rates of rows
        if isinstance(tensor, Tensor) and tensor.shape == tail.bias.shape:
            tensor.copy_(tensor.view(-1)[moved.clamp(min=0)].masked_fill_(moved < 0, 0))
    tail.indices.copy_(indices)
    tail.regrown.zero_()
    output.set_label_order(order)
    after = float(tail.weight.abs().sum(dtype=torch.float64))
    return {"kept": after / before if before else 1.0}


def _new_inputs(tail: FanInLinear, moved: Tensor) -> Tensor:
    """The inputs of every group once row (k, s) holds what row moved[k, s] held, (G, F) sorted; -1 = padding."""
    assert tail.indices is not None
    indices = torch.empty_like(tail.indices)
    weight = tail.weight.view(-1, tail.fan_in)
    for here in _runs(tail.num_groups, 3 * tail.in_features + 4 * tail.group_size * tail.fan_in):
        rows = moved[here]
        links, there = _links(tail.indices, rows), (rows >= 0)[:, :, None].float()
        size = weight[rows.clamp(min=0)].abs().float() * there
        score = torch.full((len(rows), tail.in_features), -1.0, device=weight.device)
        # Inputs that a label reads go before all others, whatever the weight.
        score.scatter_reduce_(1, links.flatten(1), (there - 1).expand_as(size).flatten(1), "amax")
        score.scatter_add_(1, links.flatten(1), size.flatten(1))
        best = score.sort(dim=1, descending=True, stable=True).indices[:, : tail.fan_in]
        indices[here] = best.sort(dim=1).values.to(indices.dtype)
    return indices


def _move(tensor: Tensor, old: Tensor, new: Tensor, moved: Tensor, in_features: int, *, mean: bool) -> None:
    """Fill a tensor of the weight's shape with what its rows and links held before.

    mean: new links have the mean of the label's other ones, not zero
    """
    _, group_size, fan_in = tensor.shape
    before = tensor.clone().view(-1, fan_in)
    for here in _runs(len(tensor), in_features + 5 * group_size * fan_in):
        rows = moved[here]
        slot = torch.full((len(rows), in_features), fan_in, device=tensor.device)
        slot.scatter_(1, new[here].long(), torch.arange(fan_in, device=tensor.device).expand(len(rows), -1))
        slots = slot.gather(1, _links(old, rows).flatten(1)).view(len(rows), group_size, fan_in)
        # What no slot takes goes to one more, which is cut off.
        found = tensor.new_zeros((len(rows), group_size, fan_in + 1)).scatter_(2, slots, before[rows.clamp(min=0)])
        found = found[:, :, :fan_in]
        if mean:
            held = torch.zeros((len(rows), group_size, fan_in + 1), dtype=torch.bool, device=tensor.device)
            held = held.scatter_(2, slots, True)[:, :, :fan_in]
            average = found.float().sum(dim=2) / held.sum(dim=2).clamp(min=1)
            found = torch.where(held, found, average.to(found.dtype)[:, :, None])
        tensor[here] = found.masked_fill((rows < 0)[:, :, None], 0)


def _links(indices: Tensor, rows: Tensor) -> Tensor:
    """Inputs that rows (n, S) read, (n, S, F) int64; of padding those of row 0."""
    return indices[rows.clamp(min=0) // rows.shape[1]].long()


def _runs(groups: int, per_group: int) -> list[slice]:
    length = max(1, _ELEMENTS // per_group)
    return [slice(start, min(start + length, groups)) for start in range(0, groups, length)]
