import json
import logging
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from haste import ops
from haste.ops import _library
from layer_cases import LAYOUTS, operands


def _calls(name: str) -> dict[str, tuple[Any, ...]]:
    """Return arguments for every operator, on a layer of a size."""
    x = operands(name)
    layer, sizes = (*x.layer, *x.positives), (x.num_labels, "bce")
    weight_state, bias_state = ([torch.zeros_like(t), torch.ones_like(t)] for t in (x.weight, x.bias))
    lr, step, hyper = torch.tensor(0.1), torch.tensor(1), [0.9, 0.99, 1e-8, 0.1]
    rates, rest = torch.full_like(x.bias, 2.0), (0, 0, 0)
    calls: dict[str, tuple[Any, ...]] = {
        "fan_in": (*x.layer, x.num_labels),
        "fan_in_backward": (torch.ones(len(x.features), x.num_labels), *x.layer),
        "loss": (*layer, *sizes),
        "loss_backward": (torch.tensor(0.5), *layer, *sizes),
        "step": (
            *(x.features, x.weight, x.bias, weight_state, bias_state, x.indices, *x.positives),
            *(lr, lr, step, *sizes, 1.0, "adamw", hyper, hyper, *rest, rates),
        ),
        "update": (x.weight, torch.ones_like(x.weight), None, weight_state, lr, step, "adamw", hyper, *rest, rates),
        "topk": (*x.layer, torch.arange(x.num_labels), x.num_labels, 5, *x.positives),
        "link_scores": (x.weight, x.num_labels),
    }
    if x.indices is not None:
        calls["regrow_random"] = (x.indices, 37, 5, 0, 0, 0, 0)
        calls["regrow_gradient"] = (*layer, *sizes, 5)
    return calls


OPERATORS = sorted(_calls("gathered"))


def test_every_operator_is_checked() -> None:
    defined = {name.removeprefix("haste::") for name in torch._C._dispatch_get_all_op_names() if "haste::" in name}
    assert defined == set(OPERATORS)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_opcheck(operator: str, name: str) -> None:
    calls = _calls(name)
    if operator in calls:
        torch.library.opcheck(getattr(torch.ops.haste, operator).default, calls[operator])
        if operator == "step":
            torch.library.opcheck(torch.ops.haste.step.default, (*_calls(name)["step"], False))


def test_the_layer_traces_on_meta_tensors() -> None:
    x = operands()
    features, weight, bias = (t.to("meta") for t in (x.features, x.weight, x.bias))
    logits = ops.fan_in(features, weight, bias, x.indices.to("meta"), x.num_labels)
    assert logits.shape == (13, 101)
    assert logits.is_meta


def test_the_choice_of_kernels_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    _library._choose.cache_clear()
    x = operands()
    with caplog.at_level(logging.INFO, logger="haste"):
        for _ in range(2):
            ops.fan_in(*x.layer, x.num_labels)
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == ["kernels on cpu: torch"]


def _run(kernels: str | None, code: str, interpret: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("HASTE_KERNELS", "TRITON_INTERPRET")}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    if kernels is not None:
        environment["HASTE_KERNELS"] = kernels
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


_TRAINING = """
import json, torch, haste.optim
from haste import nn, ops
layer = nn.HeadTail(24, 45, num_head_labels=8, fan_in=16, group_size=16, dtype=torch.bfloat16)
update = haste.optim.AdamW(layer.layer_parameters(), lr=0.01, weight_decay=0.01)
generator = torch.Generator().manual_seed(0)
features = torch.randn(20, 24, generator=generator)
positives = torch.arange(21) * 2, torch.arange(40)
losses = []
for step in range(8):
    losses.append(layer.step(features, positives, update).item())
    if step in (2, 5):
        batch = (features, positives)
        layer.rewire(0.3, update, regrow="gradient" if step == 2 else "random", batch=batch, seed=1, step=step)
losses += [layer.loss(features, positives).item(), layer.topk(features, 3)[0].sum().item()]
print(json.dumps([ops.kernels_in_force(), losses]))
"""


@pytest.mark.parametrize("kernels", [pytest.param("reference", marks=pytest.mark.slow), "triton"])
def test_other_kernels_train_alike(kernels: str) -> None:
    results = [_run(chosen, _TRAINING) for chosen in (None, kernels)]
    assert [result.returncode for result in results] == [0, 0], results
    (default, losses), (chosen, expected) = (json.loads(result.stdout) for result in results)
    assert default[0] == "torch"
    assert chosen[0] == kernels
    assert chosen[1].startswith(f"HASTE_KERNELS={kernels}")
    assert expected[0] > expected[7]
    assert losses == pytest.approx(expected, rel=2e-3)  # bfloat16 weights round apart here and there


def test_triton_kernels_on_a_cpu_are_interpreted_or_refused() -> None:
    code = "import torch; from haste import nn; nn.FanInLinear(32, 16, 16, 16)(torch.ones(1, 32))"
    result = _run("triton", code, interpret=False)
    assert result.returncode != 0
    assert "HASTE_KERNELS (triton) must be torch or reference for tensors on a CPU" in result.stderr
    assert "TRITON_INTERPRET=1" in result.stderr


def test_unknown_kernels() -> None:
    result = _run("fast", "import haste.ops")
    assert result.returncode != 0
    assert "HASTE_KERNELS (fast) must be one of reference, torch, triton; unset it for the default" in result.stderr


def test_no_warning_reaches_the_user() -> None:
    code = (
        "import warnings; warnings.simplefilter('error'); import torch; from haste import nn, optim\n"
        "layer = nn.FanInLinear(9, 5, 3, 1); update = optim.SGD(layer.parameters(), lr=0.1)\n"
        "bag = nn.Bag(4, 9)((torch.tensor([0, 2]), torch.tensor([1, 3]), torch.ones(2)))\n"
        "layer.step(bag, (torch.tensor([0, 1]), torch.tensor([2])), update).backward()"
    )
    result = _run(None, code)
    assert result.returncode == 0, result.stderr
    assert not result.stderr
