"""Low-rank adapters (LoRA) in a transformer, through the package `peft`."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SCALE = 2  # alpha / rank


def check_lora(rank: int, width: int) -> None:
    """Raise ValueError for a rank above the width of the transformer, or where there is no package `peft`."""
    if rank > width:
        raise ValueError(
            f"encoder.lora ({rank}) must not exceed {width}, the width of the transformer; set encoder.lora: 0 to "
            "train all weights"
        )
    if importlib.util.find_spec("peft") is None:
        raise ValueError(f"encoder.lora ({rank}) needs the package peft; pip install 'haste-xmc[lora]'")


def add_adapters(model: PreTrainedModel, rank: int, *, seed: int) -> None:
    """Freeze a transformer and give every linear layer of it an adapter, in place.

        y = W x + b + 2 B A x,    A (rank, inputs) random, B (outputs, rank) = 0;  A and B alone require gradients

    Args:
        model: of `transformers`.
        rank: of the adapters.
        seed: of A's initial values.

    Raises:
        ValueError: there is no package `peft`.

    LoRA, arXiv 2106.09685, with adapters in every linear layer and without dropout.
    """
    check_lora(rank, model.config.hidden_size)
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(r=rank, lora_alpha=_SCALE * rank, target_modules="all-linear", lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model)


def merge_adapters(model: PreTrainedModel) -> None:
    """Put W + 2 B A, summed in float32, in the place of W and its adapter; all weights require gradients again."""
    from peft.tuners.lora import LoraLayer

    modules: list[tuple[str, nn.Module]] = list(model.named_modules())
    for name, module in modules:
        if isinstance(module, LoraLayer):
            layer = module.get_base_layer()
            dtype = next(layer.parameters()).dtype
            module.float().merge()
            model.set_submodule(name, layer.to(dtype))
    model.requires_grad_(True)
