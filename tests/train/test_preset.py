import itertools
from typing import Any

import pytest

from haste.config import Config
from haste.nn import build_model
from haste.train.preset import Facts, choose, fill, flatten, free_memory

GIB = 2**30


def facts(**changes: Any) -> Facts:
    values = {"num_documents": 45_000, "num_labels": 4_108, "labels_per_document": 5.0, "memory_bytes": 16 * GIB}
    if changes.get("kind", "text") == "text":
        values["words_per_document"] = 500.0
    return Facts(**{**values, **changes})


def filled(given: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return fill({"data": {"path": "x"}, **(given or {})}, facts(**changes))[0]


KINDS = (
    {"kind": "text", "words_per_document": 3.0},
    {"kind": "text", "words_per_document": 2000.0},
    {"kind": "sparse", "num_inputs": 500_000},
    {"kind": "sparse", "num_inputs": 1},
    {"kind": "dense", "num_inputs": 1},
    {"kind": "dense", "num_inputs": 64},
    {"kind": "dense", "num_inputs": 1024},
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory", [GIB // 4, 16 * GIB, 512 * GIB])
def test_every_size_of_data_has_settings_that_are_valid(kind: dict[str, Any], memory: int) -> None:
    sizes = [10**power for power in range(8)]
    for documents, labels, has_dev in itertools.product(sizes, sizes, (True, False)):
        found = facts(num_documents=documents, num_labels=labels, memory_bytes=memory, has_dev=has_dev, **kind)
        values, lines = fill({"data": {"path": "x"}}, found)
        config = Config.from_dict(values)
        train = documents - int(documents * config.data.dev_fraction * (not has_dev))
        assert config.optim.batch_size <= max(8, train)
        assert 5 <= config.optim.epochs <= 40
        steps = config.optim.epochs * -(-train // config.optim.batch_size)
        assert config.optim.warmup_steps < steps or steps < 10
        assert config.rewire.interval == 0 or config.rewire.interval < max(100, steps)
        width = config.encoder.features or found.num_inputs or 0
        assert config.output.fan_in <= width
        assert len(lines) == 1 + len(flatten(values)) - 1
        assert all(": " in line for line in lines)
        if labels <= 100 and documents <= 1000 and memory > GIB and (found.num_inputs or 1) <= 1024:
            dense = found.kind == "dense"
            build_model(config, num_inputs=found.num_inputs or 50, num_labels=labels, dense_inputs=dense)


def test_many_short_texts_keep_all_features() -> None:
    """configs/yso-finna-en.yaml: half of the features dropped cost 4 points of P@1."""
    sizes = ((588_257, 12.0), (588_257, 500.0), (9_000, 12.0))
    chosen = [filled(num_documents=num, words_per_document=words)["encoder"]["dropout"] for num, words in sizes]
    assert chosen == [0.0, 0.5, 0.5]


def test_what_was_tuned_is_what_is_chosen() -> None:
    """The settings of configs/eurlex57k.yaml, for data of that size."""
    values = filled(has_dev=True)
    assert values["data"] == {"path": "x", "ngrams": 2, "min_df": 3, "max_features": 100_000}
    assert values["encoder"] == {"kind": "bag", "features": 1024, "dropout": 0.5}
    assert values["output"] == {"fan_in": 168, "group_size": 16, "head_ratio": 0.1}
    assert values["optim"] == {"batch_size": 256, "epochs": 10, "warmup_steps": 100}
    assert values["rewire"]["interval"] == 293


def test_what_the_user_gave_wins_and_the_rest_follows() -> None:
    given = {
        "data": {"path": "x", "max_features": None},
        "encoder": {"features": 300},
        "optim": {"epochs": 3, "encoder": {"lr": 0.1}},
    }
    found = facts(has_dev=True)
    values, lines = fill(given, found)
    assert values["data"]["max_features"] is None
    assert values["encoder"]["features"] == 300
    assert values["output"]["fan_in"] == 48
    assert values["optim"]["epochs"] == 3
    assert values["optim"]["encoder"] == {"lr": 0.1}
    assert values["rewire"]["interval"] == 88  # a sixth of the steps
    assert not [line for line in lines if line.startswith(("encoder.features", "optim.epochs", "data.max_features"))]
    assert given["encoder"] == {"features": 300}  # unchanged
    assert choose(found, flatten(given)).keys().isdisjoint(flatten(given))


def test_a_wider_fan_in_widens_the_encoder() -> None:
    assert filled({"output": {"fan_in": 700}}, num_labels=100)["encoder"]["features"] == 700
    assert filled({"output": {"fan_in": 16}}, num_labels=100)["encoder"]["features"] == 128


def test_small_output_layers_stay_dense() -> None:
    small, large = filled(num_labels=500)["output"], filled(num_labels=50_000)["output"]
    assert small == {"fan_in": 256, "head_ratio": 0.0}
    assert large["fan_in"] == 168
    assert filled(num_labels=500)["rewire"]["interval"] == 0


def test_millions_of_labels() -> None:
    output = filled(num_labels=5_000_000, num_documents=5_000_000)["output"]
    assert output["head_ratio"] == 0.002
    assert output["group_size"] == 64
    assert "grouping" not in output
    assert filled(num_labels=5_000_000, memory_bytes=8 * GIB)["output"]["grouping"] == "frequency"
    assert "dtype" not in filled(num_labels=5_000_000, memory_bytes=256 * GIB)["output"]
    assert filled(num_labels=5_000_000, memory_bytes=8 * GIB)["output"]["dtype"] == "bfloat16"


def test_little_memory_narrows_the_encoder() -> None:
    widths = [filled(memory_bytes=memory)["encoder"]["features"] for memory in (GIB // 2, GIB, 4 * GIB, 8 * GIB)]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1] == 1024


def test_pairs_of_words_need_many_documents_or_short_ones() -> None:
    sizes = ((500, 8.0), (5000, 8.0), (5000, 500.0), (45_000, 500.0), (10_000_000, 500.0))
    chosen = [filled(num_documents=num, words_per_document=words)["data"]["ngrams"] for num, words in sizes]
    assert chosen == [1, 2, 1, 2, 1]


def test_few_documents_are_learnt_faster() -> None:
    rates = [filled(num_documents=num)["optim"].get("output", {}).get("lr") for num in (50, 500, 5000)]
    assert rates == [0.2, 0.1, None]
    assert "lr" not in filled({"optim": {"output": {"name": "adamw"}}}, num_documents=50)["optim"]["output"]


def test_small_batches_are_left_to_one_thread() -> None:
    assert filled(num_documents=1000)["run"]["threads"] == 1
    assert "threads" not in filled(num_documents=45_000).get("run", {})
    assert "threads" not in filled(num_documents=1000, device="cuda").get("run", {})
    assert filled({"run": {"threads": 2}}, num_documents=1000)["run"]["threads"] == 2


def test_given_features() -> None:
    few = filled(kind="dense", num_inputs=10)
    assert few["encoder"]["kind"] == "features"
    assert few["encoder"]["normalize"] is False
    assert few["encoder"]["features"] > 0
    many = filled(kind="dense", num_inputs=768)
    assert many["encoder"] == {"kind": "features", "features": 0, "normalize": True, "dropout": 0.0}
    assert many["optim"]["output"] == {"name": "adamw", "lr": 0.02}
    sgd = filled({"optim": {"output": {"name": "sgd"}}}, kind="dense", num_inputs=768)
    assert sgd["optim"]["output"] == {"name": "sgd", "lr": 2.0}
    layers = filled({"encoder": {"features": 256}}, kind="dense", num_inputs=768)
    assert layers["encoder"]["features"] == 256
    assert "output" not in layers["optim"]
    assert filled(kind="sparse", num_inputs=2000)["encoder"]["kind"] == "bag"
    assert "min_df" not in filled(kind="sparse", num_inputs=2000)["data"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"optim": {"epochs": "many"}}, TypeError, r"optim.epochs \(str 'many'\) must be of type int"),
        ({"optim": {"epohs": 3}}, ValueError, r"unknown key optim.epohs; the nearest known key is optim.epochs"),
        ({"encoder": {"features": "wide"}}, TypeError, r"encoder.features \(str 'wide'\) must be of type int"),
        ({"encoder": {"features": 0}}, ValueError, r"encoder.features \(0\) must be at least 1 unless encoder.kind is"),
        ({"output": {"fan_in": -1}}, ValueError, r"output.fan_in \(-1\) must be at least 0"),
    ],
)
def test_what_the_user_gave_is_checked_first(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        filled(given)


def test_a_dense_layer_of_any_width_is_not_rewired() -> None:
    dense = filled({"output": {"fan_in": 0}}, num_labels=100_000)
    assert dense["rewire"]["interval"] == 0
    assert "group_size" not in dense["output"]
    sparse = filled({"output": {"intermediate": 4096}}, num_labels=100_000)
    assert sparse["output"]["fan_in"] == 4096 // 6 // 8 * 8


def test_free_memory_is_a_plausible_size() -> None:
    assert 2**26 < free_memory() < 2**50
