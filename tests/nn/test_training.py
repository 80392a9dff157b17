"""Training the layer for some steps: a golden run, padding, memory."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from haste import ops, optim
from haste.nn import FanInLinear, HeadTail
from layer_cases import batch_of, linear, padding

# The loss per point at steps 0, 5, ..., 45 of `_golden_run`.
GOLDEN = [43.637138, 29.578609, 17.506327, 13.829588, 12.675617, 12.023257, 10.510725, 11.028732, 11.327742, 11.160122]


def _golden_data() -> tuple[Tensor, Tensor]:
    """Return documents (200, 24) and truth (200, 60): a label is positive where its own direction says so."""
    generator = torch.Generator().manual_seed(0)
    documents = torch.randn(200, 24, generator=generator)
    directions = torch.randn(24, 60, generator=generator)
    return documents, documents @ directions > 8


def _golden_run() -> list[float]:
    documents, truth = _golden_data()
    output = HeadTail(24, 60, num_head_labels=8, fan_in=8, group_size=4, label_order=torch.arange(59, -1, -1), seed=1)
    update = optim.SGD(output.layer_parameters(), lr=0.02, momentum=0.5, weight_decay=1e-3)
    schedule = optim.cosine_schedule(update, 5, 50)
    losses = []
    for step in range(50):
        rows = torch.arange(16 * step, 16 * step + 16) % 200
        positives = torch.nn.functional.pad(truth[rows].sum(1).cumsum(0), (1, 0)), truth[rows].nonzero()[:, 1]
        losses.append(output.step(documents[rows], positives, update).item() / 16)
        schedule.step()
        if step == 24:
            output.rewire(0.5, update, regrow="gradient", batch=(documents[rows], positives), seed=1, step=25)
    return losses


def test_golden_losses() -> None:
    losses = _golden_run()
    assert losses[::5] == pytest.approx(GOLDEN, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["gathered", "dense", "one-label"])
def test_padded_rows_stay_zero(name: str, fused: bool, rule: str, dtype: torch.dtype) -> None:
    layer, (features, positives) = linear(name, dtype=dtype), batch_of(name)
    settings = {"lr": 0.05, "weight_decay": 0.1, "state_dtype": dtype}
    if rule == "sgd":
        update = optim.SGD(layer.parameters(), momentum=0.9, **settings)
    else:
        update = optim.AdamW(layer.parameters(), **settings)
    for step in range(1, 9):
        if fused:
            layer.step(features, positives, update)
        else:
            update.zero_grad()
            layer.loss(features, positives).backward()
            update.step()
            update.zero_grad()
        if step % 3 == 0 and layer.indices is not None:
            layer.rewire(0.5, update, init="uniform", seed=step, step=step)
        assert not padding(layer).any()
    for parameter in layer.parameters():
        for tensor in update.state[parameter].values():
            if tensor.shape == parameter.shape:
                rows = tensor.reshape(-1, tensor.shape[-1] if parameter is layer.weight else 1)
                assert not rows[layer.num_labels :].any()


class _Sizes(TorchDispatchMode):
    """Notes the elements of every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.elements |= {tensor.numel() for tensor in tree_leaves(result) if isinstance(tensor, Tensor)}
        return result


def test_no_tensor_has_a_column_for_every_label(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, num_labels, fan_in, group_size = 63, 200_000, 64, 32
    for operator in (ops.step, ops.topk):  # an operator is one call to the mode; its function is every tensor in it
        names = operator.__globals__
        monkeypatch.setitem(names, f"{operator.__name__}_op", names[f"_{operator.__name__}"])
    features = torch.randn(batch, 128, requires_grad=True)
    positives = torch.arange(batch + 1), torch.arange(batch) * 3000
    with _Sizes() as made:
        layer = FanInLinear(128, num_labels, fan_in, group_size, dtype=torch.bfloat16)
        layer.step(features, positives, optim.SGD(layer.parameters(), lr=0.05)).backward()
        layer.topk(features[:8].detach(), 5)
    assert 1 << 18 < max(made.elements - {layer.weight.numel()}) < batch * num_labels / 4
