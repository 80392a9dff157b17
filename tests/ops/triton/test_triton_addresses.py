"""Weights beyond 2^31 elements: a sparse file stands for them, of which only the last tile is ever touched."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from haste.ops import reference
from haste.ops.triton import _batch, _layer, _pass, plans
from triton_cases import INTERPRETED, case

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="the kernels are compiled, not interpreted")


@pytest.fixture
def far(tmp_path: Path) -> Any:
    """Return a function that makes a zero tensor of a shape in a sparse file."""

    def make(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        count = torch.Size(shape).numel()
        return torch.from_file(str(tmp_path / name), shared=True, size=count, dtype=dtype).view(shape)

    return make


@pytest.mark.parametrize("name", ["groups-of-16", "rows"])
def test_the_last_tile_of_a_huge_layer(far: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = case(name)
    rows, fan_in = x.weight.shape[1], x.weight.shape[2]
    layout = plans.layout_of(rows, gathered=True)
    tile = plans.tile_rows(rows, layout)
    groups = (2**31 // (rows * fan_in) // tile + 1) * tile + tile
    weight = far("weight", (groups, rows, fan_in), torch.float32)
    indices = far("indices", (groups, fan_in), torch.int16)
    bias = far("bias", (groups, rows), torch.float32)
    count = min(tile // rows, len(x.weight)) if rows < tile else 1
    for target, source in ((weight, x.weight), (indices, x.indices), (bias, x.bias)):
        target[-count:] = source[:count]
    assert weight[:-count].numel() > 2**31
    layer = _layer.make_layer(weight, bias, indices, groups * rows)
    batch = _batch.prepare(x.features, torch.float32, 16)
    plan = plans.Plan(form="two", block_b=16, block_f=16)
    values, losses = torch.empty((1, 16, tile)), torch.zeros((layer.tiles, 1))
    grad_bias = torch.empty((1, 1, tile))
    nothing = _batch.SortedPairs(
        rows=torch.empty(0, dtype=torch.int64), points=torch.empty(0, dtype=torch.int32),
        bounds=torch.zeros(layer.tiles + 1, dtype=torch.int32),
    )  # fmt: skip
    last = layer.tiles - 1
    _pass._launch_logits(batch, layer, plan, nothing, last, 1, values, grad_bias, losses, torch.ones(()), "bce")
    offsets = torch.zeros(len(x.features) + 1, dtype=torch.int64)
    small = (x.features, x.weight[:count], x.bias[:count], x.indices[:count])
    truth = reference.loss_backward(torch.ones(()), *small, offsets, offsets[:0], count * rows, "bce")
    here = slice(tile - count * rows, tile)
    torch.testing.assert_close(grad_bias[0, 0, here].view(count, rows), truth[2])
    gradient, before = _pass.FeatureGradient(batch, layer, plan), weight[-count:].clone()
    values[:, :, : here.start] = 0
    half = torch.full((), 0.5, dtype=torch.float64)
    sink = _layer.Sink(
        rule="sgd", weight_state=[], bias_state=[], step=torch.ones((), dtype=torch.int64),
        numbers=_layer.numbers_of("sgd", half, half, torch.ones((), dtype=torch.int64), [0.0, 0.0], [0.0, 0.0]),
    )  # fmt: skip
    slopes = _pass.Slopes(first=last, count=1, values=values, grad_bias=grad_bias)
    _pass.add_gradients(slopes, batch, layer, plan, sink, gradient)
    torch.testing.assert_close(gradient.result(torch.float32), truth[0])
    torch.testing.assert_close(weight[-count:], before - 0.5 * truth[1])
