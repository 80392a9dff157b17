import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from haste import metrics
from haste.config import Config
from haste.data.dataset import load_dataset
from haste.data.formats import Record, read_jsonl
from haste.train.evaluate import evaluate_run, evaluate_split, find_model, predict, predict_topk, read_split
from haste.train.model_folder import load_model
from haste.train.trainer import train


def quiet(text: str) -> None:
    pass


@pytest.fixture
def run(tiny_config: Callable[..., Config]) -> Path:
    return train(tiny_config(), log=quiet)


def test_ranking_is_that_of_the_whole_score_matrix(run: Path, tiny_data: Path) -> None:
    trained = load_model(run / "model", device="cpu")
    test = read_split(trained, "test", str(tiny_data))
    scores, ids = predict_topk(trained.model, test, 5)
    documents, _ = test.batch(np.arange(len(test)))
    with torch.no_grad():
        dense = trained.model.output(trained.model.encoder(documents)).numpy()
    order = np.lexsort((np.broadcast_to(np.arange(30), dense.shape), -dense))[:, :5]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_allclose(scores, np.take_along_axis(dense, order, 1), rtol=1e-5)


def test_fewer_labels_than_asked_for_are_marked(run: Path, tiny_data: Path) -> None:
    trained = load_model(run / "model", device="cpu")
    trained.model.train()
    scores, ids = predict_topk(trained.model, read_split(trained, "dev", str(tiny_data)), 33)
    assert trained.model.training
    assert (np.sort(ids[:, :30]) == np.arange(30)).all()
    assert (ids[:, 30:] == -1).all()
    assert np.isneginf(scores[:, 30:]).all()


def test_metrics_count_labels_outside_train_as_missed(tiny_config: Callable[..., Config], run: Path) -> None:
    config = tiny_config()
    dataset = load_dataset(config.data, seed=0, log=quiet)
    assert dataset.test is not None
    model = load_model(run / "model", device="cpu").model
    found = evaluate_split(model, dataset.test, dataset.labels, num_points=240)
    counts = np.append(dataset.labels.counts, 0)
    inverse = metrics.inverse_propensity(counts, 240)
    _, ids = predict_topk(model, dataset.test, 5)
    expected = metrics.as_percent(metrics.evaluate(ids, dataset.test.truth, k=5, inverse_propensity=inverse))
    assert found == expected
    assert dataset.test.truth.shape[1] == 31


def test_the_filter_is_counted_and_keeps_labels_out(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    config = tiny_config(optim={"epochs": 8})
    data = load_dataset(config.data, seed=0)
    assert data.test is not None
    true = data.test.truth[:, : data.labels.num_labels].tocsr()
    lines: list[str] = []
    data = replace(data, test=replace(data.test, filter=true))
    run = train(config, dataset=data, log=lines.append)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["filter"] == {"test": true.nnz}
    assert metrics["test"]["P@5"] == 0  # all that is true is filtered
    assert metrics["dev"]["P@1"] > 50
    assert any(line.startswith("test: ") and f"{true.nnz} pairs filtered" in line for line in lines)
    assert evaluate_run(run)["P@1"] > 50  # its files have no filter
    train(config, dataset=data, resume=True, log=lines.append)
    assert lines[-1] == f"{run} is finished already; nothing to do"


def test_a_run_is_evaluated_again_from_its_files(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    saved = json.loads((run / "metrics.json").read_text())
    for split in ("dev", "test"):
        assert evaluate_run(run, split) == saved[split]
        assert evaluate_run(run / "model", split) == saved[split]
    other = evaluate_run(run, "test", propensity=(0.6, 2.6))
    assert other["P@1"] == saved["test"]["P@1"]
    assert other["PSP@5"] != saved["test"]["PSP@5"]

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("train", "test"):
        (elsewhere / f"{name}.jsonl").write_bytes((tiny_data / f"{name}.jsonl").read_bytes())
    with open(elsewhere / "test.jsonl", "a") as file:
        file.write(json.dumps({"text": "word1", "labels": ["label never seen"]}) + "\n")
    assert evaluate_run(run, "test", path=str(elsewhere))["R@5"] == pytest.approx(saved["test"]["R@5"] * 40 / 41)
    (elsewhere / "test.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"test.jsonl: holds no documents"):
        evaluate_run(run, "test", path=str(elsewhere))
    (elsewhere / "test.jsonl").unlink()
    with pytest.raises(ValueError, match="there is no test split; found train"):
        evaluate_run(run, "test", path=str(elsewhere))


def test_dev_drawn_from_train_is_drawn_again(
    tiny_config: Callable[..., Config], tiny_data: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_bytes((tiny_data / "train.jsonl").read_bytes())
    run = train(tiny_config(data={"path": str(data), "dev_fraction": 0.1}, run={"seed": 3}), log=quiet)
    assert evaluate_run(run, "dev") == json.loads((run / "metrics.json").read_text())["dev"]
    assert json.loads((run / "run.json").read_text())["data"]["dev"] == 24


def test_predictions_are_names_with_probabilities_in_order(run: Path, tiny_data: Path) -> None:
    records = list(read_jsonl(tiny_data / "test.jsonl"))
    rows = list(predict(run, iter(records), 3))
    assert [row["id"] for row in rows] == [record.id for record in records]
    for row in rows:
        values = [label["probability"] for label in row["labels"]]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert all(0 < value < 1 for value in values)
    hits = [row["labels"][0]["label"] in record.labels for row, record in zip(rows, records, strict=True)]
    saved = json.loads((run / "metrics.json").read_text())
    assert 100 * sum(hits) / len(hits) == pytest.approx(saved["test"]["P@1"])
    assert list(predict(run / "model", iter(records), 3)) == rows


def test_hinge_models_give_scores(tiny_config: Callable[..., Config]) -> None:
    run = train(tiny_config(output={"loss": "squared_hinge"}, optim={"output": {"lr": 0.005}}), log=quiet)
    (row,) = predict(run, [Record(id="x", text="word1 word2", labels=())], 2)
    assert [set(label) for label in row["labels"]] == [{"label", "score"}] * 2


def test_folders_without_a_model_are_named(tmp_path: Path, tiny_config: Callable[..., Config]) -> None:
    with pytest.raises(ValueError, match="there is no such folder"):
        find_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"it has neither config.json nor model/"):
        find_model(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ValueError, match=r"has no model yet; finish the run with: haste train .*--resume"):
        find_model(tmp_path)
