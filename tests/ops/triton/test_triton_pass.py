"""Logits, loss, gradients and the step, against the reference in float64."""

from dataclasses import replace

import pytest
import torch

from haste.ops import _step as torch_step
from haste.ops import reference
from haste.ops.triton import IMPLEMENTATIONS, plans
from triton_cases import (
    DEVICES,
    INTERPRETED,
    LAYOUTS,
    MORE,
    RULES,
    SIZES,
    assert_close,
    case,
    deterministic,
    dyadic,
    take_step,
    truth_of_loss,
)

LOSSES = ("bce", "squared_hinge")
# The interpreter does not multiply bfloat16: float16 stands for the 16-bit types there.
DTYPES = [torch.float32, torch.float16 if INTERPRETED else torch.bfloat16]
pytestmark = pytest.mark.parametrize("device", DEVICES)


def _fused(x, **more):
    """Return the one-kernel plan for a case, whatever its dtype."""
    batch, fan_in = max(16, 1 << (len(x.features) - 1).bit_length()), x.weight.shape[2]
    return plans.Plan(form="fused", block_b=batch, block_f=min(64, max(16, 1 << (fan_in - 1).bit_length())), **more)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SIZES)
def test_logits_and_their_gradients(name: str, dtype: torch.dtype, device: str) -> None:
    x = case(name).cast(dtype)
    batch, terms = len(x.features), x.weight.shape[2]
    grad = torch.randn((batch, x.num_labels), generator=torch.Generator().manual_seed(2))
    found = IMPLEMENTATIONS["fan_in"](*x.to(device).layer, x.num_labels).cpu()
    assert found.dtype == torch.float32
    assert_close(found, reference.fan_in(*x.wide().layer, x.num_labels), torch.float32, terms=terms)
    found = IMPLEMENTATIONS["fan_in_backward"](grad.to(device), *x.to(device).layer)
    for result, truth in zip(found, reference.fan_in_backward(grad.double(), *x.wide().layer), strict=True):
        assert_close(result.cpu(), truth, dtype, terms=max(batch, x.num_labels))
    assert [r.dtype for r in found] == [dtype, dtype, torch.float32]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", [*SIZES, *MORE])
def test_loss_and_its_gradients(name: str, loss: str, device: str) -> None:
    x = case(name)
    truths = truth_of_loss(x, loss, 0.5)
    operands = (*x.to(device).layer, *x.to(device).positives, x.num_labels, loss)
    value = IMPLEMENTATIONS["loss"](*operands).cpu()
    torch.testing.assert_close(value.double(), truths[0], rtol=1e-6, atol=1e-6)
    found = IMPLEMENTATIONS["loss_backward"](torch.tensor(0.5, device=device), *operands)
    for result, truth in zip(found, truths[1:], strict=True):
        assert_close(result.cpu(), truth, torch.float32, terms=max(len(x.features), x.num_labels))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SIZES)
def test_step(name: str, rule: str, device: str) -> None:
    x = case(name)
    found = take_step(IMPLEMENTATIONS["step"], x.to(device), rule)
    for result, truth in zip(found, take_step(reference.step, x.wide(), rule), strict=True):
        assert result.dtype == torch.float32
        assert_close(result, truth, torch.float32, terms=max(len(x.features), x.num_labels))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", [n for n, size in SIZES.items() if n not in ("rows", "dense")])
def test_fused_step(name: str, rule: str, loss: str, device: str) -> None:
    if loss == "squared_hinge" and (rule, name) != ("sgd", "groups-of-32"):
        pytest.skip("the loss does not know the rule")
    x = case(name)
    with plans.using(_fused(x)):
        found = take_step(IMPLEMENTATIONS["step"], x.to(device), rule, loss)
    for result, truth in zip(found, take_step(reference.step, x.wide(), rule, loss), strict=True):
        assert_close(result, truth, torch.float32, terms=max(len(x.features), x.num_labels))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["groups-of-32", "one-label", "rows", "dense"])
def test_step_with_rates(name: str, rule: str, device: str) -> None:
    x = case(name)
    truth = take_step(reference.step, x.wide(), rule, rated=True)
    found = [take_step(IMPLEMENTATIONS["step"], x.to(device), rule, rated=True)]
    if name == "groups-of-32":
        with plans.using(_fused(x)):
            found.append(take_step(IMPLEMENTATIONS["step"], x.to(device), rule, rated=True))
    for tensors in found:
        for result, expected in zip(tensors, truth, strict=True):
            assert_close(result, expected, torch.float32, terms=max(len(x.features), x.num_labels))


@pytest.mark.parametrize("form", plans.FORMS)
@pytest.mark.parametrize("scatter", plans.SCATTERS)
def test_every_form_computes_the_same(form: str, scatter: str, device: str) -> None:
    x = dyadic("groups-of-32")
    settings = {"lr": 0.125, "bias_lr": 0.25, "decay": False, "rated": scatter == "atomics"}
    truth = take_step(torch_step._step, x, "momentum", "squared_hinge", **settings)
    plan = plans.Plan(form=form, scatter=scatter, block_b=16, block_f=32, programs=2, chunk_bytes=1)
    with plans.using(plan):
        found = take_step(IMPLEMENTATIONS["step"], x.to(device), "momentum", "squared_hinge", **settings)
    for result, expected in zip(found, truth, strict=True):
        assert torch.equal(result, expected)  # numbers small enough that float32 sums them exactly in any order


@pytest.mark.parametrize("rated", [False, True])
@pytest.mark.parametrize("name", [*LAYOUTS, "groups-of-64"])
def test_stored_bits_are_those_of_the_cpu(name: str, rated: bool, device: str) -> None:
    x = dyadic(name)
    x = replace(x, weight=x.weight.bfloat16())
    # Weights and moments move by far less than bfloat16 resolves, so that most elements are rounded.
    settings = {"scale": 2.0**-9, "state": torch.bfloat16, "lr": 2.0**-7, "bias_lr": 0.25, "decay": False}
    settings |= {"first_row": 2**33, "rated": rated}
    found = take_step(IMPLEMENTATIONS["step"], x.to(device), "momentum", "squared_hinge", **settings)
    expected = take_step(torch_step._step, x, "momentum", "squared_hinge", **settings)
    for result, truth in zip(found, expected, strict=True):
        assert torch.equal(result, truth)
    assert (found[2] != x.weight).float().mean() > 0.01


@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["groups-of-32", "rows", "dense"])
def test_bfloat16_weights(name: str, state: torch.dtype, device: str) -> None:
    x = case(name).cast(torch.float32, torch.bfloat16)
    for fused in (False, True):
        if fused and name != "groups-of-32":
            continue
        plan = _fused(x) if fused else plans.choose(
            batch=len(x.features), in_features=1, group_size=x.weight.shape[1], fan_in=x.weight.shape[2],
            dtype=torch.float32, layout=plans.layout_of(x.weight.shape[1], gathered=x.indices is not None),
        )  # fmt: skip
        with plans.using(plan):
            found = take_step(IMPLEMENTATIONS["step"], x.to(device), "adamw", state=state)
        for result, truth in zip(found, take_step(torch_step._step, x, "adamw", state=state), strict=True):
            if result.dtype == torch.bfloat16:
                # The float32 values before rounding differ in the last bits, which seldom changes where they round to.
                assert (result == truth).float().mean() > 0.99
                torch.testing.assert_close(result.float(), truth.float(), rtol=2**-6, atol=1e-3)
            else:
                torch.testing.assert_close(result, truth, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_deterministic_scatter_is_the_same_sum(name: str, device: str) -> None:
    x = case(name).to(device)
    with deterministic():
        first, second = (take_step(IMPLEMENTATIONS["step"], x, "sgd") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for a, b in zip(first, take_step(IMPLEMENTATIONS["step"], x, "sgd"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scatter", plans.SCATTERS)
@pytest.mark.parametrize("name", ["groups-of-16", "rows"])
def test_inputs_that_a_group_holds_twice(name: str, scatter: str, device: str) -> None:
    x = dyadic(name)
    x.indices[:, 1::2] = x.indices[:, ::2][:, : x.indices.shape[1] // 2]
    plan = plans.Plan(form="two", scatter=scatter, block_b=16, block_f=16, programs=2)
    expected = take_step(torch_step._step, x, "sgd", "squared_hinge", lr=0.125, bias_lr=0.25, decay=False)
    with plans.using(plan):
        found = take_step(
            IMPLEMENTATIONS["step"], x.to(device), "sgd", "squared_hinge", lr=0.125, bias_lr=0.25, decay=False
        )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("form", ["fused", "two"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite_change_nothing(value: float, form: str, device: str) -> None:
    x = case("groups-of-16")
    x.features[2, 3] = value
    with plans.using(plans.Plan(form=form, block_b=16, block_f=16)):
        loss, grad, weight, bias, *states = take_step(IMPLEMENTATIONS["step"], x.to(device), "momentum")
    assert loss.isnan()
    assert not grad.any()
    assert torch.equal(weight, x.weight)
    assert torch.equal(bias, x.bias)
    assert all(torch.equal(s, s * 4 // 1 / 4) for s in states)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_not_finite_shows_in_loss_and_gradients(name: str, loss: str, device: str) -> None:
    for where in ("features", "weight", "bias"):
        x = case(name)
        getattr(x, where).view(-1)[0] = torch.nan
        operands = (*x.to(device).layer, *x.to(device).positives, x.num_labels, loss)
        assert IMPLEMENTATIONS["loss"](*operands).isnan()
        found = IMPLEMENTATIONS["loss_backward"](torch.tensor(1.0, device=device), *operands)
        assert all(result.isnan().any() for result in found)
        assert not all(result.isnan().all() for result in found)


def test_an_update_in_place_is_seen_by_autograd(device: str) -> None:
    x = case("groups-of-16").to(device)
    weight = x.weight
    before = weight._version
    one = torch.ones((), device=device)
    IMPLEMENTATIONS["update"](weight, weight.clone(), None, [], one, one, "sgd", [0.0, 0.0], 0, 0, 0)
    assert weight._version > before


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_rest_of_a_buffer_of_positives_is_not_read(name: str, device: str) -> None:
    x = case(name)
    expected = take_step(IMPLEMENTATIONS["step"], x.to(device), "sgd")
    rest = torch.tensor([-1, 2**40, 0, x.num_labels])
    longer = replace(x, labels=torch.cat((x.labels, rest)))
    found = take_step(IMPLEMENTATIONS["step"], longer.to(device), "sgd")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0 if INTERPRETED else 1e-6)


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_positives(name: str, device: str) -> None:
    x = case(name)
    none = replace(x, offsets=torch.zeros_like(x.offsets), labels=x.labels[:0])
    truth = take_step(reference.step, none.wide(), "sgd")
    for result, expected in zip(take_step(IMPLEMENTATIONS["step"], none.to(device), "sgd"), truth, strict=True):
        assert_close(result, expected, torch.float32, terms=x.num_labels)


def test_certain_labels_keep_their_gradient_and_loss(device: str) -> None:
    x = case("groups-of-16", scale=0.0)
    x.bias.view(-1)[: x.num_labels] = torch.linspace(-40, 40, x.num_labels)
    operands = (*x.to(device).layer, *x.to(device).positives, x.num_labels, "bce")
    found = IMPLEMENTATIONS["loss_backward"](torch.tensor(1.0, device=device), *operands)[2].cpu()
    truth = truth_of_loss(x, "bce", 1.0)
    # The relative error of exp(z) is the absolute one of z: two units in the last place of a logit of 40.
    torch.testing.assert_close(found.double(), truth[3], rtol=8e-6, atol=0)
    negatives = replace(x, offsets=torch.zeros_like(x.offsets), labels=x.labels[:0])
    negatives.bias.view(-1)[: x.num_labels] = torch.linspace(-40, -9, x.num_labels)  # losses of 1e-4 to 1e-17 alone
    operands = (*negatives.to(device).layer, *negatives.to(device).positives, x.num_labels, "bce")
    value = IMPLEMENTATIONS["loss"](*operands).cpu().double()
    torch.testing.assert_close(value, truth_of_loss(negatives, "bce", 1.0)[0], rtol=2e-6, atol=0)
