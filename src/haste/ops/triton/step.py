"""The loss and the fused step on a GPU: the operators ``loss``, ``loss_backward`` and ``step``."""

import torch
from torch import Tensor

from haste.ops.triton._batch import prepare
from haste.ops.triton._layer import Sink, gradients, make_layer, numbers_of, on_device, rule_name
from haste.ops.triton._pass import plan_for, run_pass, slopes_of


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
    layer = make_layer(weight, bias, indices, num_labels)
    plan, dtype = plan_for(features, layer)
    batch = prepare(features, dtype, plan.block_b)
    losses = torch.full((layer.tiles, batch.blocks), float("nan"), device=features.device)
    one = torch.ones((), device=features.device)
    for _ in slopes_of(batch, layer, plan, layer.sort(offsets, labels), loss, one, losses):
        pass
    return losses.double().sum().float()


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
    layer = make_layer(weight, bias, indices, num_labels)
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(bias)
    sink = gradients(grad_weight, grad_bias)
    _, grad_features = run_pass(features, layer, offsets, labels, loss, scale, sink)
    return grad_features, grad_weight, grad_bias


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
    target, device = make_layer(weight, bias, indices, num_labels), features.device
    count = on_device(step, device).to(torch.int64)
    name = rule_name(rule, weight_state)
    sink = Sink(
        rule=name,
        weight_state=weight_state,
        bias_state=bias_state,
        numbers=numbers_of(name, on_device(lr, device), on_device(bias_lr, device), count, hyper, bias_hyper),
        step=count,
        seed=seed,
        layer=layer,
        first_row=first_row,
        rates=rates,
    )
    factor = torch.full((), scale, device=device)
    torch.autograd.graph.increment_version([weight, bias, *weight_state, *bias_state])  # autograd sees no launch
    value, grad_features = run_pass(features, target, offsets, labels, loss, factor, sink)
    return value * scale, grad_features if features_too else features.new_empty(0)
