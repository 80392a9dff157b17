import copy

import pytest
import torch
from torch import nn

from haste.nn import FanInLinear
from haste.optim import SGD, AdamW, ChainedOptimizer, cosine_schedule


def parts(seed: int = 0) -> tuple[nn.Linear, FanInLinear, ChainedOptimizer]:
    torch.manual_seed(seed)
    encoder, layer = nn.Linear(5, 12), FanInLinear(12, 20, 4, 4)
    chain = ChainedOptimizer(
        torch.optim.AdamW(encoder.parameters(), lr=0.1), SGD(layer.parameters(), lr=0.2, momentum=0.9)
    )
    return encoder, layer, chain


def train(encoder: nn.Linear, layer: FanInLinear, chain: ChainedOptimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        x = torch.randn((6, 5), generator=torch.Generator().manual_seed(step))
        positives = (torch.arange(7), torch.arange(6) * 3)
        layer.step(encoder(x), positives, chain.optimizers[1]).backward()  # type: ignore[arg-type]
        chain.step()
        chain.zero_grad()


def tensors(encoder: nn.Linear, layer: FanInLinear) -> list[torch.Tensor]:
    return [*encoder.state_dict().values(), *layer.state_dict().values()]


def test_it_steps_as_its_parts_do() -> None:
    encoder, layer, chain = parts()
    train(encoder, layer, chain, 4)
    alone, alone_layer, apart = parts()
    first, second = apart.optimizers
    for step in range(4):
        x = torch.randn((6, 5), generator=torch.Generator().manual_seed(step))
        alone_layer.loss(alone(x), (torch.arange(7), torch.arange(6) * 3)).backward()
        for optimizer in (first, second):
            optimizer.step()
            optimizer.zero_grad()
    for found, expected in zip(tensors(encoder, layer), tensors(alone, alone_layer), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_schedule_drives_all_parts() -> None:
    _, _, chain = parts()
    schedule = cosine_schedule(chain, 1, 10)
    assert [group["lr"] for part in chain.optimizers for group in part.param_groups] == [0.05, 0.1]
    chain.step()
    schedule.step()
    assert [group["lr"] for part in chain.optimizers for group in part.param_groups] == [0.1, 0.2]


def test_saved_and_loaded_it_goes_on_bitwise() -> None:
    encoder, layer, chain = parts()
    train(encoder, layer, chain, 6)
    half, half_layer, before = parts()
    train(half, half_layer, before, 3)
    again, again_layer, after = parts(seed=1)
    again.load_state_dict(half.state_dict())
    again_layer.load_state_dict(half_layer.state_dict())
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    assert after.state.keys() == {*again.parameters(), *again_layer.parameters()}
    train(again, again_layer, after, 3, first=3)
    assert all(torch.equal(a, b) for a, b in zip(tensors(again, again_layer), tensors(encoder, layer), strict=True))


def test_the_closure_runs_once() -> None:
    encoder, _, chain = parts()
    calls = []

    def closure() -> float:
        assert torch.is_grad_enabled()
        calls.append(1)
        encoder(torch.ones(1, 5)).sum().backward()
        return 3.0

    before = encoder.weight.detach().clone()
    assert chain.step(closure) == 3.0
    assert len(calls) == 1
    assert not torch.equal(before, encoder.weight)


def test_a_copy_trains_its_own_parameters() -> None:
    encoder, _, chain = parts()
    copied_encoder, copied = copy.deepcopy((encoder, chain))
    copied_encoder(torch.ones(1, 5)).sum().backward()
    copied.step()
    assert not torch.equal(copied_encoder.weight, encoder.weight)


def test_what_it_refuses() -> None:
    encoder, layer, chain = parts()
    with pytest.raises(ValueError, match="at least one"):
        ChainedOptimizer()
    with pytest.raises(ValueError, match="2 are in two of them"):
        ChainedOptimizer(torch.optim.SGD(encoder.parameters(), lr=0.1), AdamW(encoder.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="added to one of the optimizers"):
        chain.add_param_group({"params": list(layer.parameters())})
    with pytest.raises(ValueError, match=r"state_dict \(1 optimizers\) must hold 2"):
        chain.load_state_dict(ChainedOptimizer(SGD(layer.parameters(), lr=0.1)).state_dict())
    with pytest.raises(ValueError, match=r"state_dict \(0 optimizers\)"):
        chain.load_state_dict(SGD(layer.parameters(), lr=0.1).state_dict())
