import math

import numpy as np
import pytest
import torch
from torch import nn

from haste import optim


def _rates(warmup_steps: int, total_steps: int, steps: int) -> list[float]:
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = optim.SGD([{"params": [parameter]}], lr=2.0)
    schedule = optim.cosine_schedule(optimizer, warmup_steps, total_steps)
    rates = []
    for _ in range(steps):
        before = parameter.detach().clone()
        parameter.grad = torch.ones(3)
        optimizer.step()
        rates.append((before - parameter.detach())[0].item())
        schedule.step()
    return rates


def test_the_rate_rises_and_falls() -> None:
    rates = _rates(warmup_steps=4, total_steps=14, steps=16)
    rise = [2 * (t + 1) / 5 for t in range(4)]
    fall = [1 + math.cos(math.pi * t / 10) for t in range(10)]
    assert rates == pytest.approx([*rise, *fall, 0, 0], abs=1e-5)


def test_no_warmup() -> None:
    assert _rates(0, 10, 3) == pytest.approx([1 + math.cos(math.pi * t / 10) for t in range(3)], abs=1e-5)


def test_warmup_longer_than_training() -> None:
    assert _rates(9, 3, 3) == pytest.approx([0.2, 0.4, 0.6], abs=1e-5)


def test_every_group_keeps_its_own_peak() -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = optim.AdamW([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.5}], lr=0.1)
    optim.cosine_schedule(optimizer, 1, 10)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.25])


def test_negative_warmup() -> None:
    optimizer = optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match=r"warmup_steps \(-1\) must not be negative"):
        optim.cosine_schedule(optimizer, -1, 10)


def test_rare_labels_have_higher_rates() -> None:
    counts = np.array([1000, 100, 50, 25, 10, 4, 1, 0])
    ratio = 1000 / np.maximum(counts, 1)
    for rarity in (1.0, 0.5, 0.0):
        rates = optim.rarity_rates(counts, rarity)
        assert rates.dtype == torch.float32
        assert rates.numpy() == pytest.approx(np.minimum(ratio**rarity, 20))
    with pytest.raises(ValueError, match=r"rarity \(1.5\) must be in \[0, 1\]"):
        optim.rarity_rates(counts, 1.5)
