"""Updates, top-k, rewiring, and what the kernels refuse."""

from typing import Any

import pytest
import torch
from torch import Tensor

from haste import ops
from haste.ops import _random, reference
from haste.ops import _update as torch_update
from haste.ops.triton import IMPLEMENTATIONS, plans, topk
from triton_cases import DEVICES, LAYOUTS, SIZES, case, take_step

pytestmark = pytest.mark.parametrize("device", DEVICES)


def _update(
    implementation: Any,
    weight: Tensor,
    grad: Tensor,
    state: list[Tensor],
    rule: str,
    hyper: list[float],
    device: str,
    rows: Tensor | None = None,
    first_row: int = 5,
    lr: float = 0.125,
    rates: Tensor | None = None,
) -> list[Tensor]:
    tensors = [t.clone().to(device) for t in (weight, *state)]
    numbers = torch.tensor(lr, dtype=torch.float64, device=device), torch.tensor(3, device=device)
    rows, rates = (None if t is None else t.to(device) for t in (rows, rates))
    seed = _random.signed(2**63 + 11)
    implementation(tensors[0], grad.to(device), rows, tensors[1:], *numbers, rule, hyper, seed, 3, first_row, rates)
    return [t.cpu() for t in tensors]


@pytest.mark.parametrize("shape", [(7, 20), (3, 5, 8), (9,), (2, 700), ()], ids=str)
def test_update_rounds_with_the_bits_of_the_cpu(shape: tuple[int, ...], device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, moment = (torch.randn(shape, generator=generator).bfloat16() for _ in range(2))
    grad = torch.randn(shape, generator=generator)
    for first_row in (0, 2**31 - 2, 2**34 + 1):  # block numbers beyond 32 bits
        arguments = (weight, grad, [moment], "sgd", [0.5, 0.0])
        found = _update(IMPLEMENTATIONS["update"], *arguments, device, first_row=first_row)
        expected = _update(torch_update._update, *arguments, "cpu", first_row=first_row)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("rule", "hyper", "states"),
    [("sgd", [0.0, 0.01], 0), ("sgd", [0.9, 0.01], 1), ("adamw", [0.9, 0.999, 1e-8, 0.01], 2)],
)
def test_update_is_the_rule(rule: str, hyper: list[float], states: int, device: str) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, grad, *state = (torch.rand((6, 11), generator=generator) for _ in range(2 + states))
    expected, moments = reference.apply_rule(
        rule, hyper, weight.double(), grad.double(), [s.double() for s in state], 0.125, 3
    )
    found = _update(IMPLEMENTATIONS["update"], weight, grad, state, rule, hyper, device)
    for result, truth in zip(found, (expected, *moments), strict=True):
        torch.testing.assert_close(result.double(), truth, rtol=1e-6, atol=1e-7)
    rows = torch.tensor([4, 1])
    found = _update(IMPLEMENTATIONS["update"], weight, grad[:2], state, rule, hyper, device, rows=rows)
    expected_rows = _update(torch_update._update, weight, grad[:2], state, rule, hyper, "cpu", rows=rows)
    for result, truth in zip(found, expected_rows, strict=True):
        torch.testing.assert_close(result, truth, rtol=1e-6, atol=1e-7)
        assert torch.equal(result[[0, 2, 3, 5]], truth[[0, 2, 3, 5]])


@pytest.mark.parametrize(
    ("rule", "hyper", "states"),
    [("sgd", [0.0, 0.01], 0), ("sgd", [0.9, 0.01], 1), ("adamw", [0.9, 0.999, 1e-8, 0.01], 2)],
)
def test_update_with_rates(rule: str, hyper: list[float], states: int, device: str) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, grad, *state = (torch.rand((600, 11), generator=generator) for _ in range(2 + states))
    rates = 5 * torch.rand(600, generator=generator)
    expected, moments = reference.apply_rule(
        rule, hyper, weight.double(), grad.double(), [s.double() for s in state], 0.125 * rates.double()[:, None], 3
    )
    found = _update(IMPLEMENTATIONS["update"], weight, grad, state, rule, hyper, device, rates=rates)
    for result, truth in zip(found, (expected, *moments), strict=True):
        torch.testing.assert_close(result.double(), truth, rtol=2e-6, atol=5e-7)
    rows = torch.tensor([4, 1, 599])
    chosen = _update(IMPLEMENTATIONS["update"], weight, grad[rows], state, rule, hyper, device, rows, rates=rates)
    for result, whole in zip(chosen, found, strict=True):
        torch.testing.assert_close(result[rows], whole[rows], rtol=1e-6, atol=1e-7)
    ones = torch.ones(600)
    found = _update(IMPLEMENTATIONS["update"], weight, grad, state, rule, hyper, device, rates=ones)
    without = _update(IMPLEMENTATIONS["update"], weight, grad, state, rule, hyper, device)
    assert all(torch.equal(a, b) for a, b in zip(found, without, strict=True))


def test_stochastic_rounding_is_unbiased(device: str) -> None:
    zero = torch.zeros((256, 64), dtype=torch.bfloat16)
    for value in (1 + 2**-9, -(1 + 3 * 2**-10), 2.0**-130):  # between neighbours 2^-7 (2^-133) apart
        grad = torch.full(zero.shape, -value)
        (found,) = _update(IMPLEMENTATIONS["update"], zero, grad, [], "sgd", [0.0, 0.0], device, lr=1.0)
        spacing = 2.0**-133 if abs(value) < 1 else 2.0**-7
        error = (found.double().mean() - value) / spacing
        assert abs(error) < 4 * 0.5 / found.numel() ** 0.5
        assert len(found.unique()) <= 2
    exact = torch.tensor([1.0, -2.5, 0.0, torch.inf, -torch.inf, 3.0, 2.0**-133])
    # Every bit of a GPU's own NaN is set but the sign: adding random bits to it would carry.
    nans = torch.full((57,), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    (found,) = _update(
        IMPLEMENTATIONS["update"],
        torch.zeros(64, dtype=torch.bfloat16),
        -torch.cat((exact, nans)),
        [],
        "sgd",
        [0.0, 0.0],
        device,
        lr=1.0,
    )
    assert torch.equal(found[:7].float(), exact)
    assert found[7:].isnan().all()


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("k", [1, 5, 20])
def test_topk(name: str, k: int, device: str) -> None:
    x = case(name)
    generator = torch.Generator().manual_seed(3)
    row_labels = torch.randperm(x.num_labels, generator=generator) * 3
    for labels, exclude in ((None, (None, None)), (row_labels, x.positives)):
        on_device = [None if t is None else t.to(device) for t in (labels, *exclude)]
        found = IMPLEMENTATIONS["topk"](*x.to(device).layer, on_device[0], x.num_labels, k, *on_device[1:]).cpu()
        expected = reference.topk(*x.layer, labels, x.num_labels, k, *exclude)
        (scores, chosen), (truth, wanted) = ops.unpack_keys(found), ops.unpack_keys(expected)
        assert torch.equal(chosen, wanted)
        torch.testing.assert_close(scores, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("programs", [1, 3])
@pytest.mark.parametrize("name", ["groups-of-16", "rows", "dense", "many-groups"])
def test_topk_of_more_labels_than_a_tile_has(
    name: str, programs: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topk, "_PROGRAMS", programs)
    x = case(name)
    for k, exclude in ((20, (None, None)), (37, x.positives)):
        on_device = [None if t is None else t.to(device) for t in exclude]
        found = IMPLEMENTATIONS["topk"](*x.to(device).layer, None, x.num_labels, k, *on_device).cpu()
        expected = reference.topk(*x.layer, None, x.num_labels, k, *exclude)
        assert torch.equal(ops.unpack_keys(found)[1], ops.unpack_keys(expected)[1])


def test_equal_scores_go_to_the_lower_label(device: str) -> None:
    x = case("groups-of-16", scale=0.0)
    x.bias.fill_(-0.0)
    keys = IMPLEMENTATIONS["topk"](*x.to(device).layer, None, x.num_labels, 7, None, None)
    assert torch.equal(ops.unpack_keys(keys.cpu())[1], torch.arange(7).expand(len(x.features), 7))


@pytest.mark.parametrize("sign", [1, -1])
def test_nan_scores_raise(sign: int, device: str) -> None:
    x = case("groups-of-16")
    x.bias.view(-1)[3] = sign * torch.nan
    with pytest.raises(ValueError, match="scores must not be NaN"):
        IMPLEMENTATIONS["topk"](*x.to(device).layer, None, x.num_labels, 2, None, None)


@pytest.mark.parametrize("name", ["groups-of-16", "groups-of-64", "groups-of-128", "rows", "one-label"])
def test_link_scores(name: str, device: str) -> None:
    x = case(name)
    found = IMPLEMENTATIONS["link_scores"](x.weight.to(device), x.num_labels).cpu()
    torch.testing.assert_close(found, reference.link_scores(x.weight, x.num_labels), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["groups-of-16", "groups-of-32", "rows", "one-label"])
def test_regrow_gradient(name: str, device: str) -> None:
    x = case(name)
    most = x.features.shape[1] - x.weight.shape[2]
    rest = (*x.positives, x.num_labels, "bce", most)
    found = IMPLEMENTATIONS["regrow_gradient"](*x.to(device).layer, *x.to(device).positives, *rest[2:]).cpu()
    assert torch.equal(found, reference.regrow_gradient(*x.layer, *rest))
    with plans.using(plans.Plan(form="two", block_b=16, block_f=16, chunk_bytes=1)):
        chunked = IMPLEMENTATIONS["regrow_gradient"](*x.to(device).layer, *x.to(device).positives, *rest[2:]).cpu()
    assert torch.equal(chunked, found)


def _layer(group_size: int, fan_in: int, device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    features = torch.zeros((2, 2 * fan_in), dtype=dtype, device=device)
    weight = torch.zeros((1, group_size, fan_in), dtype=dtype, device=device)
    bias = torch.zeros((1, group_size), device=device)
    return features, weight, bias, torch.arange(fan_in, device=device)[None]


@pytest.mark.parametrize(
    ("group_size", "fan_in", "message"),
    [
        (24, 16, r"group_size \(24\) must be one of 1, 16, 32, 64, 128 for the triton kernels; .*HASTE_KERNELS=torch"),
        (16, 24, r"fan_in \(24\) must be a multiple of 16, at most 512, for the triton kernels; .*HASTE_KERNELS=torch"),
        (16, 528, r"fan_in \(528\) must be a multiple of 16, at most 512"),
    ],
)
def test_shapes_that_no_kernel_takes(group_size: int, fan_in: int, message: str, device: str) -> None:
    with pytest.raises(ValueError, match=message):
        IMPLEMENTATIONS["fan_in"](*_layer(group_size, fan_in, device), group_size)


def test_float64_and_long_topk_are_refused(device: str) -> None:
    wide = _layer(16, 16, device, torch.float64)
    with pytest.raises(TypeError, match=r"features \(torch.float64\) must be float32 or bfloat16.*HASTE_KERNELS=torch"):
        IMPLEMENTATIONS["fan_in"](*wide, 16)
    one = torch.ones((), device=device)
    with pytest.raises(TypeError, match=r"weight \(torch.float64\) must be float32 or bfloat16"):
        IMPLEMENTATIONS["update"](wide[1], wide[1], None, [], one, one, "sgd", [0.0, 0.0], 0, 0, 0)
    with pytest.raises(ValueError, match=r"k \(129\) must be at most 128 for the triton kernels"):
        IMPLEMENTATIONS["topk"](*_layer(16, 16, device), None, 16, 129, None, None)


def test_operands_must_be_contiguous(device: str) -> None:
    features, weight, bias, indices = _layer(16, 16, device)
    turned = weight.transpose(1, 2)
    with pytest.raises(ValueError, match=r"weight \(strides .*\) must be contiguous"):
        IMPLEMENTATIONS["fan_in"](features, turned, bias, indices, 16)


@pytest.mark.parametrize("name", LAYOUTS)
def test_features_of_any_strides(name: str, device: str) -> None:
    x = case(name).to(device)
    turned = x.features.t().contiguous().t()
    found = IMPLEMENTATIONS["fan_in"](turned, *x.layer[1:], x.num_labels)
    assert torch.equal(found, IMPLEMENTATIONS["fan_in"](*x.layer, x.num_labels))


def test_a_plan_for_every_shape(device: str) -> None:
    shape: dict[str, Any] = {"batch": 100, "in_features": 768, "fan_in": 64, "dtype": torch.bfloat16}
    for target in plans.TARGETS:
        for group_size in plans.GROUP_SIZES:
            layout = plans.layout_of(group_size, gathered=True)
            for batch in (1, 17, 256, 5000):
                for dtype in (torch.bfloat16, torch.float32):
                    sizes = {**shape, "batch": batch, "dtype": dtype, "group_size": group_size, "layout": layout}
                    plan = plans.choose(**sizes, target=target)
                    assert plan.form == "two" or plan.block_b >= batch
                    again = plans.choose(**sizes, target=target, deterministic=True)
                    assert again.scatter == "partials"
                    assert again.programs * 4 * 768 * batch <= max(64 << 20, 8 * 4 * 768 * batch)
                    found = plans.candidates(**sizes, target=target)
                    assert found[0] == plan
                    assert len(found) == len(set(found)) > 10


def test_a_plan_in_place_of_the_chosen_one(device: str) -> None:
    x = case("two-blocks").to(device)
    plan = plans.Plan(form="fused", block_b=16, block_f=16)
    with plans.using(plan), pytest.raises(ValueError, match=r"block_b \(16\) must hold the batch \(70\)"):
        take_step(IMPLEMENTATIONS["step"], x, "sgd")
