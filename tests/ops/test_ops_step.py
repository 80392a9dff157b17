from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from haste import ops
from haste.ops import reference
from layer_cases import LAYOUTS, LOSSES, SIZES, Operands, leaf, operands

RULES: dict[str, dict[str, Any]] = {
    "sgd": {"rule": "sgd", "hyper": [0.0, 0.01], "bias_hyper": [0.0, 0.0]},
    "momentum": {"rule": "sgd", "hyper": [0.6, 0.01], "bias_hyper": [0.6, 0.0]},
    "adamw": {"rule": "adamw", "hyper": [0.8, 0.95, 1e-3, 0.01], "bias_hyper": [0.8, 0.95, 1e-3, 0.0]},
}
_STATES = {"sgd": 0, "momentum": 1, "adamw": 2}


def _state(like: Tensor, rule: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    state = [torch.rand(like.shape, generator=generator).to(dtype or like.dtype) for _ in range(_STATES[rule])]
    for tensor in state:
        tensor[like == 0] = 0  # padded rows
    return state


def _step(
    x: Operands, rule: str, loss: str = "bce", state_dtype: torch.dtype | None = None, **more: Any
) -> list[Tensor]:
    """Take a step on copies; return loss, grad_features, then weight, bias and their state afterwards."""
    features, weight, bias = leaf(x.features), x.weight.clone(), x.bias.clone()
    states = [_state(t, rule, state_dtype or t.dtype) for t in (weight, bias)]
    settings = {**RULES[rule], "lr": torch.tensor(0.02), "bias_lr": torch.tensor(0.03), "step": torch.tensor(4)}
    settings |= {"seed": 9, "layer": 2, "weight_state": states[0], "bias_state": states[1], "loss": loss} | more
    value = ops.step(features, weight, bias, x.indices, x.positives, num_labels=x.num_labels, **settings)
    value.backward()
    return [value.detach(), features.grad, weight, bias, *states[0], *states[1]]


def _reference_step(
    x: Operands, rule: str, loss: str = "bce", state_dtype: torch.dtype | None = None, **more: Any
) -> list[Tensor]:
    weight, bias = x.weight.clone(), x.bias.clone()
    states = [_state(t, rule, state_dtype or t.dtype) for t in (weight, bias)]
    settings = RULES[rule]
    numbers = (torch.tensor(0.02), torch.tensor(0.03), torch.tensor(4), x.num_labels, loss, more.get("scale", 1.0))
    hyper = (settings["rule"], settings["hyper"], settings["bias_hyper"])
    value, grad = reference.step(
        x.features, weight, bias, *states, x.indices, *x.positives, *numbers, *hyper, 9, 2, more.get("first_row", 0),
        more.get("rates"),
    )  # fmt: skip
    return [value, grad, weight, bias, *states[0], *states[1]]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SIZES)
def test_step_is_the_references(name: str, rule: str, loss: str) -> None:
    x = operands(name)
    found = _step(x, rule, loss, scale=0.1)
    expected = _reference_step(x.to(torch.float64), rule, loss, scale=0.1)
    for result, truth in zip(found, expected, strict=True):
        scale = truth.abs().max().clamp(min=1)
        assert result.dtype == torch.float32
        assert ((result.double() - truth).abs() <= 5e-6 * scale).all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_step_in_float64_is_the_references(name: str, rule: str) -> None:
    x = operands(name).to(torch.float64)
    for found, truth in zip(_step(x, rule), _reference_step(x, rule), strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_bfloat16_rounds_with_the_references_bits(name: str, rule: str) -> None:
    x = operands(name, weight_dtype=torch.bfloat16)
    found, expected = (f(x, rule, state_dtype=torch.bfloat16, first_row=8 * 11) for f in (_step, _reference_step))
    for result, truth in zip(found, expected, strict=True):
        if result.dtype == torch.bfloat16:
            # The float32 values before rounding differ in the last bits, which seldom changes where they round to.
            assert (result == truth).float().mean() > 0.998
            torch.testing.assert_close(result.float(), truth.float(), rtol=2**-6, atol=1e-3)
        else:
            torch.testing.assert_close(result, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["gathered", "csr", "dense", "one-label"])
def test_rates_are_the_references(name: str, rule: str) -> None:
    x = operands(name)
    rates = torch.rand(x.bias.shape, generator=torch.Generator().manual_seed(1)) * 5
    found = _step(x, rule, rates=rates)
    expected = _reference_step(x.to(torch.float64), rule, rates=rates)
    for result, truth in zip(found, expected, strict=True):
        assert ((result.double() - truth).abs() <= 5e-6 * truth.abs().max().clamp(min=1)).all()
    for found, truth in zip(_step(x.to(torch.float64), rule, rates=rates), expected, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_rate_is_a_learning_rate_of_the_row(name: str, rule: str, dtype: torch.dtype) -> None:
    x = operands(name, weight_dtype=dtype)
    fast = torch.zeros_like(x.bias, dtype=torch.bool)
    fast.view(-1)[3::5] = True
    plain = _step(x, rule)
    faster = _step(x, rule, lr=torch.tensor(0.08))
    found = _step(x, rule, rates=torch.where(fast, 4.0, 1.0))  # a power of two: no rounding tells the two apart
    assert not torch.equal(plain[2][fast], faster[2][fast])
    assert torch.equal(found[2], torch.where(fast[..., None], faster[2], plain[2]))
    for position in (0, 1, *range(3, len(found))):  # neither the bias nor the moments follow the rates
        assert torch.equal(found[position], plain[position])


@pytest.mark.parametrize("name", SIZES)
def test_features_that_need_no_gradient_get_none(name: str) -> None:
    x = operands(name)
    expected = _step(x, "momentum")
    weight, bias = x.weight.clone(), x.bias.clone()
    states = [_state(t, "momentum") for t in (weight, bias)]
    value = ops.step(
        x.features, weight, bias, x.indices, x.positives, num_labels=x.num_labels, **RULES["momentum"],
        lr=torch.tensor(0.02), bias_lr=torch.tensor(0.03), step=torch.tensor(4), seed=9, layer=2,
        weight_state=states[0], bias_state=states[1],
    )  # fmt: skip
    assert not value.requires_grad
    for found, truth in zip((value, weight, bias, *states[0], *states[1]), expected[:1] + expected[2:], strict=True):
        assert torch.equal(found, truth)


@pytest.mark.parametrize("name", LAYOUTS)
def test_gradient_belongs_to_the_weights_before_the_update(name: str) -> None:
    x = operands(name)
    features = leaf(x.features)
    ops.loss(features, *x.layer[1:], x.positives, num_labels=x.num_labels).backward()
    found = _step(x, "momentum")[1]
    torch.testing.assert_close(found, features.grad, rtol=0, atol=0)


def test_backward_scales_the_gradient() -> None:
    x = operands()
    features = leaf(x.features)
    value = ops.step(
        features, x.weight, x.bias, x.indices, x.positives, num_labels=x.num_labels,
        lr=torch.tensor(0.0), step=torch.tensor(1), rule="sgd", hyper=[0.0, 0.0],
    )  # fmt: skip
    (value * 3).backward()
    expected = leaf(x.features)
    (3 * ops.loss(expected, *x.layer[1:], x.positives, num_labels=x.num_labels)).backward()
    torch.testing.assert_close(features.grad, expected.grad)


def test_bfloat16_features_take_the_same_step() -> None:
    x = operands()
    half = replace(x, features=x.features.bfloat16())
    wide = replace(x, features=half.features.float())
    found, expected = _step(half, "adamw"), _step(wide, "adamw")
    assert found[1].dtype == torch.bfloat16
    assert torch.equal(found[1], expected[1].bfloat16())
    assert all(torch.equal(a, b) for a, b in zip(found[2:], expected[2:], strict=True))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("features", "weight"), [(torch.float32, torch.float64), (torch.float64, torch.float32)], ids=str
)
def test_mixed_precisions(rule: str, features: torch.dtype, weight: torch.dtype) -> None:
    x = operands()
    mixed = replace(x, features=x.features.to(features), weight=x.weight.to(weight), bias=x.bias.to(weight))
    for found, expected in zip(_step(mixed, rule), _step(x, rule), strict=True):
        torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_features_that_are_not_finite_change_nothing(bad: float) -> None:
    x = operands()
    weight, bias = x.weight.clone(), x.bias.clone()
    x.features[5, 3] = bad
    with pytest.raises(ValueError, match=r"features \(row 5\) must be finite; nothing was updated. Lower"):
        ops.step(
            x.features, weight, bias, x.indices, x.positives, num_labels=x.num_labels,
            lr=torch.tensor(0.1), step=torch.tensor(1), rule="sgd", hyper=[0.0, 0.0],
        )  # fmt: skip
    assert torch.equal(weight, x.weight)
    assert torch.equal(bias, x.bias)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "adam"}, r"rule \(adam\) must be one of sgd, adamw"),
        ({"hyper": [0.9]}, r"hyper \(1 numbers\) must hold 2 numbers for sgd"),
        ({"hyper": [0.9, 0.0]}, r"state \(0 tensors\) must hold 1 tensors for sgd"),
        ({"bias_hyper": [0.9, 0.0]}, r"state \(0 tensors\) must hold 1 tensors for sgd"),
        ({"loss": "hinge"}, r"loss \(hinge\) must be one of"),
        ({"rates": torch.ones(100)}, r"rates \(100,\) must be contiguous, one for each of the 104 rows of weight"),
    ],
)
def test_settings_that_do_not_fit(change: dict, message: str) -> None:
    x = operands()
    settings = {"lr": torch.tensor(0.1), "step": torch.tensor(1), "rule": "sgd", "hyper": [0.0, 0.0], **change}
    with pytest.raises(ValueError, match=message):
        ops.step(*x.layer, x.positives, num_labels=x.num_labels, **settings)
