import gc
import math
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from haste import optim
from haste.config import Config
from haste.data.dataset import load_dataset
from haste.train.checkpoint import load_checkpoint, save_checkpoint
from haste.train.loop import Loop

CPU = torch.device("cpu")
VARIANTS: dict[str, dict[str, Any]] = {
    "gradient": {},
    "random": {"rewire": {"interval": 3, "regrow": "random"}},
    "unfused": {"optim": {"output": {"fused": False}}},
    "momentum": {"optim": {"output": {"momentum": 0.9, "weight_decay": 1e-3}}},
    "adamw": {"optim": {"output": {"name": "adamw", "lr": 1e-3}}},
    "rarity": {"optim": {"output": {"rarity": 1.0}}},
    "sparsity": {"optim": {"output": {"sparsity": 1.0}}},
    "rarity, ordinary": {"optim": {"output": {"rarity": 0.5, "momentum": 0.9, "fused": False}}},
    "bfloat16": {"output": {"dtype": "bfloat16"}},
    "slice": {"output": {"private_features": "slice", "fan_in": 8}},
    "projection": {"output": {"private_features": "projection"}},
    "hidden": {"encoder": {"hidden": 16}},
    "given": {"encoder": {"kind": "features", "features": 0}},
    "layers": {"encoder": {"kind": "features", "hidden": 16}},
    "dense": {"output": {"fan_in": 32}},
    "all head": {"output": {"head_ratio": 1.0}},
    "no head": {"output": {"head_ratio": 0.0}},
    "hinge": {"output": {"loss": "squared_hinge"}},
    "threshold": {"rewire": {"threshold": 0.05, "fraction": 0.0, "regrow": "random"}},
    "auxiliary": {"auxiliary": {"clusters": 6, "end": 0.5}},
    "auxiliary dropped before": {"auxiliary": {"clusters": 6, "end": 0.2}, "optim": {"output": {"momentum": 0.9}}},
    "auxiliary dropped after": {"auxiliary": {"clusters": 6, "end": 0.35}, "output": {"group_size": 1}},
    "intermediate": {"output": {"intermediate": 48}},
    "bottleneck": {"output": {"intermediate": 8, "activation": "none", "fan_in": 0}},
    "blocks": {"output": {"block": 4}, "rewire": {"regrow": "random"}},
    "released": {
        "output": {"duplicates": True, "frequencies": "all"},
        "rewire": {"regrow": "random", "scope": "global", "schedule": "constant", "state": "keep"},
        "optim": {"output": {"momentum": 0.9}},
    },
    "low precision": {
        "encoder": {"dtype": "bfloat16", "hidden": 16},
        "output": {"dtype": "bfloat16", "private_features": "projection", "fan_in": 0},
        "optim": {"encoder": {"name": "kahan_adamw", "state_dtype": "bfloat16"}},
    },
    "low precision layers": {
        "encoder": {"dtype": "bfloat16", "kind": "features"},
        "output": {"dtype": "bfloat16", "intermediate": 16},
        "optim": {"encoder": {"name": "kahan_adamw"}},
    },
}


def make_loop(config: Config) -> Loop:
    dataset = load_dataset(config.data, seed=config.run.seed, log=lambda text: None)
    loop = Loop(config, dataset, CPU)
    loop.initialize(dataset)
    return loop


def test_every_epoch_visits_every_document_once(tiny_config: Callable[..., Config]) -> None:
    loop = make_loop(tiny_config(optim={"batch_size": 50}))
    epochs = [np.concatenate([loop.rows(step) for step in range(epoch * 5, epoch * 5 + 5)]) for epoch in range(2)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(240))
    assert not np.array_equal(*epochs)
    assert np.array_equal(make_loop(tiny_config(optim={"batch_size": 50})).rows(7), loop.rows(7))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_after_a_checkpoint_is_bitwise_the_same(
    tiny_config: Callable[..., Config], tmp_path: Path, variant: str
) -> None:
    config = tiny_config(**VARIANTS[variant])
    loop = make_loop(config)
    statistics = []
    for step in range(14):
        if step == 8:
            save_checkpoint(
                tmp_path / "c", ["last"], step=step, tensors=loop.tensors(), meta=loop.meta(), max_part_bytes=500
            )
        statistics.append(loop.step(step))
    assert any(statistics) == (variant not in ("dense", "all head", "bottleneck", "low precision"))

    resumed = Loop(config, load_dataset(config.data, seed=0, log=lambda text: None), CPU)
    resumed.load(*load_checkpoint(tmp_path / "c" / "last"))
    for step in range(8, 14):
        assert resumed.step(step) == statistics[step]
    expected, found = loop.tensors(), resumed.tensors()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert resumed.window_loss() == loop.window_loss()


def test_group_tensors_are_those_of_the_layers(tiny_config: Callable[..., Config]) -> None:
    loop = make_loop(tiny_config(**VARIANTS["momentum"]))
    loop.step(0)
    assert sorted(loop.grouped()) == sorted(
        [f"model.output.{part}.{name}" for part in ("head", "tail") for name in ("weight", "bias")]
        + ["model.output.tail.indices", "model.output.tail.regrown"]
        + [
            f"output_optimizer.output.{part}.{name}.momentum_buffer"
            for part in ("head", "tail")
            for name in ("weight", "bias")
        ]
    )


def test_rare_labels_have_higher_rates(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(optim={"output": {"rarity": 1.0}})
    counts = np.array(load_dataset(config.data, seed=0, log=lambda text: None).labels.counts)
    loop = make_loop(config)
    output, update = loop.model.output, loop.optimizers["output"]
    rates = [update.state[layer.weight]["rates"].flatten()[: layer.num_labels] for layer in output.layers()]
    n = counts[output.label_order]
    assert torch.cat(rates).numpy() == pytest.approx(np.minimum(counts.max() / n, 20))
    assert torch.cat(rates).max() > 1
    assert {name for name in loop.grouped() if name.endswith("rates")} == {
        f"output_optimizer.output.{part}.weight.rates" for part in ("head", "tail")
    }
    assert not any(name.endswith("rates") for name in make_loop(tiny_config()).tensors())


@pytest.mark.parametrize("rarity", [0.0, 0.5])
def test_labels_that_read_few_features_have_higher_rates(tiny_config: Callable[..., Config], rarity: float) -> None:
    config = tiny_config(optim={"output": {"sparsity": 0.5, "rarity": rarity}})
    dataset = load_dataset(config.data, seed=0, log=lambda text: None)
    loop = make_loop(config)
    output, update = loop.model.output, loop.optimizers["output"]
    head, tail = output.layers()
    expected = optim.rarity_rates(dataset.labels.counts, rarity)[output.label_order]
    expected[output.num_head_labels :] *= (tail.in_features / tail.fan_in) ** 0.5
    rates = [update.state[layer.weight]["rates"].flatten()[: layer.num_labels] for layer in (head, tail)]
    torch.testing.assert_close(torch.cat(rates), expected)
    assert rates[0].max() < rates[1].max()


def test_the_auxiliary_classifier_is_freed_at_its_end(tiny_config: Callable[..., Config]) -> None:
    loop = make_loop(tiny_config(auxiliary={"clusters": 6, "weight": 0.4, "end": 0.25}))  # of 32 steps
    kept = weakref.ref(loop.auxiliary.layer.weight)
    before = loop.auxiliary.layer.weight.detach().clone()
    weights = [loop._auxiliary_weight(step) for step in range(10)]
    assert weights == pytest.approx([0.2 * (1 + math.cos(math.pi * t / 8)) for t in range(8)] + [0, 0])
    for step in range(8):
        loop.step(step)
    assert not torch.equal(loop.auxiliary.layer.weight, before)
    assert any(name.startswith("auxiliary") for name in loop.tensors())
    loop.step(8)
    gc.collect()
    assert kept() is None
    assert set(loop.optimizers) == set(loop.schedules) == {"output", "encoder"}
    assert not any("auxiliary" in name for name in loop.tensors())


def test_an_auxiliary_classifier_helps_the_encoder_alone(tiny_config: Callable[..., Config]) -> None:
    loops = [make_loop(tiny_config(auxiliary={"clusters": clusters})) for clusters in (0, 6)]
    for loop in loops:
        loop.step(0)
    without, with_it = (loop.tensors() for loop in loops)
    for name, tensor in without.items():
        same = torch.equal(tensor, with_it[name])
        assert same == (".encoder." not in name or name.endswith(".step")), name


def test_released_frequencies_count_the_labels_of_dev_and_test(tiny_config: Callable[..., Config]) -> None:
    orders = []
    for frequencies in ("train", "all"):
        config = tiny_config(output={"frequencies": frequencies, "grouping": "frequency"})
        dataset = load_dataset(config.data, seed=0, log=lambda text: None)
        counts = np.array(dataset.labels.counts)
        if frequencies == "all":
            for split in (dataset.dev, dataset.test):
                counts += np.asarray(split.truth.sum(axis=0)).ravel()[: len(counts)].astype(np.int64)
        orders.append(make_loop(config).model.output.label_order.tolist())
        assert orders[-1] == np.argsort(-counts, kind="stable").tolist()
    assert orders[0] != orders[1]


def test_fused_and_ordinary_passes_train_alike(tiny_config: Callable[..., Config]) -> None:
    loops = [
        make_loop(tiny_config(optim={"output": {"fused": fused}}, rewire={"interval": 0})) for fused in (True, False)
    ]
    for loop in loops:
        for step in range(5):
            loop.step(step)
    fused, ordinary = (loop.tensors() for loop in loops)
    for name, tensor in ordinary.items():
        torch.testing.assert_close(fused[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_learning_rates_rise_and_fall_without_warnings(tiny_config: Callable[..., Config]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop = make_loop(tiny_config())
        rates = []
        for step in range(loop.total_steps):
            rates.append([optimizer.param_groups[0]["lr"] for optimizer in loop.optimizers.values()])
            loop.step(step)
    encoder, output = np.array(rates).T
    assert encoder.max() == pytest.approx(0.05)
    assert output.max() == pytest.approx(0.05)
    assert encoder.argmax() == output.argmax() == 3
    assert (np.diff(encoder[3:]) < 0).all()
    assert 0 < encoder[-1] < 1e-3


def test_a_loss_that_is_not_finite_is_an_error(tiny_config: Callable[..., Config]) -> None:
    loop = make_loop(tiny_config())
    loop.step(0)
    assert 0 < loop.window_loss() < 100
    loop.loss_sum += float("nan")
    with pytest.raises(ValueError, match=r"training loss \(nan\) must stay finite; lower optim.encoder.lr \(0.05\)"):
        loop.window_loss()


def test_a_weight_that_is_not_finite_is_an_error(tiny_config: Callable[..., Config]) -> None:
    loop = make_loop(tiny_config())
    loop.check_finite()
    assert loop.model.output.tail is not None
    with torch.no_grad():
        loop.model.output.tail.weight[-1, 0, 0] = -torch.inf
    with pytest.raises(ValueError, match=r"a weight of output.tail.weight \(-inf\) must stay finite; lower optim.enc"):
        loop.check_finite()
