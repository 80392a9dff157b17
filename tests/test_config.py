import dataclasses

import pytest
import yaml

from haste.config import Config, Data, Encoder, Output, check_keys, expand_path, settings


def test_defaults_survive_a_round_trip_through_yaml() -> None:
    config = Config(data=Data(path="x"))
    again = Config.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict())))
    assert again == config


def test_values_are_set_in_nested_sections() -> None:
    config = Config.from_dict({"data": {"path": "x"}, "optim": {"epochs": 3, "output": {"lr": 1}}})
    assert config.optim.epochs == 3
    assert config.optim.output.lr == 1.0
    assert isinstance(config.optim.output.lr, float)
    assert config.optim.encoder.lr == 5e-3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim": {"epoch": 3}}, "unknown key optim.epoch; the nearest known key is optim.epochs"),
        ({"optim": {"output": {"mometum": 3}}}, "nearest known key is optim.output.momentum"),
        ({"learning": {}}, "unknown key learning; the nearest"),
        ({"fan_in": 3}, "unknown key fan_in; the nearest known key is output.fan_in"),
        ({"output": {"groupsize": 3}}, "nearest known key is output.group_size"),
        ({"run": {"_section": "x"}}, "unknown key run._section"),
        ({7: 3}, "unknown key 7"),
    ],
)
def test_unknown_keys_name_the_nearest(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.from_dict({"data": {"path": "x"}, **values})


def test_keys_of_a_partial_file_can_be_checked_alone() -> None:
    check_keys({"optim": {"epochs": 3}})
    with pytest.raises(ValueError, match=r"unknown key data.paths; the nearest known key is data.path"):
        check_keys({"data": {"paths": "x"}})
    with pytest.raises(TypeError, match=r"optim.encoder \(float\) must be a mapping"):
        check_keys({"optim": {"encoder": 0.1}})
    with pytest.raises(TypeError, match=r"the configuration \(list\) must be a mapping"):
        check_keys([1])


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("data", {"path": ""}, r"data.path \(''\) must not be empty"),
        ("data", {"ngrams": 3}, r"data.ngrams \(3\) must be 1"),
        ("data", {"min_df": 0}, r"data.min_df \(0\) must be at least 1"),
        ("data", {"max_features": 0}, r"data.max_features \(0\) must be at least 1"),
        ("data", {"dev_fraction": 1.0}, r"data.dev_fraction \(1.0\)"),
        ("data", {"format": "xlsx"}, r"data.format \(xlsx\) must be one of auto, jsonl"),
        ("encoder", {"dropout": 1.0}, r"encoder.dropout \(1.0\)"),
        ("encoder", {"hidden": -1}, r"encoder.hidden \(-1\)"),
        ("output", {"fan_in": 800}, r"output.fan_in \(800\) must not exceed encoder.features \(768\); lower"),
        ("output", {"head_ratio": 1.5}, r"output.head_ratio \(1.5\)"),
        ("output", {"loss": "mse"}, r"output.loss \(mse\) must be one of bce, squared_hinge"),
        ("rewire", {"fraction": 2.0}, r"rewire.fraction \(2.0\)"),
        ("rewire", {"end": -0.1}, r"rewire.end \(-0.1\)"),
        ("rewire", {"interval": -1}, r"rewire.interval \(-1\)"),
        ("output", {"fan_in": -1}, r"output.fan_in \(-1\) must be at least 0"),
        ("output", {"intermediate": 64}, r"output.fan_in \(128\) must not exceed output.intermediate \(64\); lower"),
        ("output", {"block": 16}, r"rewire.regrow \(gradient\) must be random where output.block or output.duplicates"),
        ("output", {"duplicates": True}, r"rewire.regrow \(gradient\) must be random .*; or set rewire.interval: 0"),
        ("output", {"block": 5}, r"output.block \(5\) must divide output.fan_in"),
        ("output", {"block": 16, "duplicates": True}, r"output.duplicates \(True\) must be false with output.block"),
        ("output", {"block": 0}, r"output.block \(0\) must be at least 1"),
        (
            "encoder",
            {"name": "bert-base-uncased"},
            r"encoder.name \(bert-base-uncased\) must be given with encoder.kind",
        ),
        ("encoder", {"kind": "transformer"}, r"encoder.name \(None\) must be given with encoder.kind transformer"),
        (
            "encoder",
            {"kind": "transformer", "name": "x"},
            r"optim.encoder.lr \(0.005\) must be at most 0.001 for a transformer; 0.00005 is usual",
        ),
        ("encoder", {"kind": "transformer", "name": "x", "hidden": 8}, r"encoder.hidden \(8\) must be 0 for a transf"),
        ("encoder", {"autocast": True}, r"encoder.autocast \(True\) must be false unless encoder.kind is transformer"),
        (
            "encoder",
            {"kind": "transformer", "name": "x", "features": 0, "dtype": "bfloat16", "autocast": True},
            r"encoder.autocast \(True\) must be false with encoder.dtype bfloat16, which computes in bfloat16 as it is",
        ),
        ("encoder", {"checkpointing": True}, r"encoder.checkpointing \(True\) must be false unless encoder.kind is"),
        ("encoder", {"lora": 4}, r"encoder.lora \(4\) must be 0 unless encoder.kind is transformer"),
        ("encoder", {"attention": "sdpa"}, r"encoder.attention \(sdpa\) must be auto unless encoder.kind is transf"),
        ("encoder", {"dtype": "bfloat16"}, r"encoder.dtype \(bfloat16\) must be float32 unless optim.encoder.name is"),
        ("optim", {"encoder": {"state_dtype": "bfloat16"}}, r"optim.encoder.state_dtype \(bfloat16\) must be float32"),
        ("auxiliary", {"clusters": -1}, r"auxiliary.clusters \(-1\) must be at least 0"),
        ("auxiliary", {"end": 1.5}, r"auxiliary.end \(1.5\) must be in \[0, 1\]"),
        ("data", {"expected": {"train": 0}}, r"data.expected.train \(0\) must be at least 1"),
        ("data", {"propensity": {"a": -1.0}}, r"data.propensity.a \(-1.0\) must be at least 0"),
        ("optim", {"epochs": 0}, r"optim.epochs \(0\) must be at least 1"),
        ("optim", {"encoder": {"lr": -1.0}}, r"optim.encoder.lr \(-1.0\)"),
        ("optim", {"encoder": {"lr": float("nan")}}, r"optim.encoder.lr \(nan\) must be finite"),
        ("optim", {"output": {"name": "adamw", "momentum": 0.9}}, "must be 0 with optim.output.name adamw"),
        ("optim", {"output": {"sparsity": -1.0}}, r"optim.output.sparsity \(-1.0\) must be in \[0, 1\]"),
        ("optim", {"output": {"rarity": 1.5}}, r"optim.output.rarity \(1.5\) must be in \[0, 1\]"),
        ("run", {"seed": -1}, r"run.seed \(-1\)"),
        ("run", {"device": "gpu"}, r"run.device \(gpu\) must be auto, cpu, cuda or cuda:N"),
        ("run", {"threads": 0}, r"run.threads \(0\)"),
        ("run", {"evaluate_every": 0}, r"run.evaluate_every \(0.0\)"),
    ],
)
def test_values_out_of_range_name_key_value_and_limit(section: str, values: dict, message: str) -> None:
    config = {"data": {"path": "x"}}
    config[section] = {**config.get(section, {}), **values}
    with pytest.raises(ValueError, match=message):
        Config.from_dict(config)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("optim", {"epochs": "3"}, r"optim.epochs \(str '3'\) must be of type int"),
        ("optim", {"epochs": 3.0}, r"optim.epochs \(float 3.0\) must be of type int"),
        ("optim", {"epochs": True}, r"optim.epochs \(bool True\) must be of type int"),
        ("optim", {"epochs": None}, r"optim.epochs \(NoneType None\) must be of type int"),
        ("optim", {"encoder": {"lr": "fast"}}, r"optim.encoder.lr \(str 'fast'\) must be of type float"),
        ("run", {"threads": 2.5}, r"run.threads \(float 2.5\) must be of type int"),
        ("run", {"deterministic": 1}, r"run.deterministic \(int 1\) must be of type bool"),
        ("data", {"path": 3}, r"data.path \(int 3\) must be of type str"),
    ],
)
def test_values_of_the_wrong_type_are_refused(section: str, values: dict, message: str) -> None:
    config = {"data": {"path": "x"}}
    config[section] = {**config.get(section, {}), **values}
    with pytest.raises(TypeError, match=message):
        Config.from_dict(config)


def test_an_auxiliary_classifier_needs_an_encoder() -> None:
    values = {"data": {"path": "x"}, "encoder": {"kind": "features", "features": 0}, "auxiliary": {"clusters": 5}}
    with pytest.raises(ValueError, match=r"auxiliary.clusters \(5\) must be 0 where given features go straight"):
        Config.from_dict(values)


def test_groups_by_texts_are_semantic() -> None:
    values = {"data": {"path": "x"}, "output": {"grouping": "random"}, "label_texts": {"group": True}}
    with pytest.raises(ValueError, match=r"label_texts.group \(True\) must be false with output.grouping random"):
        Config.from_dict(values)


def test_data_path_must_be_given() -> None:
    with pytest.raises(ValueError, match=r"data.path must be given"):
        Config.from_dict({})


def test_sections_are_checked_when_built_directly() -> None:
    with pytest.raises(ValueError, match="fan_in"):
        Config(data=Data(path="x"), encoder=Encoder(features=64), output=Output(fan_in=65))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Encoder().features = 3


def test_settings_list_every_key_with_its_meaning_and_default() -> None:
    config = Config(data=Data(path="x"))
    listed = {setting.key: setting for setting in settings()}
    flat = {}
    pending = [("", config.to_dict())]
    while pending:
        prefix, values = pending.pop()
        for name, value in values.items():
            if isinstance(value, dict):
                pending.append((f"{prefix}{name}.", value))
            else:
                flat[prefix + name] = value
    assert listed.keys() == flat.keys()
    assert listed.pop("data.path").default is dataclasses.MISSING
    for key, setting in listed.items():
        assert setting.default == flat[key]
        assert setting.help


def test_paths_are_expanded_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTE_SOMEWHERE", "/somewhere")
    assert expand_path("${HASTE_SOMEWHERE}/x", "data.path") == "/somewhere/x"
    assert expand_path("plain/x", "data.path") == "plain/x"
    assert not expand_path("~/x", "run.dir").startswith("~")
    monkeypatch.delenv("HASTE_SOMEWHERE")
    with pytest.raises(ValueError, match=r"data.path \(\$\{HASTE_SOMEWHERE\}/x\) .* export HASTE_SOMEWHERE"):
        expand_path("${HASTE_SOMEWHERE}/x", "data.path")
