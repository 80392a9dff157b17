import pytest
import torch

from haste import ops
from layer_cases import LAYOUTS, LOSSES, SIZES, assert_within_budget, leaf, operands, reference_loss, torch_loss


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SIZES)
def test_loss_and_gradients_are_the_references(name: str, weight_dtype: torch.dtype, loss: str) -> None:
    x = operands(name, weight_dtype=weight_dtype)
    features, weight, bias = leaf(x.features), leaf(x.weight), leaf(x.bias)
    value = ops.loss(features, weight, bias, x.indices, x.positives, num_labels=x.num_labels, loss=loss)
    (value * 0.7).backward()
    assert value.dtype == torch.float32
    found = (value, features.grad, weight.grad, bias.grad)
    expected = reference_loss(x.to(torch.float64), loss, scale=0.7)
    torchs = torch_loss(x.to(torch.float32), loss, scale=0.7)
    for result, truth, plain in zip(found, expected, torchs, strict=True):
        assert_within_budget(result.detach(), truth, plain)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_no_positives_at_all(name: str, loss: str) -> None:
    x = operands(name, with_positives=False)
    weight = leaf(x.weight)
    value = ops.loss(x.features, weight, x.bias, x.indices, x.positives, num_labels=x.num_labels, loss=loss)
    value.backward()
    expected, torchs = reference_loss(x.to(torch.float64), loss), torch_loss(x, loss)
    assert_within_budget(value.detach(), expected[0], torchs[0])
    assert_within_budget(weight.grad, expected[2], torchs[2])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_gradcheck(name: str, loss: str) -> None:
    x = operands(name).to(torch.float64)
    inputs = leaf(x.features), leaf(x.weight), leaf(x.bias)

    def of(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return ops.loss(features, weight, bias, x.indices, x.positives, num_labels=x.num_labels, loss=loss)

    # Away from the kinks of the hinge, where z = +-1, differences of 1e-6 see a smooth function.
    assert torch.autograd.gradcheck(of, inputs, fast_mode=True)


@pytest.mark.parametrize("z", [-200.0, -90.0, -20.0, -1.0, 0.0, 1.0, 6.0, 20.0, 90.0, 200.0])
@pytest.mark.parametrize("positive", [False, True])
def test_bce_keeps_its_precision_at_extreme_logits(z: float, positive: bool) -> None:
    features, weight = leaf(torch.ones(1, 1)), torch.full((1, 1, 1), z)
    labels = torch.zeros(int(positive), dtype=torch.int64)
    positives = (torch.tensor([0, len(labels)]), labels)
    value = ops.loss(features, weight, torch.zeros(1, 1), None, positives, num_labels=1)
    value.backward()
    sign = torch.tensor(-z if positive else z, dtype=torch.float64)
    expected = torch.nn.functional.softplus(sign, threshold=1000)
    slope = (-1 if positive else 1) * torch.sigmoid(sign) * z
    torch.testing.assert_close(value.detach().double(), expected, rtol=2e-7, atol=1e-5 if positive else 1e-38)
    torch.testing.assert_close(features.grad.double().squeeze(), slope, rtol=1e-6, atol=1e-36)


def test_bfloat16_weights_do_not_narrow_the_gradient() -> None:
    # Autograd in bfloat16 would give a positive at z = 8 no gradient: sigmoid(8) rounds to 1.
    weight, positives = torch.full((1, 1, 1), 8.0, dtype=torch.bfloat16), (torch.tensor([0, 1]), torch.tensor([0]))
    features = leaf(torch.ones(1, 1))
    ops.loss(features, weight, torch.zeros(1, 1), None, positives, num_labels=1).backward()
    assert features.grad.item() == pytest.approx(-8 * 3.3535e-4, rel=1e-3)


def test_positives_in_any_order_and_integer_type() -> None:
    x = operands()
    expected = ops.loss(*x.layer, x.positives, num_labels=x.num_labels)
    shuffled = x.labels.clone()
    for start, stop in zip(x.offsets[:-1], x.offsets[1:], strict=True):
        shuffled[start:stop] = shuffled[start:stop].flip(0)
    assert not torch.equal(shuffled, x.labels)
    assert torch.equal(ops.loss(*x.layer, (x.offsets.int(), shuffled.int()), num_labels=x.num_labels), expected)


@pytest.mark.parametrize(
    ("positives", "error", "message"),
    [
        (([0, 1, 2], [3, 101]), ValueError, r"positives label \(101\) must be in \[0, 101\); drop labels"),
        (([0, 1, 2], [-1, 3]), ValueError, r"positives label \(-1\) must be in \[0, 101\)"),
        (([0, 3, 4], [5, 9, 5, 2]), ValueError, r"positives label \(5\) must not repeat in a row; row 0 holds it"),
        (([1, 1, 2], [3, 4]), ValueError, r"offsets must run from 0 to len\(labels\) = 2 without decrease"),
        (([0, 1, 3], [3, 4]), ValueError, r"offsets must run from 0 to len\(labels\) = 2 without decrease"),
        (([0, 3, 2], [3, 4]), ValueError, r"offsets must run from 0 to len\(labels\) = 2 without decrease"),
        (([0, 2], [3, 4]), ValueError, r"positives offsets \(2 values\) must hold batch \+ 1 = 3 values"),
        (([0, 1, 2], [[3], [4]]), ValueError, r"positives labels \(2, 1\) must have one dimension"),
        (([0, 1, 2], [3.0, 4.0]), TypeError, r"positives labels \(torch.float32\) must be integers; convert"),
        (([0, 1, 2], [True, False]), TypeError, r"positives labels \(torch.bool\) must be integers"),
    ],
)
def test_positives_that_do_not_fit(positives: tuple, error: type[Exception], message: str) -> None:
    x = operands()
    given = tuple(map(torch.tensor, positives))
    with pytest.raises(error, match=message):
        ops.loss(x.features[:2], *x.layer[1:], given, num_labels=x.num_labels)


def test_a_label_may_repeat_in_other_rows() -> None:
    x = operands()
    positives = (torch.tensor([0, 1, 2]), torch.tensor([4, 4]))
    assert ops.loss(x.features[:2], *x.layer[1:], positives, num_labels=x.num_labels).isfinite()


def test_unknown_loss() -> None:
    x = operands()
    with pytest.raises(ValueError, match=r"loss \(hinge\) must be one of bce, squared_hinge"):
        ops.loss(*x.layer, x.positives, num_labels=x.num_labels, loss="hinge")
