"""The operators of `haste.ops` as Triton kernels, for GPUs.

`kernels` holds what runs on the device, the modules of the operators' names launch it, `plans` says how a shape is cut.
"""

from collections.abc import Callable
from typing import Any

from haste.ops.triton import fan_in, rewire, step, topk, update

IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "fan_in": fan_in.fan_in,
    "fan_in_backward": fan_in.fan_in_backward,
    "loss": step.loss,
    "loss_backward": step.loss_backward,
    "step": step.step,
    "update": update.update,
    "topk": topk.topk,
    "link_scores": rewire.link_scores,
    "regrow_gradient": rewire.regrow_gradient,
}
