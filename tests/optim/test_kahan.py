import copy

import pytest
import torch
from torch import nn

from haste import optim
from haste.nn import FanInLinear


def _grads(shape: tuple[int, ...], steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


def _train(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, steps: int = 40) -> torch.Tensor:
    for grad in _grads(tuple(parameter.shape), steps):
        parameter.grad = grad.to(parameter.dtype)
        optimizer.step()
    return parameter.detach().float()


def _value(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    return parameter.detach().float() + optimizer.state[parameter]["compensation"].float()


@pytest.mark.parametrize("shape", [(700, 300), (11,), ()])
def test_weight_and_compensation_add_up_to_what_float32_would_hold(shape: tuple[int, ...]) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    wide, narrow, plain = (
        nn.Parameter(start.to(d, copy=True)) for d in (torch.float32, torch.bfloat16, torch.bfloat16)
    )
    settings = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.01}
    kahan = optim.KahanAdamW([narrow], **settings)
    expected = _train(wide, torch.optim.AdamW([wide], **settings))
    _train(narrow, kahan)
    _train(plain, torch.optim.AdamW([plain], **settings))
    moved = (expected - start.float()).abs().mean()
    assert (_value(narrow, kahan) - expected).abs().mean() < 0.03 * moved
    assert (plain.detach().float() - expected).abs().mean() > 0.3 * moved
    half_unit = 2**-8 * narrow.detach().float().abs()
    assert ((_value(narrow, kahan) - narrow.detach().float()).abs() <= half_unit).all()


def test_float32_parameters_train_as_by_adamw() -> None:
    start = torch.randn(30, 20, generator=torch.Generator().manual_seed(1))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings = {"lr": 0.01, "weight_decay": 0.1}
    update = optim.KahanAdamW([ours], **settings)
    torch.testing.assert_close(_train(ours, update), _train(theirs, optim.AdamW([theirs], **settings)))
    assert "compensation" not in update.state[ours]


@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
def test_rows_without_a_gradient_stay(state_dtype: torch.dtype | None) -> None:
    start = torch.randn(50, 20, generator=torch.Generator().manual_seed(1)).bfloat16()
    dense, sparse = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    rows = torch.tensor([3, 7, 41])
    updates = [optim.KahanAdamW([p], lr=0.01, state_dtype=state_dtype, seed=5) for p in (dense, sparse)]
    for grad in _grads((3, 20), 3):
        sparse.grad = torch.sparse_coo_tensor(rows[None], grad.bfloat16(), (50, 20))
        dense.grad = torch.zeros(50, 20, dtype=torch.bfloat16).index_copy_(0, rows, grad.bfloat16())
        for update in updates:
            update.step()
    others = torch.ones(50, dtype=torch.bool).index_fill_(0, rows, False)
    assert torch.equal(sparse[others], start[others])
    for name in ("exp_avg", "exp_avg_sq", "compensation"):
        found, expected = updates[1].state[sparse][name], updates[0].state[dense][name]
        assert torch.equal(found[rows], expected[rows]), name  # rounding bits are those of the row, not of its place
        assert not found[others].any()


def test_bfloat16_moments_follow_float32_ones_on_average() -> None:
    parameter = nn.Parameter(torch.zeros(400, 64, dtype=torch.bfloat16))
    update = optim.KahanAdamW([parameter], lr=0.0, state_dtype=torch.bfloat16)
    assert update.defaults["betas"] == (0.9, 0.99)
    for _ in range(60):
        parameter.grad = torch.ones_like(parameter)
        update.step()
    second = update.state[parameter]["exp_avg_sq"]
    assert second.dtype == torch.bfloat16
    assert second.float().mean().item() == pytest.approx(1 - 0.99**60, rel=2e-3)


def test_state_survives_saving() -> None:
    parameter = nn.Parameter(torch.randn(9, 8, generator=torch.Generator().manual_seed(1)).bfloat16())
    update = optim.KahanAdamW([parameter], lr=0.01, state_dtype=torch.bfloat16)
    _train(parameter, update, 3)
    other = nn.Parameter(parameter.detach().clone())
    again = optim.KahanAdamW([other], lr=0.01, state_dtype=torch.bfloat16)
    again.load_state_dict(copy.deepcopy(update.state_dict()))
    _train(parameter, update, 2)
    _train(other, again, 2)
    assert torch.equal(parameter, other)
    assert again.state[other]["exp_avg"].dtype == torch.bfloat16


def test_a_step_reads_nothing_back_from_the_device() -> None:
    parameters = [nn.Parameter(torch.empty(shape, dtype=torch.bfloat16, device="meta")) for shape in ((9, 8), (5,))]
    update = optim.KahanAdamW(parameters, lr=0.01, weight_decay=0.1, state_dtype=torch.bfloat16)
    for count in (1, 2):
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        update.step()  # there are no values on this device: to read one raises
        assert [int(update.state[parameter]["step"]) for parameter in parameters] == [count, count]


def test_the_fused_pass_does_not_take_it() -> None:
    layer = FanInLinear(8, 6, 4, 2)
    update = optim.KahanAdamW(layer.parameters(), lr=0.1)
    positives = torch.tensor([0, 1]), torch.tensor([2])
    with pytest.raises(TypeError, match=r"update \(KahanAdamW\) must be haste.optim.SGD or haste.optim.AdamW"):
        layer.step(torch.randn(1, 8), positives, update)
