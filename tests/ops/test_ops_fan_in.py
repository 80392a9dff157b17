import pytest
import torch

from haste import ops
from haste.ops import reference
from layer_cases import LAYOUTS, SIZES, assert_within_budget, leaf, operands, torch_logits


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SIZES)
def test_logits_and_gradients_are_the_references(name: str, weight_dtype: torch.dtype) -> None:
    x = operands(name, weight_dtype=weight_dtype)
    features, weight, bias = leaf(x.features), leaf(x.weight), leaf(x.bias)
    logits = ops.fan_in(features, weight, bias, x.indices, x.num_labels)
    truth, plain = x.to(torch.float64), x.to(torch.float32)
    inputs = leaf(plain.features), leaf(plain.weight), leaf(plain.bias)
    torchs = torch_logits(*inputs, plain)
    assert logits.dtype == torch.float32
    assert_within_budget(logits, reference.fan_in(*truth.layer, x.num_labels), torchs)

    grad = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
    logits.backward(grad)
    expected = reference.fan_in_backward(grad.double(), *truth.layer)
    others = torch.autograd.grad(torchs, inputs, grad)
    for found, exact, plainly in zip((features, weight, bias), expected, others, strict=True):
        assert found.grad.dtype == found.dtype
        assert_within_budget(found.grad, exact, plainly)


@pytest.mark.parametrize("name", ["gathered", "csr", "dense", "one-point"])
def test_gradcheck(name: str) -> None:
    x = operands(name).to(torch.float64)
    inputs = leaf(x.features[:4]), leaf(x.weight), leaf(x.bias)
    assert torch.autograd.gradcheck(lambda *a: ops.fan_in(*a, x.indices, x.num_labels), inputs, fast_mode=True)


@pytest.mark.parametrize("name", LAYOUTS)
def test_padded_rows_get_no_gradient(name: str) -> None:
    x = operands(name)
    weight, bias = leaf(x.weight), leaf(x.bias)
    ops.fan_in(x.features, weight, bias, x.indices, x.num_labels).square().sum().backward()
    assert not weight.grad.flatten(0, 1)[x.num_labels :].any()
    assert not bias.grad.flatten()[x.num_labels :].any()


def test_features_may_be_transposed_and_narrow() -> None:
    x = operands()
    expected = ops.fan_in(*x.layer, x.num_labels)
    strided = x.features.t().contiguous().t()
    assert torch.equal(ops.fan_in(strided, *x.layer[1:], x.num_labels), expected)
    half = x.features.bfloat16().requires_grad_()
    logits = ops.fan_in(half, *x.layer[1:], x.num_labels)
    assert torch.equal(logits, ops.fan_in(half.float(), *x.layer[1:], x.num_labels))
    logits.sum().backward()
    assert half.grad.dtype == torch.bfloat16


def test_indices_of_any_integer_type() -> None:
    x = operands()
    assert x.indices is not None
    assert x.indices.dtype == torch.int16
    expected = ops.fan_in(*x.layer, x.num_labels)
    for dtype in (torch.int32, torch.int64):
        assert torch.equal(ops.fan_in(*x.layer[:3], x.indices.to(dtype), x.num_labels), expected)


@pytest.mark.parametrize("name", LAYOUTS)
def test_autocast_changes_nothing(name: str) -> None:
    x = operands(name)
    features = leaf(x.features)
    outside = ops.loss(features, *x.layer[1:], x.positives, num_labels=x.num_labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ops.loss(features, *x.layer[1:], x.positives, num_labels=x.num_labels)
        logits = ops.fan_in(*x.layer, x.num_labels)
    assert torch.equal(inside, outside)
    assert torch.equal(logits, ops.fan_in(*x.layer, x.num_labels))
    assert torch.equal(*(torch.autograd.grad(value, features)[0] for value in (inside, outside)))


def test_second_derivatives_are_refused() -> None:
    x = operands()
    features = leaf(x.features)
    grad = leaf(torch.ones(len(features), x.num_labels))
    (slope,) = torch.autograd.grad(ops.fan_in(features, *x.layer[1:], x.num_labels), features, grad, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.zeros(13, 37, dtype=torch.int64)}, TypeError, r"features \(torch.int64\) must be floating"),
        ({"features": torch.zeros(37)}, ValueError, r"features \(37,\) must have shape \(batch, in_features\)"),
        ({"features": torch.zeros(0, 37)}, ValueError, r"features \(0, 37\) must hold at least one row; skip"),
        ({"bias": torch.zeros(13)}, ValueError, r"bias \(13,\) must have shape \(13, 8\)"),
        ({"indices": torch.zeros(13, 10)}, ValueError, r"indices \(13, 10\) must have shape \(13, 11\)"),
        ({"indices": None}, ValueError, r"features \(13, 37\) must have shape \(batch, 11\)"),
        ({"num_labels": 96}, ValueError, r"num_labels \(96\) must fill 13 groups of 8"),
        ({"num_labels": 105}, ValueError, r"num_labels \(105\) must fill 13 groups of 8"),
    ],
)
def test_operands_that_do_not_fit(change: dict, error: type[Exception], message: str) -> None:
    x = operands()
    arguments = {"features": x.features, "weight": x.weight, "bias": x.bias, "indices": x.indices}
    arguments |= {"num_labels": x.num_labels} | change
    with pytest.raises(error, match=message):
        ops.fan_in(**arguments)
