"""A rule on a whole tensor on a GPU: the operator ``update``."""

import torch
from torch import Tensor

from haste.ops.triton._layer import Sink, numbers_of, on_device, rule_name
from haste.ops.triton._pass import update_rows


def update(
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
    if weight.dtype == torch.float64:
        raise TypeError(f"weight ({weight.dtype}) must be float32 or bfloat16; float64 needs HASTE_KERNELS=torch")
    device, columns = weight.device, weight.shape[-1] if weight.dim() else 1
    if not weight.numel() or not grad.numel():
        return
    count, rate = on_device(step, device).to(torch.int64), on_device(lr, device)
    name = rule_name(rule, state)
    numbers = numbers_of(name, rate, rate, count, hyper, hyper)
    sink = Sink(rule=rule, weight_state=state, bias_state=[], numbers=numbers, step=count, seed=seed, layer=layer)
    flat_state = [s.view(-1, columns) for s in state]
    good = torch.zeros((), dtype=torch.int32, device=device)
    flat_grad = grad.reshape(-1, columns).contiguous()
    torch.autograd.graph.increment_version([weight, *state])  # autograd sees no launch
    update_rows(weight.view(-1, columns), flat_grad, rows, flat_state, sink, numbers[0], good, first_row, rates)
