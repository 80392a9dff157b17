"""What only a GPU shows: no wait for the host, CUDA graphs, bitwise repeats, a compiled encoder beside the step."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from haste import nn, ops, optim
from triton_cases import INTERPRETED, deterministic

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")]
RULES = {
    "sgd": lambda layer, lr: optim.SGD(layer.parameters(), lr=lr),
    "momentum": lambda layer, lr: optim.SGD(layer.parameters(), lr=lr, momentum=0.9, state_dtype=torch.bfloat16),
    "adamw": lambda layer, lr: optim.AdamW(layer.parameters(), lr=lr),
}


def _layer(dtype: torch.dtype = torch.bfloat16) -> nn.HeadTail:
    return nn.HeadTail(96, 1000, num_head_labels=64, fan_in=32, group_size=32, dtype=dtype, device="cuda")


def _batch(seed: int, capacity: int = 64) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return features (16, 96) and positives in a buffer of fixed capacity."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn((16, 96), generator=generator).bfloat16()
    counts = torch.randint(0, 4, (16,), generator=generator)
    labels = [torch.randperm(1000, generator=generator)[:count] for count in counts.tolist()]
    flat = torch.cat([*labels, torch.full((capacity - int(counts.sum()),), -1)])
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return features.cuda(), (offsets.cuda(), flat.cuda())


def _state(layer: nn.HeadTail, update: torch.optim.Optimizer) -> Iterator[Tensor]:
    yield from layer.parameters()
    for values in update.state.values():
        yield from values.values()


def test_triton_is_in_force() -> None:
    assert ops.kernels_in_force("cuda")[0] == "triton"


@pytest.mark.parametrize("rule", RULES)
def test_a_step_never_waits_for_the_device(rule: str) -> None:
    layer = _layer()
    update = RULES[rule](layer, torch.tensor(0.05, device="cuda"))
    features, positives = _batch(0)
    features.requires_grad_()
    layer.step(features, positives, update).backward()  # compiles, and makes the state
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer.step(features, positives, update).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("rule", RULES)
def test_twenty_replays_are_twenty_steps(rule: str) -> None:
    layer = _layer()
    twin = copy.deepcopy(layer)
    rates = [torch.tensor(0.05, device="cuda") for _ in range(2)]
    updates = [RULES[rule](one, lr) for one, lr in zip((layer, twin), rates, strict=True)]
    static, (offsets, labels) = _batch(0)
    static.requires_grad_()
    with deterministic():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            layer.step(static, (offsets, labels), updates[0]).backward()
        torch.cuda.current_stream().wait_stream(stream)
        eager = static.detach().clone().requires_grad_()
        twin.step(eager, (offsets, labels), updates[1]).backward()
        static.grad = None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = layer.step(static, (offsets, labels), updates[0])
            loss.backward()
        # Capturing runs nothing on the device: the step count there has not moved.
        for turn in range(20):
            features, positives = _batch(turn + 1)
            rate = 0.05 / (turn + 1)
            with torch.no_grad():
                static.copy_(features)
                static.grad.zero_()
            offsets.copy_(positives[0])
            labels.copy_(positives[1])
            for lr in rates:
                lr.fill_(rate)
            graph.replay()
            features.requires_grad_()
            expected = twin.step(features, positives, updates[1])
            expected.backward()
            assert torch.equal(loss, expected)
            assert torch.equal(static.grad, features.grad)
    for a, b in zip(_state(layer, updates[0]), _state(twin, updates[1]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_deterministic_steps_repeat_bitwise(dtype: torch.dtype) -> None:
    results = []
    with deterministic():
        for _ in range(2):
            layer = _layer(dtype)
            update = RULES["momentum"](layer, 0.05)
            for turn in range(5):
                features, positives = _batch(turn)
                layer.step(features.to(dtype), positives, update)
            results.append([t.clone() for t in _state(layer, update)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_gpu_and_a_cpu_round_with_the_same_bits() -> None:
    weight = torch.randn(40, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    grad = torch.randn(40, 24, generator=torch.Generator().manual_seed(1))
    results = []
    for device in ("cpu", "cuda"):
        stored = weight.clone().to(device)
        numbers = {"lr": torch.tensor(0.125, device=device), "step": torch.tensor(3, device=device)}
        ops.update(stored, grad.to(device), [], rule="sgd", hyper=[0.0, 0.0], seed=7, **numbers)
        results.append(stored.cpu())
    assert torch.equal(*results)


def test_a_compiled_encoder_trains_with_the_step() -> None:
    encoder = torch.nn.Sequential(torch.nn.Linear(24, 96), torch.nn.ReLU(), torch.nn.Linear(96, 96)).cuda()
    compiled = torch.compile(encoder)
    layer = _layer()
    update = RULES["sgd"](layer, 0.01)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    points = torch.randn((16, 24), device="cuda")
    _, positives = _batch(0)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = layer.step(compiled(points), positives, update)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_the_layers_paths_agree() -> None:
    layer = _layer(torch.float32)
    twin = copy.deepcopy(layer)
    features, positives = _batch(3)
    inputs = [features.float().requires_grad_() for _ in range(2)]
    updates = [RULES["adamw"](one, 0.01) for one in (layer, twin)]
    loss = layer.step(inputs[0], positives, updates[0])
    loss.backward()
    expected = twin.loss(inputs[1], positives)
    expected.backward()
    updates[1].step()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-5)
    for a, b in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    layer.rewire(0.3, updates[0], step=1, regrow="gradient", batch=(features.float(), positives))
    scores, labels = layer.topk(features.float(), 5)
    logits = layer(features.float())
    torch.testing.assert_close(scores, logits.topk(5).values, rtol=1e-4, atol=1e-4)
    assert labels.max() < 1000
