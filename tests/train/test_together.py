import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit

from haste.cli import main
from haste.config import Config
from haste.data.formats import Record
from haste.train.evaluate import evaluate_run, predict, read_split
from haste.train.model_folder import TrainedModel
from haste.train.together import evaluate_together, load_together, predict_together, rank_together
from haste.train.trainer import train


def quiet(text: str) -> None:
    pass


@pytest.fixture
def runs(tiny_config: Callable[..., Config], tmp_path: Path) -> list[Path]:
    """A model of words, and one of words and pairs of words without an encoder."""
    first = tiny_config(run={"dir": str(tmp_path / "bag")})
    second = tiny_config(
        run={"dir": str(tmp_path / "straight"), "seed": 3},
        data={"ngrams": 2},
        encoder={"kind": "features", "features": 0, "hidden": 0},
        output={"fan_in": 8, "inputs": "positives"},
    )
    return [train(first, log=quiet), train(second, log=quiet)]


def _probabilities(model: TrainedModel, split: str) -> np.ndarray:
    documents = read_split(model, split)
    with torch.no_grad():
        logits = model.model.output(model.model.encoder(documents.batch(np.arange(len(documents)))[0]))
    return expit(logits.double().numpy())


def test_the_mean_of_log_probabilities_is_ranked(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("haste.train.together._BATCH", 17)
    models = load_together(runs, device="cpu")
    found, ids = rank_together(models, [read_split(model, "test") for model in models], 5)
    expected = np.mean([np.log(_probabilities(model, "test")) for model in models], axis=0)
    order = np.argsort(-expected, axis=1, kind="stable")[:, :5]
    np.testing.assert_allclose(found, np.take_along_axis(expected, order, 1), rtol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(expected, ids, 1), found, rtol=1e-4)
    assert (ids == order).mean() > 0.99  # but for ties within rounding


def test_only_the_best_of_every_model_are_looked_at(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("haste.train.together._CANDIDATES", 3)
    models = load_together(runs, device="cpu")
    found, ids = rank_together(models, [read_split(model, "test") for model in models], 5)
    best = [np.argsort(-_probabilities(model, "test"), axis=1)[:, :3] for model in models]
    for row in range(len(ids)):
        candidates = set(best[0][row]) | set(best[1][row])
        listed = [label for label in ids[row].tolist() if label >= 0]
        assert set(listed) <= candidates
        assert len(listed) == min(5, len(candidates))
        assert np.isneginf(found[row, len(listed) :]).all()


def test_one_model_together_with_itself_is_itself(runs: list[Path]) -> None:
    models = load_together([runs[0], runs[0]], device="cpu")
    alone, twice = evaluate_run(runs[0]), evaluate_together(models)
    assert twice == pytest.approx(alone, abs=1e-6)
    records = [Record("a", "red words here", ()), Record("b", "", ())]
    first, second = list(predict(models[0], records, 4)), list(predict_together(models, records, 4))
    for one, two in zip(first, second, strict=True):
        assert one["id"] == two["id"]
        assert [x["label"] for x in one["labels"]] == [x["label"] for x in two["labels"]]
        assert [x["probability"] for x in one["labels"]] == pytest.approx([x["probability"] for x in two["labels"]])


def test_on_the_command_line(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    expected = evaluate_together(load_together(runs, device="cpu"), "dev")
    assert main(["evaluate", *map(str, runs), "--split", "dev", "--json"]) in (0, None)
    assert json.loads(capsys.readouterr().out)["dev"] == pytest.approx(expected)
    assert main(["predict", *map(str, runs), "--text", "some words", "--top-k", "3"]) in (0, None)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_what_cannot_be_put_together(
    runs: list[Path], tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hinge = train(tiny_config(run={"dir": str(tmp_path / "hinge")}, output={"loss": "squared_hinge"}), log=quiet)
    with pytest.raises(ValueError, match=r"output.loss \(squared_hinge\) must be bce"):
        load_together([runs[0], hinge])
    few = train(tiny_config(run={"dir": str(tmp_path / "few")}, data={"max_documents": 20}), log=quiet)
    with pytest.raises(ValueError, match=r"its labels must be those of .*bag"):
        load_together([runs[0], few])
    models = load_together(runs, device="cpu")
    with pytest.raises(ValueError, match=r"top_k \(51\) must not exceed 50"):
        list(predict_together(models, [Record("a", "words", ())], 51))
