import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from haste import optim
from haste.optim._rule import RuleOptimizer
from layer_cases import batch_of, linear

STEPS = 20
SGD = {"lr": 0.03, "momentum": 0.7, "weight_decay": 0.2}
ADAMW = {"lr": 0.03, "betas": (0.7, 0.95), "eps": 1e-3, "weight_decay": 0.2}
PAIRS: dict[str, tuple[Callable[..., RuleOptimizer], Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (optim.SGD, torch.optim.SGD, SGD | {"momentum": 0.0}),
    "momentum": (optim.SGD, torch.optim.SGD, SGD),
    "adamw": (optim.AdamW, torch.optim.AdamW, ADAMW),
    "defaults": (optim.AdamW, torch.optim.AdamW, {"lr": 0.03, "weight_decay": 0.0}),
}


def _parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 8, 11), (7, 3), (9,), ()]
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def _set_gradients(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = (grad + 0.1 * parameter.detach().double()).to(parameter.dtype)


def _train(optimizer: torch.optim.Optimizer, steps: range) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step in steps:
        _set_gradients(parameters, step)
        optimizer.step()


def _groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.01, "weight_decay": 0.0}]


def _state(optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    return [
        (name, optimizer.state[p][name])
        for group in optimizer.param_groups
        for p in group["params"]
        for name in sorted(optimizer.state[p])
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PAIRS)
def test_the_rules_are_torchs(name: str, dtype: torch.dtype) -> None:
    ours, torchs, settings = PAIRS[name]
    mine, theirs = _parameters(dtype), _parameters(dtype)
    optimizers = ours(_groups(mine), **settings), torchs(_groups(theirs), **settings)
    for optimizer in optimizers:
        _train(optimizer, range(STEPS))
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-13}
    for found, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(found, expected, **close)
    found_state, expected_state = _state(optimizers[0]), _state(optimizers[1])
    if name == "sgd":
        assert {key for key, _ in found_state} == {"step"}
    else:
        found_state = [item for item in found_state if item[0] != "step"]
        expected_state = [item for item in expected_state if item[0] != "step"]
        assert [key for key, _ in found_state] == [key for key, _ in expected_state]
        for (_, found), (_, expected) in zip(found_state, expected_state, strict=True):
            torch.testing.assert_close(found, expected, **close)


def test_parameters_without_gradients_stay() -> None:
    parameters = _parameters()
    before = parameters[1].detach().clone()
    optimizer = optim.SGD(parameters, **SGD)
    _set_gradients(parameters, 0)
    parameters[1].grad = None
    optimizer.step()
    assert torch.equal(parameters[1], before)
    assert parameters[1] not in optimizer.state


def test_a_closure_gives_the_loss() -> None:
    parameter = nn.Parameter(torch.tensor([3.0]))
    optimizer = optim.SGD([parameter], lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9
    assert parameter.item() == pytest.approx(3 - 0.1 * 6)


# Saving


def _saved(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle"])
def test_stopping_half_way_changes_nothing(
    how: str, name: str, state_dtype: torch.dtype | None, weight_dtype: torch.dtype
) -> None:
    make, _, settings = PAIRS[name]
    settings = settings | {"state_dtype": state_dtype, "seed": 5}
    whole = _parameters(weight_dtype)
    _train(make(_groups(whole), **settings), range(STEPS))

    first = _parameters(weight_dtype)
    optimizer = make(_groups(first), **settings)
    _train(optimizer, range(STEPS // 2))
    if how == "state_dict":
        second = [nn.Parameter(p.detach().clone()) for p in first]
        resumed = make(_groups(second), **settings)
        resumed.load_state_dict(_saved(optimizer.state_dict()))
    elif how == "deepcopy":
        second, resumed = copy.deepcopy((first, optimizer))
    else:
        second, resumed = pickle.loads(pickle.dumps((first, optimizer)))
    _train(optimizer, range(3))  # must not reach the copy
    _train(resumed, range(STEPS // 2, STEPS))
    assert all(torch.equal(a, b) for a, b in zip(second, whole, strict=True))


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_moments_keep_their_dtype(weight_dtype: torch.dtype) -> None:
    for state_dtype in (torch.float32, torch.bfloat16):
        optimizer = optim.AdamW(_parameters(weight_dtype), **ADAMW, state_dtype=state_dtype)
        _train(optimizer, range(2))
        other = optim.AdamW(_parameters(weight_dtype), **ADAMW, state_dtype=state_dtype)
        other.load_state_dict(optimizer.state_dict())
        for one in (optimizer, other):
            assert {t.dtype for key, t in _state(one) if key != "step"} == {state_dtype}
            assert {t.dtype for key, t in _state(one) if key == "step"} == {torch.int64}


def test_the_state_of_torchs_adamw_can_be_loaded() -> None:
    theirs, mine = _parameters(), _parameters()
    optimizer = torch.optim.AdamW(_groups(theirs), **ADAMW)
    _train(optimizer, range(5))
    resumed = optim.AdamW(_groups(mine), **ADAMW)
    resumed.load_state_dict(optimizer.state_dict())
    for a, b in zip(mine, theirs, strict=True):
        a.data.copy_(b.data)
    for one in (optimizer, resumed):
        _train(one, range(5, 10))
    for found, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_momentum_may_begin_later() -> None:
    parameters = _parameters()
    optimizer = optim.SGD(parameters, lr=0.1)
    _train(optimizer, range(1))
    optimizer.param_groups[0]["momentum"] = 0.9
    _train(optimizer, range(1, 3))
    assert all("momentum_buffer" in optimizer.state[p] for p in parameters)


# Stochastic rounding


def test_bfloat16_weights_follow_small_steps() -> None:
    wide, narrow, nearest = (nn.Parameter(torch.ones(64, 64, dtype=torch.float32)) for _ in range(3))
    narrow.data, nearest.data = narrow.data.bfloat16(), nearest.data.bfloat16()
    optimizers = [optim.SGD([p], lr=2.0**-14) for p in (wide, narrow)] + [torch.optim.SGD([nearest], lr=2.0**-14)]
    for _ in range(32):
        for parameter, optimizer in zip((wide, narrow, nearest), optimizers, strict=True):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    assert torch.equal(nearest, torch.ones_like(nearest))  # every step is below half a unit in the last place
    # 32 steps of 2^-14; each moves by a unit of 2^-8 with probability 2^-6.
    standard_error = (32 * 2**-6 * 2**-16 / narrow.numel()) ** 0.5
    moved = narrow.double().mean().item() - 1
    assert wide.double().mean().item() - 1 == -(2**-9)
    assert abs(moved + 2**-9) < 4 * standard_error


def test_rounding_follows_the_seed() -> None:
    results = []
    for seed in (1, 1, 2, 1 + 2**64):
        parameters = _parameters(torch.bfloat16)
        _train(optim.SGD(parameters, **SGD, seed=seed), range(3))
        results.append(parameters[0].detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(results[0], results[3])


def test_layers_of_one_optimizer_round_apart() -> None:
    results = []
    for layer in (0, 1):
        module = linear(layer=layer, dtype=torch.bfloat16)
        module.weight.data.fill_(1.0)
        module.weight.grad = torch.ones_like(module.weight)
        optim.SGD(module.parameters(), lr=2.0**-9).step()
        results.append(module.weight.detach())
    assert not torch.equal(*results)


# Row-sparse gradients


def _sparse(rows: list[int], values: Tensor, length: int) -> Tensor:
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, (length, values.shape[1]))


def test_row_sparse_adamw_is_torchs_sparse_adam() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings = {"lr": 0.05, "betas": (0.7, 0.95), "eps": 1e-14}  # torch adds eps before its bias correction
    optimizers = optim.AdamW([mine], **settings), torch.optim.SparseAdam([theirs], **settings)
    for _ in range(STEPS):
        rows = torch.randint(0, 30, (8,), generator=generator).tolist()  # out of order, repeated
        values = torch.randn(8, 6, generator=generator, dtype=torch.float64)
        for parameter, optimizer in zip((mine, theirs), optimizers, strict=True):
            parameter.grad = _sparse(rows, values, 30)
            optimizer.step()
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_rows_without_a_gradient_are_left_alone(name: str) -> None:
    make, _, settings = PAIRS[name]
    sparse, dense = (nn.Parameter(torch.arange(24.0).view(8, 3)) for _ in range(2))
    optimizers = make([sparse], **settings), make([dense], **settings)
    for step in range(3):
        values = torch.randn(2, 3, generator=torch.Generator().manual_seed(step))
        sparse.grad = _sparse([1, 6], values, 8)
        dense.grad = sparse.grad.to_dense()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(sparse[[1, 6]], dense[[1, 6]])
    others = [0, 2, 3, 4, 5, 7]
    assert torch.equal(sparse[others], torch.arange(24.0).view(8, 3)[others])
    for key, tensor in _state(optimizers[0]):
        assert key == "step" or not tensor[others].any()


@pytest.mark.parametrize(
    ("parameter", "grad"),
    [
        (torch.zeros(4), torch.sparse_coo_tensor([[1]], [2.0], (4,))),
        (torch.zeros(4, 3), torch.sparse_coo_tensor([[1], [2]], [2.0], (4, 3))),
        (torch.zeros(4, 3, 2), torch.sparse_coo_tensor([[1]], torch.ones(1, 3, 2), (4, 3, 2))),
    ],
)
def test_other_sparse_gradients(parameter: Tensor, grad: Tensor) -> None:
    held = nn.Parameter(parameter)
    held.grad = grad
    with pytest.raises(ValueError, match="must be row-sparse, of a matrix; make others dense"):
        optim.SGD([held], lr=0.1).step()


# Rates of rows


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle"])
def test_rates_are_saved_and_loaded(how: str, weight_dtype: torch.dtype) -> None:
    rates = torch.rand(5, 8, generator=torch.Generator().manual_seed(1)) * 9
    whole = _parameters(weight_dtype)
    optimizer = optim.SGD(whole, **SGD, seed=5)
    optimizer.set_rates(whole[0], rates)
    given = rates.clone()
    rates.zero_()  # they are copied
    _train(optimizer, range(2))
    if how == "state_dict":
        second = [nn.Parameter(p.detach().clone()) for p in whole]
        resumed = optim.SGD(second, **SGD, seed=5)
        resumed.load_state_dict(_saved(optimizer.state_dict()))
    elif how == "deepcopy":
        second, resumed = copy.deepcopy((whole, optimizer))
    else:
        second, resumed = pickle.loads(pickle.dumps((whole, optimizer)))
    assert torch.equal(resumed.state[second[0]]["rates"], given)  # float32, whatever the weight
    for one in (optimizer, resumed):
        _train(one, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(second, whole, strict=True))


def test_a_rate_scales_what_its_row_moves_by() -> None:
    plain, rated = _parameters(), _parameters()
    rates = torch.tensor([1.0, 0.0, 20.0, 0.5, 2.0, 3.0, 1.0])
    optimizers = optim.SGD(plain, lr=0.03), optim.SGD(rated, lr=0.03)
    optimizers[1].set_rates(rated[1], rates)
    before = plain[1].detach().clone()
    for one in optimizers:
        _train(one, range(1))
    expected = before + (plain[1] - before) * rates[:, None]
    torch.testing.assert_close(rated[1].detach(), expected.detach())
    assert all(torch.equal(rated[i], plain[i]) for i in (0, 2, 3))


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (torch.ones(6), r"rates \(6,\) must be \(7,\), one for each of 7 rows"),
        (torch.ones(7, 3), r"rates \(7, 3\) must be \(7,\)"),
        (torch.full((7,), -1.0), r"rates \(-1.0\) must be finite and not negative"),
        (torch.full((7,), torch.inf), r"rates \(inf\) must be finite"),
        (torch.full((7,), torch.nan), r"rates \(nan\) must be finite"),
    ],
)
def test_rates_that_do_not_fit(rates: Tensor, message: str) -> None:
    parameters = _parameters()
    with pytest.raises(ValueError, match=message):
        optim.AdamW(parameters, lr=0.1).set_rates(parameters[1], rates)


def test_rates_of_what_takes_none() -> None:
    layer, parameters = linear(), _parameters()
    update = optim.SGD([*layer.parameters(), *parameters], lr=0.1)
    for bias, rates in ((layer.bias, torch.ones(13)), (parameters[2], torch.ones(()))):
        with pytest.raises(ValueError, match="rates must be for a weight"):
            update.set_rates(bias, rates)
    with pytest.raises(ValueError, match="update must hold the parameters"):
        optim.SGD(parameters, lr=0.1).set_rates(layer.weight, torch.ones(13, 8))
    with pytest.raises(TypeError, match="KahanAdamW takes none"):
        optim.KahanAdamW(parameters, lr=0.1).set_rates(parameters[1], torch.ones(7))


# The layer's roles


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_the_bias_is_never_decayed(name: str, fused: bool) -> None:
    make, _, settings = PAIRS[name]
    layer, (features, positives) = linear(), batch_of()
    before = layer.bias.detach().clone()
    update = make(layer.parameters(), **settings)
    if fused:
        layer.bias.data.fill_(1e4)  # a sigmoid of 1 exactly, whatever the features: a gradient of 13 without positives
        layer.weight.data.zero_()
        results = []
        for decay in (0.0, 0.9):
            other = copy.deepcopy(layer)
            update = make(other.parameters(), **(settings | {"weight_decay": decay}))
            for _ in range(5):
                other.step(features, positives, update)
            results.append(other.bias.detach())
        assert torch.equal(*results)
        return
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    weight = layer.weight.detach().abs().sum()
    for _ in range(5):
        update.step()
    assert torch.equal(layer.bias, before)
    assert layer.weight.abs().sum() < weight


# Settings


@pytest.mark.parametrize(
    ("make", "settings", "error", "message"),
    [
        (optim.SGD, {"lr": -1.0}, ValueError, r"lr \(-1.0\) must not be negative"),
        (optim.SGD, {"lr": 0.1, "momentum": 1.0}, ValueError, r"momentum \(1.0\) must be in \[0, 1\)"),
        (optim.SGD, {"lr": 0.1, "weight_decay": -0.1}, ValueError, r"weight_decay \(-0.1\) must not be negative"),
        (optim.AdamW, {"lr": 0.1, "betas": (0.9, 1.0)}, ValueError, r"betas \(0.9, 1.0\) must be in \[0, 1\)"),
        (optim.AdamW, {"lr": 0.1, "eps": 0.0}, ValueError, r"eps \(0.0\) must be above 0; a weight without"),
        (
            optim.AdamW,
            {"lr": 0.1, "state_dtype": torch.float16},
            TypeError,
            r"state_dtype \(torch.float16\) must be torch.float32 or torch.bfloat16",
        ),
    ],
)
def test_settings_out_of_range(make: Any, settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(_parameters(), **settings)


def test_default_betas_depend_on_the_moments() -> None:
    assert optim.AdamW(_parameters(), lr=0.1).defaults["betas"] == (0.9, 0.999)
    assert optim.AdamW(_parameters(), lr=0.1, state_dtype=torch.bfloat16).defaults["betas"] == (0.9, 0.99)
