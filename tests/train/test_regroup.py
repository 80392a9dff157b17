from collections.abc import Callable
from typing import Any

import pytest
import torch

from haste.config import Config
from haste.data.dataset import load_dataset
from haste.train.loop import Loop


def test_labels_keep_their_biases_and_rates_and_the_head(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(output={"regroup": 0.5}, optim={"output": {"rarity": 1.0}})
    dataset = load_dataset(config.data, seed=0, log=lambda line: None)
    loop = Loop(config, dataset, torch.device("cpu"))
    loop.initialize(dataset)
    for step in range(loop.regroup_step):
        loop.step(step)
    output = loop.model.output

    def of_labels() -> torch.Tensor:
        rates = [loop.optimizers["output"].state[layer.weight]["rates"] for layer in output.layers()]
        numbers = [torch.stack((layer.bias, rate)) for layer, rate in zip(output.layers(), rates, strict=True)]
        by_row = [pair.flatten(1)[:, : layer.num_labels] for layer, pair in zip(output.layers(), numbers, strict=True)]
        return torch.cat(by_row, dim=1)[:, output.row_of_label].detach()

    before, order = of_labels(), output.label_order.clone()
    loop.regroup()
    assert torch.equal(of_labels(), before)
    assert len(before[1, order[output.num_head_labels :]].unique()) > 1
    assert torch.equal(output.label_order[: output.num_head_labels], order[: output.num_head_labels])
    assert not torch.equal(output.label_order, order)


@pytest.mark.parametrize("output", [{"fan_in": 0}, {"head_ratio": 1.0}, {"regroup": 0.0}])
def test_without_groups_nothing_is_grouped_anew(tiny_config: Callable[..., Config], output: dict[str, Any]) -> None:
    config = tiny_config(output={"regroup": 0.5, **output}, rewire={"interval": 0})
    dataset = load_dataset(config.data, seed=0, log=lambda line: None)
    assert Loop(config, dataset, torch.device("cpu")).regroup_step == 0


@pytest.mark.parametrize(
    "output",
    [{"grouping": "random"}, {"group_size": 1}, {"block": 4}, {"duplicates": True}],
)
def test_settings_that_do_not_go_together(tiny_config: Callable[..., Config], output: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"output\.regroup \(0\.5\) must be 0 unless output\.grouping is semantic"):
        tiny_config(output={"regroup": 0.5, **output}, rewire={"regrow": "random"})
    with pytest.raises(ValueError, match=r"output\.regroup \(1\.0\) must be in \[0, 1\)"):
        tiny_config(output={"regroup": 1.0})
