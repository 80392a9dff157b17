"""Runs with a transformer: trained, resumed, saved, evaluated, and used for prediction without its folder."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import haste
from haste.cli import main
from haste.config import Config
from haste.data.source import Record
from haste.data.tokens import Tokenizer
from haste.train.checkpoint import load_checkpoint, save_checkpoint
from haste.train.encoded import Encoded
from haste.train.evaluate import evaluate_run, predict
from haste.train.given_data import load_given
from haste.train.loop import Loop
from haste.train.model_folder import load_model
from haste.train.signals import Interrupted
from haste.train.trainer import train

CPU = torch.device("cpu")
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "low precision": {
        "encoder": {"dtype": "bfloat16"},
        "output": {"dtype": "bfloat16"},
        "optim": {"encoder": {"name": "kahan_adamw", "state_dtype": "bfloat16", "lr": 1e-3}},
    },
    "mixed precision": {"encoder": {"autocast": True, "features": 48}},
    "checkpointing": {"encoder": {"checkpointing": True, "features": 48, "pooling": "cls"}},
    "adapters": {"encoder": {"lora": 4, "checkpointing": True, "features": 48}},
    "adapters in low precision": {
        "encoder": {"lora": 4, "dtype": "bfloat16"},
        "optim": {"encoder": {"name": "kahan_adamw", "state_dtype": "bfloat16", "lr": 1e-3}},
    },
    "unfused": {"optim": {"output": {"fused": False}, "encoder": {"lr": 1e-3}}, "encoder": {"pooling": "max"}},
}


@pytest.fixture
def bert_config(tiny_settings: Callable[..., dict[str, Any]], tiny_bert: Path) -> Callable[..., Config]:
    def config(**changes: dict[str, Any]) -> Config:
        values = tiny_settings()
        values["data"] |= {"max_tokens": 16}
        values["encoder"] |= {"kind": "transformer", "name": str(tiny_bert), "features": 0}
        values["optim"] |= {"epochs": 2, "encoder": {"lr": 1e-3}}
        for section, change in changes.items():
            values[section] = {**values.get(section, {}), **change}
        return Config.from_dict(values)

    return config


def quiet(line: str) -> None:
    pass


def make_loop(config: Config, *, initialize: bool = True) -> Loop:
    dataset = load_given(config, log=quiet)
    loop = Loop(config, dataset, CPU)
    if initialize:
        loop.initialize(dataset)
    return loop


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_after_a_checkpoint_is_bitwise_the_same(
    bert_config: Callable[..., Config], tmp_path: Path, variant: str
) -> None:
    config = bert_config(**VARIANTS[variant])
    loop = make_loop(config)
    for step in range(8):
        if step == 4:
            save_checkpoint(tmp_path / "c", ["last"], step=step, tensors=loop.tensors(), meta=loop.meta())
        loop.step(step)
    resumed = make_loop(config, initialize=False)
    resumed.load(*load_checkpoint(tmp_path / "c" / "last"))
    for step in range(4, 8):
        resumed.step(step)
    expected, found = loop.tensors(), resumed.tensors()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_features_asked_for_are_those_of_the_encoder(bert_config: Callable[..., Config]) -> None:
    config = bert_config()
    dataset, loop = load_given(config, log=quiet), make_loop(config, initialize=False)
    encoded = Encoded(loop.model.encoder.train(), dataset.train, CPU)
    rows = np.array([200, 3, 77])
    found = encoded[rows]
    assert loop.model.encoder.training
    loop.model.encoder.eval()
    for row, features in zip(rows, found, strict=True):
        documents, _ = dataset.train.batch(np.array([row]))
        expected = loop.model.encoder(documents).detach().numpy()[0]
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encoded[2:4][1], found[1], rtol=1e-4, atol=1e-5)
    assert encoded.shape == (240, 32)


@pytest.fixture(scope="module")
def finished(tiny_data: Path, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from the command line with a transformer whose folder is gone afterwards."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(tiny_bert, folder / "bert")
    options = {
        "data.max_tokens": 16,
        "encoder.kind": "transformer",
        "encoder.name": folder / "bert",
        "encoder.features": 0,
        "output.fan_in": 8,
        "output.group_size": 4,
        "optim.encoder.lr": 0.001,
        "optim.epochs": 12,
        "optim.batch_size": 16,
        "run.dir": folder / "run",
        "run.threads": 1,
        "run.device": "cpu",
        "run.evaluate_every": 6,
    }
    arguments = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    assert main(["train", str(tiny_data), "--preset", "none", *arguments]) == 0
    shutil.rmtree(folder / "bert")
    return folder / "run"


def test_a_run_learns_and_its_model_needs_no_other_folder(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["test"]["nDCG@5"] > 60
    record = json.loads((finished / "run.json").read_text())
    assert 1 > record["grouping"]["cosine"] > record["grouping"]["cosine_random"] > 0
    assert record["tokens"]["trained"] > 12 * 240 * 5
    assert 0 <= record["tokens"]["pads"] <= record["tokens"]["pads_without_buckets"] < 0.5
    assert record["tokens"]["per_second"] > 0
    found = evaluate_run(finished, "test", device="cpu")
    assert found == pytest.approx({name: metrics["test"][name] for name in found})
    names = {path.name for path in (finished / "model").iterdir()}
    assert {"tokenizer.json", "transformer.json", "encoder.safetensors"} <= names
    assert "vectorizer.json" not in names


def test_predictions_do_not_depend_on_what_stands_beside_a_text(finished: Path) -> None:
    trained = load_model(finished / "model", device="cpu")
    texts = ["word1 word2 word0 word1", "word60 word61 " * 12, "", "word30"]
    together = list(predict(trained, [Record(str(n), text) for n, text in enumerate(texts)], 3))
    for number, text in enumerate(texts):
        (alone,) = predict(trained, [Record("x", text)], 3)
        for a, b in zip(alone["labels"], together[number]["labels"], strict=True):
            assert a["label"] == b["label"]
            assert a["probability"] == pytest.approx(b["probability"], rel=1e-4)


def test_a_damaged_model_folder_is_refused(finished: Path, tmp_path: Path) -> None:
    for name, change, message in (
        ("transformer.json", {"hidden_size": 64}, r"encoder.safetensors: .* must be"),
        ("transformer.json", {"model_type": None}, r"transformer.json: must be there and name a model_type"),
        ("transformer.json", {"model_type": "no such"}, r"\(model_type no such\) cannot be made"),
        ("transformer.json", {"hidden_size": "x"}, r"\(model_type bert\) cannot be made"),
        ("transformer.json", {"num_attention_heads": 0}, r"\(model_type bert\) cannot be made"),
        ("transformer.json", {"num_hidden_layers": 10**9}, r"num_hidden_layers \(1,000,000,000\) must not exceed"),
        ("transformer.json", {"backbone": "some/model"}, r"backbone must not be set"),
        ("transformer.json", {"nested": [{"auto_map": {"AutoModel": "code.Model"}}]}, r"auto_map must not be set"),
    ):
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(finished / "model", folder)
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, **change}))
        with pytest.raises(ValueError, match=message):
            load_model(folder, device="cpu")


def test_a_model_folder_chooses_no_kernels(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(finished / "model", folder)
    values = json.loads((folder / "transformer.json").read_text())
    names = {"_attn_implementation": "some/kernel", "attn_implementation": "some/kernel"}
    (folder / "transformer.json").write_text(json.dumps({**values, **names}))
    found = load_model(folder, device="cpu").model.encoder.model.config._attn_implementation
    assert found in ("sdpa", "eager")


def test_a_model_trained_with_flash_attention_opens_without_it(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(finished / "model", folder)
    values = json.loads((folder / "config.json").read_text())
    values["config"]["encoder"]["attention"] = "flash_attention_2"
    (folder / "config.json").write_text(json.dumps(values))
    load_model(folder, device="cpu")


def test_an_interrupted_run_ends_as_one_that_was_not(bert_config: Callable[..., Config], tmp_path: Path) -> None:
    whole = train(bert_config(run={"dir": str(tmp_path / "whole"), "threads": 1}), log=quiet)
    config = bert_config(run={"dir": str(tmp_path / "stopped"), "threads": 1})

    def stop_at(beginning: str) -> Callable[[str], None]:
        return lambda line: os.kill(os.getpid(), signal.SIGTERM) if line.startswith(beginning) else None

    with pytest.raises(Interrupted, match="stopped after step 0 of 16"):
        train(config, log=stop_at("encoding 240 documents to group labels"))
    with pytest.raises(Interrupted, match="stopped after step 8 of 16"):
        train(config, log=stop_at("step 8: dev"), resume=True)
    train(config, log=quiet, resume=True)
    states = [load_model(Path(run) / "model", device="cpu").model.state_dict() for run in (whole, config.run.dir)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_run_with_adapters_leaves_a_plain_model(
    bert_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = bert_config(encoder={"lora": 8}, run={"dir": str(tmp_path / "run"), "threads": 1})
    run = train(config, log=quiet)
    resumed, _ = load_checkpoint(run / "checkpoints" / "last")
    states = {name.rpartition(".")[0] for name in resumed if name.startswith("encoder_optimizer.")}
    assert states
    assert all(".lora_A." in name or ".lora_B." in name for name in states)
    monkeypatch.setitem(sys.modules, "peft", None)
    trained = load_model(run / "model", device="cpu")
    untrained = make_loop(bert_config(), initialize=False).model.encoder.state_dict()
    merged = trained.model.encoder.state_dict()
    assert merged.keys() == untrained.keys()
    changed = {name for name in merged if not torch.equal(merged[name], untrained[name])}
    linear = ("query", "key", "value", "dense")
    assert changed == {name for name in merged if name.endswith(tuple(f".{layer}.weight" for layer in linear))}
    metrics = json.loads((run / "metrics.json").read_text())
    found = evaluate_run(run, "test", device="cpu")
    assert found == pytest.approx({name: metrics["test"][name] for name in found})


def test_a_classifier_with_a_transformer(tiny_data: Path, tiny_bert: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (tiny_data / "train.jsonl").read_text().splitlines()]
    config = {
        "data": {"max_tokens": 16},
        "encoder": {"kind": "transformer", "name": str(tiny_bert)},
        "optim": {"encoder": {"lr": 1e-3}},
    }
    classifier = haste.Classifier(epochs=12, batch_size=16, config=config, device="cpu", verbose=False)
    texts = [row["text"] for row in rows]
    classifier.fit(texts, [row["labels"] for row in rows])
    assert classifier.score(texts, [row["labels"] for row in rows]) > 0.6
    labels, probabilities = classifier.predict_topk(texts[:3], k=2)
    classifier.save_pretrained(tmp_path / "model")
    classifier.save_pretrained(tmp_path / "model")  # it may replace itself
    again = haste.Classifier.from_pretrained(tmp_path / "model", device="cpu")
    found, scores = again.predict_topk(texts[:3], k=2)
    assert np.array_equal(found, labels)
    np.testing.assert_allclose(scores, probabilities, rtol=1e-4)
    with pytest.raises(ValueError, match=r"X must be texts for encoder.kind transformer; found features"):
        haste.Classifier(config=config, fan_in=8, preset=None, verbose=False).fit(np.ones((4, 2)), [["a"]] * 4)


def test_features_are_no_texts(bert_config: Callable[..., Config], tmp_path: Path) -> None:
    np.save(tmp_path / "X.trn.npy", np.ones((4, 3), np.float32))
    (tmp_path / "train.txt").write_text("2 3 2\n0 0:1.0\n1 1:1.0\n")
    config = bert_config(data={"path": str(tmp_path / "train.txt"), "max_tokens": 16})
    with pytest.raises(ValueError, match=r"holds features, a transformer reads texts; set encoder.kind: features"):
        load_given(config, log=quiet)


def test_texts_of_labels_are_tokens_too(tiny_data: Path, bert_config: Callable[..., Config], tmp_path: Path) -> None:
    data = tmp_path / "described"
    shutil.copytree(tiny_data, data)
    texts = [{"label": f"label {n}", "text": f"word{3 * n} word{3 * n + 1}"} for n in range(31)]
    (data / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    config = bert_config(
        data={"path": str(data), "max_tokens": 16}, label_texts={"train": True, "init": True, "share": 0.5}
    )
    loop = make_loop(config)
    points, num = loop.points, loop.num_documents
    assert (len(points), num, loop.epoch_size) == (271, 240, 256)
    tokens = Tokenizer.pretrained(str(config.encoder.name), 16).transform([texts[30]["text"]])
    assert points.features[270:].ids.tolist() == tokens.ids.tolist()
    epochs = [np.concatenate([loop.rows(step) for step in range(epoch * 8, epoch * 8 + 8)]) for epoch in range(2)]
    assert all(set(range(240)) < set(epoch) for epoch in epochs)
    assert not np.intersect1d(*(epoch[epoch >= 240] for epoch in epochs)).size > 1  # 2 * 16 of 31, in turn
    for step in range(3):
        loop.step(step)
    assert 0 < loop.window_loss() < 200
    order = loop.model.output.label_order.clone()
    assert 0 < loop.regroup()["kept"] < 1
    assert not torch.equal(loop.model.output.label_order, order)
