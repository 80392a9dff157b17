from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from haste.config import Config
from haste.nn import build_model
from haste.train.systems import SYSTEMS, Shared, Sizes, apply, fan_in_at, output_products, parse_value, settings_of

SIZES = Sizes(inputs=500, labels=4000, documents=20_000)
SPARSE = [name for name, system in SYSTEMS.items() if system.sparse]


def base(**output: Any) -> Config:
    rewire = {"regrow": "random" if output.get("duplicates") else "gradient"}
    optim = {"output": {"rarity": 0.5}}
    encoder = {"features": 768}
    return Config.from_dict(
        {"data": {"path": "x"}, "encoder": encoder, "output": output, "rewire": rewire, "optim": optim}
    )


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize(
    "output",
    [
        {"fan_in": 128},
        {"fan_in": 0, "head_ratio": 0.0, "group_size": 1},
        {"fan_in": 64, "private_features": "slice", "loss": "squared_hinge"},
        {"fan_in": 64, "intermediate": 256, "duplicates": True},
    ],
)
def test_every_system_can_be_made_of_any_settings(name: str, output: dict[str, Any]) -> None:
    config = base(**output)
    made = settings_of(SYSTEMS[name], Shared(config=config, sizes=SIZES, sparsity=0.83), {})
    small = replace(SIZES, labels=300)
    layer = build_model(made, num_inputs=small.inputs, num_labels=small.labels).output
    for section in ("data", "run"):
        assert getattr(made, section) == getattr(config, section)
    assert made.encoder.features == config.encoder.features
    assert made.optim.output.rarity == 0.5
    tail = layer.tail
    assert tail is not None
    if SYSTEMS[name].sparse:
        assert tail.sparsity >= 0.83
        assert layer.num_head_labels <= 0.1 * 300 + 16
        assert tail.fan_in % 16 == 0
    else:
        assert tail.indices is None
        assert layer.num_head_labels == 0
    assert (made.rewire.interval > 0) == (SYSTEMS[name].sparse and name != "static")
    if name != "haste" and name != "static":
        assert layer.private_features == "none"


@pytest.mark.parametrize(("fan_in", "whole"), [(168, 160), (8, 16)])
def test_blocks_are_whole_where_the_settings_fan_in_is_not(fan_in: int, whole: int) -> None:
    config = base(fan_in=fan_in)
    assert settings_of(SYSTEMS["block-sparse"], Shared(config=config, sizes=SIZES), {}).output.fan_in == whole


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize(
    "changes",
    [
        {"encoder.features": 1536},
        {"encoder.features": 96},
        {"output.private_features": "slice"},
        {"output.intermediate": 256},
        {"output.intermediate": 512, "output.private_features": "slice", "encoder.features": 64},
    ],
)
def test_what_decides_the_width_decides_the_size(name: str, changes: dict[str, Any]) -> None:
    shared = Shared(config=base(fan_in=64), sizes=SIZES, sparsity=0.83)
    made = settings_of(SYSTEMS[name], shared, changes)
    tail = build_model(made, num_inputs=SIZES.inputs, num_labels=300).output.tail
    assert tail is not None
    assert 0.83 <= tail.sparsity < 0.83 + 16 / tail.in_features
    assert settings_of(SYSTEMS[name], shared, {**changes, "output.fan_in": 16}).output.fan_in == 16


def test_spartex_has_its_auxiliary_objective_wherever_there_is_an_encoder() -> None:
    def clusters(**encoder: Any) -> int:
        changes = {f"encoder.{key}": value for key, value in encoder.items()}
        config = apply(base(fan_in=64), {**changes, "optim.encoder.lr": 1e-4})
        return settings_of(SYSTEMS["spartex"], Shared(config=config, sizes=SIZES), {}).auxiliary.clusters

    assert clusters() == clusters(kind="transformer", name="x", features=0) == 62
    assert clusters(kind="features", features=0, dropout=0.0) == 0


def test_a_bottleneck_is_as_wide_as_its_own_features_ask() -> None:
    for features in (256, 3072):
        shared = Shared(config=base(fan_in=64), sizes=replace(SIZES, labels=200_000), sparsity=0.9)
        made = [settings_of(SYSTEMS[name], shared, {"encoder.features": features}) for name in ("bottleneck", "haste")]
        products = [output_products(config, shared.sizes) for config in made]
        assert products[0] == pytest.approx(products[1], rel=8 / made[0].output.intermediate + 0.01)


def test_rewiring_follows_the_length_of_training() -> None:
    config = apply(base(fan_in=64), {"rewire.interval": 0})
    shared = Shared(config=config, sizes=SIZES)
    intervals = [settings_of(SYSTEMS["haste"], shared, {"optim.epochs": n}).rewire.interval for n in (2, 6)]
    assert intervals == [26, 79]  # a sixth of all steps


def test_haste_is_the_settings_own_layer() -> None:
    config = base(fan_in=96, group_size=32, head_ratio=0.05, grouping="frequency")
    assert settings_of(SYSTEMS["haste"], Shared(config=config, sizes=SIZES), {}) == config
    wide = settings_of(SYSTEMS["haste"], Shared(config=base(fan_in=96, head_ratio=0.5), sizes=SIZES), {})
    assert wide.output.head_ratio == 0.1
    dense = settings_of(SYSTEMS["haste"], Shared(config=base(fan_in=768), sizes=SIZES), {})
    assert (dense.output.fan_in, dense.output.group_size, dense.output.head_ratio) == (128, 16, 0.1)


def test_the_squared_hinge_takes_smaller_steps() -> None:
    def made(config: Config) -> Config:
        return settings_of(SYSTEMS["spartex"], Shared(config=config, sizes=SIZES), {})

    config = apply(base(), {"optim.output.lr": 0.4})
    assert made(config).optim.output.lr == pytest.approx(0.05)
    assert made(config).auxiliary.lr == 0.4
    assert made(apply(config, {"optim.output.name": "adamw"})).optim.output.lr == 0.4
    assert made(apply(config, {"output.loss": "squared_hinge"})).optim.output.lr == 0.4


@pytest.mark.parametrize("sparsity", [0.83, 0.92, 0.96])
def test_a_bottleneck_multiplies_as_much_as_haste(sparsity: float) -> None:
    shared = Shared(config=base(), sizes=replace(SIZES, labels=200_000), sparsity=sparsity)
    bottleneck, haste = (settings_of(SYSTEMS[name], shared, {}) for name in ("bottleneck", "haste"))
    products = [output_products(config, shared.sizes) for config in (bottleneck, haste)]
    assert bottleneck.output.intermediate < 768 / 3
    assert products[0] == pytest.approx(products[1], rel=8 / bottleneck.output.intermediate + 0.01)


def test_products_are_the_numbers_in_the_weights() -> None:
    for name in SYSTEMS:
        sizes = replace(SIZES, labels=320)
        config = settings_of(SYSTEMS[name], Shared(config=base(), sizes=sizes, sparsity=0.9), {})
        output = build_model(config, num_inputs=sizes.inputs, num_labels=sizes.labels).output
        weights = sum(parameter.numel() for key, parameter in output.named_parameters() if key.endswith("weight"))
        assert output_products(config, sizes) == weights, name


def test_given_features_without_an_encoder() -> None:
    config = Config.from_dict(
        {"data": {"path": "x"}, "encoder": {"kind": "features", "features": 0}, "output": {"fan_in": 64}}
    )
    for name, system in SYSTEMS.items():
        sizes = replace(SIZES, inputs=512)
        made = settings_of(system, Shared(config=config, sizes=sizes, sparsity=0.9), {})
        build_model(made, num_inputs=512, num_labels=300, dense_inputs=True)
        assert made.auxiliary.clusters == 0, name


def test_fan_in_of_a_sparsity() -> None:
    assert fan_in_at(0.83, 768) == 128
    assert fan_in_at(0.83, 1024) == 160
    assert fan_in_at(0.92, 768) == 48
    assert fan_in_at(0.5, 32) == 16
    assert fan_in_at(0.75, 32) == 8
    with pytest.raises(
        ValueError, match=r"sparsity \(0.99\) must leave a label one of its 32 inputs at least; lower it"
    ):
        fan_in_at(0.99, 32)
    for wrong in (0, 1, 83):
        with pytest.raises(ValueError, match=rf"sparsity \({wrong}\) must be above 0 and below 1"):
            fan_in_at(wrong, 768)


def test_values_are_read_by_the_type_of_their_setting() -> None:
    assert parse_value("fan_in", "64") == ("output.fan_in", 64)
    assert parse_value("optim.output.lr", "1e-3") == ("optim.output.lr", 1e-3)
    assert parse_value("grouping", "random") == ("output.grouping", "random")
    assert parse_value("rewire.threshold", "0.01") == ("rewire.threshold", 0.01)
    assert parse_value("rewire.threshold", "null") == ("rewire.threshold", None)
    assert parse_value("duplicates", "true") == ("output.duplicates", True)
    for key, text, message in [
        ("lr", "1", r"lr must name one setting; write .*optim.output.lr"),
        ("fanin", "1", r"unknown key fanin; the nearest known key is output.fan_in"),
        ("fan_in", "many", r"output.fan_in \(many\) must be of type int"),
        ("duplicates", "yes", r"output.duplicates \(yes\) must be true or false"),
    ]:
        with pytest.raises(ValueError, match=message):
            parse_value(key, text)


def test_changes_are_checked(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config()
    assert apply(config, {"optim.output.lr": 0.3}).optim.output.lr == 0.3
    assert apply(config, {}) == config
    for changes, message in [
        ({"output.fanin": 3}, "unknown key output.fanin"),
        ({"output": 3}, "unknown key output;"),
        ({"output.fan_in": 3000}, r"output.fan_in \(3000\) must not exceed"),
    ]:
        with pytest.raises(ValueError, match=message):
            apply(config, changes)
