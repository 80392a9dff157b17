import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.decomposition import TruncatedSVD
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MultiLabelBinarizer

import haste
from haste.classifier import _scoring
from haste.cli import main
from haste.config import Config
from haste.train.loop import Loop
from haste.train.trainer import train

TOPICS = {
    "economy": "bank money market stock trade",
    "law": "court judge trial appeal verdict",
    "music": "guitar song band concert piano",
    "sport": "goal player match team referee",
}
FAST: dict[str, Any] = {"epochs": 8, "features": 32, "verbose": False}


def documents(num: int, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Texts of the words of one or two topics, and those topics."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for _ in range(num):
        chosen = rng.choice(sorted(TOPICS), rng.integers(1, 3), replace=False).tolist()
        words = [word for topic in chosen for word in TOPICS[topic].split()]
        texts.append(" ".join(rng.choice(words, 8)))
        labels.append(chosen)
    return texts, labels


TEXTS, LABELS = documents(80)
INDICATOR = MultiLabelBinarizer().fit_transform(LABELS)
FIRST = [labels[0] for labels in LABELS]
ROWS = TfidfVectorizer(dtype=np.float32).fit_transform(TEXTS)


@pytest.fixture(scope="module")
def fitted() -> haste.Classifier:
    return haste.Classifier(verbose=False).fit(TEXTS, LABELS)


def test_texts_in_labels_out(fitted: haste.Classifier) -> None:
    assert fitted.classes_.tolist() == sorted(TOPICS)
    labels, probabilities = fitted.predict_topk(["the band played a song", "the judge and the bank"], k=2)
    assert labels[0, 0] == "music"
    assert set(labels[1]) == {"law", "economy"}
    assert probabilities.shape == (2, 2)
    assert (np.diff(probabilities, axis=1) <= 0).all()
    assert (probabilities[1] > 0.5).all()
    found = fitted.predict(["the band played a song", "the judge and the bank", ""])
    assert scipy.sparse.issparse(found)
    assert found.toarray()[:2].tolist() == [[0, 0, 1, 0], [1, 1, 0, 0]]
    assert fitted.score(*documents(50, seed=1)) > 0.95
    assert not hasattr(fitted, "n_features_in_")


def test_all_scores_are_those_of_the_best(fitted: haste.Classifier) -> None:
    texts, _ = documents(20, seed=2)
    scores, probabilities = fitted.decision_function(texts), fitted.predict_proba(texts)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-scores)))
    labels, best = fitted.predict_topk(texts, k=99)
    assert labels.shape == (20, 4)  # all there are
    order = np.argsort(-probabilities, axis=1)
    assert (fitted.classes_[order] == labels).all()
    np.testing.assert_allclose(np.take_along_axis(probabilities, order, 1), best, rtol=1e-4)
    assert np.array_equal(fitted.predict(texts).toarray(), probabilities > 0.5)


@pytest.mark.parametrize("kind", ["lists", "tuples", "sets", "dense", "bool", "nested", "csr_matrix", "csr_array"])
def test_several_labels_can_be_given_in_many_ways(kind: str) -> None:
    y = {
        "lists": LABELS,
        "tuples": tuple(map(tuple, LABELS)),
        "sets": [set(labels) for labels in LABELS],
        "dense": INDICATOR,
        "bool": INDICATOR.astype(bool),
        "nested": INDICATOR.tolist(),
        "csr_matrix": scipy.sparse.csr_matrix(INDICATOR),
        "csr_array": scipy.sparse.csr_array(INDICATOR.astype(float)),
    }[kind]
    expected = haste.Classifier(**FAST).fit(TEXTS, LABELS)
    found = haste.Classifier(**FAST).fit(TEXTS, y)
    assert found.classes_.tolist() == (sorted(TOPICS) if kind in ("lists", "tuples", "sets") else [0, 1, 2, 3])
    assert np.array_equal(found.decision_function(TEXTS), expected.decision_function(TEXTS))
    assert found.score(TEXTS, y) == expected.score(TEXTS, LABELS)


def test_labels_may_be_numbers() -> None:
    numbers = [[10 * sorted(TOPICS).index(label) for label in labels] for labels in LABELS]
    found = haste.Classifier(**FAST).fit(TEXTS, numbers)
    assert found.classes_.tolist() == [0, 10, 20, 30]
    labels, _ = found.predict_topk(TEXTS[:3], k=2)
    assert labels.dtype == np.int64
    assert set(labels.ravel()) <= {0, 10, 20, 30}
    found = haste.Classifier(**FAST).fit(["aa bb", "cc"], [[1, 2], [3, 4]])  # a matrix of them too
    assert found.classes_.tolist() == [1, 2, 3, 4]


class Frame:
    """As much of a DataFrame of zeros and ones as matters."""

    ndim = 2
    columns = ("m", "s", "e", "l")

    def __len__(self) -> int:
        return len(INDICATOR)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return INDICATOR[:, [2, 3, 0, 1]]


def test_columns_of_a_data_frame_name_the_labels() -> None:
    found = haste.Classifier(**FAST).fit(TEXTS, Frame())
    assert found.classes_.tolist() == ["m", "s", "e", "l"]
    assert found.predict_topk(["guitar band piano"], 1)[0][0, 0] == "m"
    assert found.predict(["guitar band piano"]).toarray().tolist() == [[1, 0, 0, 0]]


@pytest.mark.parametrize("classes", [["b", "a", "d", "c"], [3, 1, 0, 7], [2.0, 1.0, 4.0, 0.0], [True, False]])
def test_one_class_a_document(classes: list[Any]) -> None:
    place = {topic: classes[number % len(classes)] for number, topic in enumerate(TOPICS)}
    y = [place[topic] for topic in FIRST]
    found = haste.Classifier(verbose=False).fit(TEXTS, y)
    assert found.classes_.tolist() == sorted(classes)
    predicted = found.predict(TEXTS)
    assert predicted.dtype == np.asarray(y).dtype
    assert found.score(TEXTS, y) == np.mean(predicted == y) > 0.7
    probabilities = found.predict_proba(TEXTS)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (found.classes_[probabilities.argmax(axis=1)] == predicted).all()
    scores = found.decision_function(TEXTS)
    if len(classes) == 2:
        assert np.array_equal(predicted, found.classes_[(scores > 0).astype(int)])
    else:
        assert scores.shape == (80, 4)


@pytest.mark.parametrize("kind", ["csr_matrix", "csr_array", "csc", "dense", "repeated"])
def test_features_in_many_forms(kind: str) -> None:
    repeated = scipy.sparse.vstack([ROWS, ROWS[:0]]).tocsr()
    repeated.indices, repeated.data = np.repeat(repeated.indices, 2), np.repeat(repeated.data / 2, 2)
    repeated.indptr = 2 * repeated.indptr
    repeated.has_canonical_format = False
    before = repeated.nnz
    X = {
        "csr_matrix": ROWS,
        "csr_array": scipy.sparse.csr_array(ROWS),
        "csc": ROWS.tocsc(),
        "dense": ROWS.toarray().astype(np.float64),
        "repeated": repeated,
    }[kind]
    found = haste.Classifier(verbose=False).fit(X, LABELS)
    assert found.n_features_in_ == ROWS.shape[1]
    assert found.config_["encoder"]["kind"] == ("features" if kind == "dense" else "bag")
    assert found.score(X, LABELS) > 0.9
    if kind != "dense":
        expected = haste.Classifier(verbose=False).fit(ROWS, LABELS)
        assert np.array_equal(found.decision_function(X), expected.decision_function(ROWS))
        assert np.array_equal(found.decision_function(ROWS.toarray()), expected.decision_function(ROWS))
    else:
        assert np.array_equal(found.decision_function(X), found.decision_function(ROWS))
    assert repeated.nnz == before


def test_texts_may_stand_in_an_array() -> None:
    expected = haste.Classifier(**FAST).fit(TEXTS, LABELS)
    for X in (np.array(TEXTS), np.array(TEXTS, dtype=object), tuple(TEXTS)):
        assert np.array_equal(
            haste.Classifier(**FAST).fit(X, LABELS).decision_function(X), expected.decision_function(X)
        )


def test_what_is_chosen_is_shown_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = haste.Classifier(epochs=2, config={"optim": {"encoder": {"lr": 0.01}}}).fit(TEXTS, LABELS)
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
    shown = capsys.readouterr().err
    assert found.chosen_[0].startswith("preset auto: 80 documents of text of 8 words on average, 4 labels, 1.5 a doc")
    assert all(line in shown.splitlines() for line in found.chosen_)
    keys = [line.split()[0] for line in found.chosen_[2:]]
    assert "data.min_df" in keys
    assert "optim.epochs" not in keys  # given
    assert found.config_["optim"]["epochs"] == 2
    assert found.config_["optim"]["encoder"]["lr"] == 0.01
    found.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "classifier.json").read_text())["chosen"] == found.chosen_
    assert json.loads((tmp_path / "model" / "config.json").read_text())["config"] == found.config_
    haste.Classifier(epochs=2, verbose=False).fit(TEXTS, LABELS)
    assert capsys.readouterr() == ("", "")


def test_a_sparse_tail_with_the_settings_of_the_first_page() -> None:
    found = haste.Classifier(fan_in=8, group_size=2, head_ratio=0.25, **FAST).fit(TEXTS, LABELS)
    tail = found.model_.model.output.tail
    assert tail.indices is not None
    assert (tail.fan_in, tail.group_size, found.model_.model.output.num_head_labels) == (8, 2, 2)
    assert (
        haste.Classifier(fan_in=np.int64(100), epochs=1, verbose=False)
        .fit(TEXTS, LABELS)
        .config_["encoder"]["features"]
        >= 100
    )


def test_no_preset_means_the_defaults() -> None:
    found = haste.Classifier(preset=None, config={"encoder": {"features": 128}}, epochs=1, verbose=False)
    found.fit(TEXTS, LABELS)
    defaults = Config.from_dict({"data": {"path": "."}}).to_dict()
    assert found.chosen_ == []
    assert found.config_["optim"] == {**defaults["optim"], "epochs": 1}
    assert set(found.metrics_) == {"dev"}  # data.dev_fraction


def test_the_seed_decides() -> None:
    same = [haste.Classifier(random_state=seed, **FAST).fit(TEXTS, LABELS) for seed in (None, 0, np.int64(0))]
    for other in same:
        assert np.array_equal(other.decision_function(TEXTS), same[0].decision_function(TEXTS))
    for seed in (1, np.random.RandomState(3)):
        other = haste.Classifier(random_state=seed, **FAST).fit(TEXTS, LABELS)
        assert not np.array_equal(other.decision_function(TEXTS), same[0].decision_function(TEXTS))


# Saving


def same(found: haste.Classifier, expected: haste.Classifier, X: Any) -> None:
    assert found.classes_.tolist() == expected.classes_.tolist()
    assert np.array_equal(found.decision_function(X), expected.decision_function(X))
    for mine, theirs in zip(found.predict_topk(X, 3), expected.predict_topk(X, 3), strict=True):
        assert np.array_equal(mine, theirs)
    mine, theirs = found.predict(X), expected.predict(X)
    assert type(mine) is type(theirs)
    assert abs(mine - theirs).sum() == 0 if scipy.sparse.issparse(mine) else (mine == theirs).all()


@pytest.mark.parametrize("y", ["lists", "indicator", "classes", "numbers"])
@pytest.mark.parametrize("x", ["text", "sparse", "dense"])
def test_a_saved_classifier_is_the_same(tmp_path: Path, x: str, y: str) -> None:
    X = {"text": TEXTS, "sparse": ROWS, "dense": ROWS.toarray()}[x]
    Y = {
        "lists": LABELS,
        "indicator": INDICATOR[:, [3, 0, 1, 2, 2]],
        "classes": FIRST,
        "numbers": [len(f) for f in FIRST],
    }
    labels = Y[y]
    if y == "indicator":
        labels[:, 3] = 0  # a label without a document
    expected = haste.Classifier(fan_in=8, **FAST, batch_size=16).fit(X, labels)
    expected.save_pretrained(tmp_path / "model")
    assert not [
        path
        for path in (tmp_path / "model").iterdir()
        if path.suffix not in (".json", ".jsonl", ".npz", ".md", ".safetensors")
    ]
    found = haste.Classifier.from_pretrained(tmp_path / "model", device="cpu")
    same(found, expected, X)
    assert found.score(X, labels) == expected.score(X, labels)
    assert found.get_params()["fan_in"] == 8
    assert found.chosen_ == expected.chosen_
    found.save_pretrained(tmp_path / "model")  # replaces what it was read from
    same(haste.Classifier.from_pretrained(str(tmp_path / "model")), expected, X)


def test_the_command_line_reads_a_saved_classifier(
    fitted: haste.Classifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted.save_pretrained(tmp_path / "model")
    assert main(["predict", str(tmp_path / "model"), "--text", "guitar and piano", "--top-k", "1"]) == 0
    assert capsys.readouterr().out.split()[1] == "music"


def test_a_run_of_the_command_line_is_a_classifier(tiny_config: Callable[..., Config]) -> None:
    run = train(tiny_config(optim={"epochs": 1}), log=lambda text: None)
    found = haste.Classifier.from_pretrained(run)
    labels, _ = found.predict_topk(["word1 word2"], 3)
    assert set(labels[0]) <= set(found.classes_)
    assert len(found.classes_) == 31  # one of them in test alone
    assert found.get_params()["config"]["encoder"]["features"] == 32
    same(haste.Classifier.from_pretrained(run / "model"), found, ["word1 word2", "word7"])


def test_folders_of_others_are_left_alone(fitted: haste.Classifier, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"must be new, empty, or a model folder; choose another"):
        fitted.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must be new, empty, or a model folder; choose another"):
        fitted.save_pretrained(tmp_path / "thesis.txt")
    fitted.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"must be new, empty, or a model folder; choose another"):
        fitted.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, r"classifier.json: must be of format 1; read it with the haste that wrote it"),
        ({"extra": 2}, r"classifier.json: must be of format 1"),
        ({"params": {"code": "x"}}, r"classifier.json: holds parameters \['code'\]; the file is damaged"),
        ({"targets": {}}, r"labels must be as save_pretrained writes them"),
        ({"targets": {"kind": "lists", "dtype": "|O", "classes": ["a"]}}, r"holds labels of another model"),
        ({"targets": {"kind": "lists", "dtype": "|O", "classes": [{}]}}, r"neither text nor a number"),
        ({"targets": {"kind": "lists", "dtype": "V8", "classes": []}}, r"kind lists, dtype"),
    ],
)
def test_damaged_descriptions_are_refused(
    fitted: haste.Classifier, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    fitted.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "classifier.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        haste.Classifier.from_pretrained(tmp_path / "model")


# Runs that are kept


def test_a_stopped_fit_continues_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**FAST, "config": {"data": {"dev_fraction": 0.2}}}
    whole = haste.Classifier(**settings).fit(TEXTS, LABELS)
    kept = haste.Classifier(**settings, run_dir=str(tmp_path / "run"))
    step = Loop.step

    def stopping(loop: Loop, number: int) -> dict[str, float]:
        if number == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return step(loop, number)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "step", stopping)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 21 of"):
            kept.fit(TEXTS, LABELS)
        with pytest.raises(KeyboardInterrupt, match="fit was stopped; give run_dir to be able to continue"):
            haste.Classifier(**settings).fit(TEXTS, LABELS)
    with pytest.raises(NotFittedError):
        kept.predict(TEXTS)
    same(kept.fit(TEXTS, LABELS), whole, TEXTS)
    assert kept.metrics_ == whole.metrics_
    same(clone(kept).fit(TEXTS, LABELS), whole, TEXTS)  # finished already
    with pytest.raises(ValueError, match=r"must hold the documents that the run in .* was started with"):
        kept.fit(TEXTS[::-1], LABELS[::-1])
    with pytest.raises(ValueError, match=r"holds a run with other settings: optim.epochs \(8, now 9\)"):
        clone(kept).set_params(epochs=9).fit(TEXTS, LABELS)


# scikit-learn's tools


def test_grid_search_over_a_pipeline_of_features() -> None:
    steps = make_pipeline(TfidfVectorizer(dtype=np.float32), TruncatedSVD(16), haste.Classifier(**FAST))
    grid = {"classifier__fan_in": np.array([4, 8]), "classifier__epochs": [1, 8]}
    search = GridSearchCV(steps, grid, cv=2).fit(TEXTS, INDICATOR)
    assert search.best_params_["classifier__epochs"] == 8
    assert search.best_score_ > 0.8
    assert search.predict(TEXTS).shape == (80, 4)


def test_grid_search_over_texts_with_lists_and_scorers() -> None:
    search = GridSearchCV(haste.Classifier(**FAST), {"head_ratio": [0.0, 1.0]}, cv=KFold(2)).fit(TEXTS, LABELS)
    assert search.score(TEXTS, LABELS) > 0.9
    search = GridSearchCV(haste.Classifier(**FAST), {"features": [32]}, scoring="f1_samples", cv=2).fit(
        TEXTS, INDICATOR
    )
    assert search.best_score_ > 0.5
    search = GridSearchCV(haste.Classifier(**FAST), {"features": [32]}, scoring="accuracy", cv=2).fit(TEXTS, FIRST)
    assert search.best_score_ > 0.5


def test_a_clone_has_the_settings_and_no_model(fitted: haste.Classifier) -> None:
    copy = clone(haste.Classifier(fan_in=8, config={"optim": {"encoder": {"lr": 0.01}}}))
    assert copy.get_params()["fan_in"] == 8
    assert copy.config == {"optim": {"encoder": {"lr": 0.01}}}
    with pytest.raises(NotFittedError):
        clone(fitted).predict(["x"])


def test_fit_changes_no_setting() -> None:
    config = {"optim": {"encoder": {"lr": 0.01}}}
    classifier = haste.Classifier(**FAST, config=config)
    before = classifier.get_params()
    classifier.fit(TEXTS, LABELS)
    assert classifier.get_params() == before
    assert config == {"optim": {"encoder": {"lr": 0.01}}}


# Many labels


def test_more_labels_above_a_half_than_are_looked_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    y = np.zeros((60, 50), dtype=int)
    y[:30, :45] = 1
    y[30:, 40:] = 1
    X = np.repeat([[1.0, 0.0], [0.0, 1.0]], 30, axis=0)
    found = haste.Classifier(verbose=False).fit(X, y)
    monkeypatch.setattr(_scoring, "_FIRST_K", 3)
    assert np.array_equal(found.predict(X).toarray(), y)


def test_labels_without_a_document_are_columns_all_the_same() -> None:
    y = np.hstack((np.zeros((80, 1), int), INDICATOR, np.zeros((80, 1), int)))
    found = haste.Classifier(**FAST).fit(TEXTS, y)
    assert found.model_.labels.num_labels == 4
    assert found.predict(TEXTS).shape == (80, 6)
    scores = found.decision_function(TEXTS)
    assert np.isfinite(scores).all()
    assert np.allclose(scores[:, [0, 5]], -np.log(161))
    assert not set(found.predict_topk(TEXTS, 9)[0].ravel()) & {0, 5}


def test_all_scores_of_too_many_are_refused(fitted: haste.Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scoring, "_MOST_SCORES", 11)
    assert fitted.predict_proba(TEXTS[:2]).shape == (2, 4)
    with pytest.raises(
        ValueError, match=r"X \(3 documents\) must give at most 11 scores at a time, with 4 labels; use"
    ):
        fitted.decision_function(TEXTS[:3])


def test_hinge_gives_scores_and_no_probabilities() -> None:
    config = {"output": {"loss": "squared_hinge"}, "optim": {"output": {"lr": 0.01}}}
    classifier = haste.Classifier(**FAST, config=config)
    assert not hasattr(classifier, "predict_proba")
    classifier.fit(TEXTS, LABELS)
    assert not hasattr(classifier, "predict_proba")
    assert classifier.predict_topk(TEXTS, 4)[1].min() < 0


def test_labels_never_seen_count_as_missed(fitted: haste.Classifier) -> None:
    assert fitted.score(["guitar piano"], [["music"]]) == 1
    assert fitted.score(["guitar piano"], [["music", "opera"]]) == pytest.approx(1 / (1 + 1 / np.log2(3)))


# Errors


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        ("one text", ["a"], r"X must be a list of texts; put the one text into a list"),
        (["a b", None, "c"], [["x"]] * 3, r"X\[1\] \(NoneType None\) must be a text; use '' for a missing one"),
        (["aa bb", "cc"], [["x"]], r"X \(2 documents\) and y \(1\) must be of the same length"),
        (["aa bb", "cc"], [[], []], r"y must give a label to a document; all 2 have none"),
        (["aa bb", "cc"], np.zeros((2, 3)), r"y must give a label to a document; all 2 have none"),
        (["aa bb", "cc"], [["x"], [3]], r"y must hold labels of one type, text or whole numbers; convert them first"),
        (["aa bb", "cc"], [[0.5], ["x"]], r"y must hold labels of one type"),
        (
            ["aa bb", "cc"],
            np.array([[1, 2], [3, 4]]),
            r"Unknown label type: y \(multiclass-multioutput\) must hold lists",
        ),
        (["aa bb", "cc"], [0.5, 1.5], r"Unknown label type: continuous"),
        (["aa bb", "cc"], None, r"requires y to be passed, but the target y is None"),
        (["!", "?"], [["x"], ["y"]], r"must leave at least one term"),
        ([1.0, 2.0], [["x"], ["y"]], r"Expected 2D array, got 1D array"),
        ([[1.0], [np.nan]], [["x"], ["y"]], r"Input X contains NaN"),
    ],
)
def test_documents_and_labels_that_cannot_be_used(X: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        haste.Classifier(**FAST).fit(X, y)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"preset": "best"}, ValueError, r"preset \('best'\) must be auto or None"),
        ({"epochs": 0}, ValueError, r"optim.epochs \(0\) must be at least 1"),
        ({"epochs": "many"}, TypeError, r"optim.epochs \(str 'many'\) must be of type int"),
        ({"config": {"optim": {"epohs": 1}}}, ValueError, r"unknown key optim.epohs; .* optim.epochs"),
        (
            {"config": {"output": {"fan_in": 3}}, "fan_in": 4},
            ValueError,
            r"output.fan_in \(4, and 3 in config\) must be",
        ),
        ({"config": [1]}, TypeError, r"the configuration \(list\) must be a mapping"),
        ({"config": {"optim": 3}}, TypeError, r"optim \(int\) must be a mapping"),
        ({"fan_in": 64, "features": 32}, ValueError, r"output.fan_in \(64\) must not exceed encoder.features \(32\)"),
        ({"device": "tpu"}, ValueError, r"run.device \(tpu\) must be auto, cpu, cuda or cuda:N"),
        ({"random_state": "x"}, ValueError, r"cannot be used to seed"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        haste.Classifier(**{"verbose": False, **settings}).fit(TEXTS, LABELS)


def test_other_documents_than_in_fit(fitted: haste.Classifier) -> None:
    with pytest.raises(ValueError, match="X must be a list of texts, as in fit"):
        fitted.predict_topk(ROWS)
    with pytest.raises(ValueError, match=r"k \(0\) must be at least 1"):
        fitted.predict_topk(TEXTS, 0)
    with pytest.raises(ValueError, match="y must be lists of labels, as in fit; found a matrix of zeros and ones"):
        fitted.score(TEXTS, INDICATOR)
    other = haste.Classifier(**FAST).fit(ROWS, INDICATOR)
    with pytest.raises(ValueError, match="X must be a matrix of features, as in fit; found texts"):
        other.predict_topk(TEXTS)
    with pytest.raises(ValueError, match=r"X has 3 features, but Classifier is expecting 20 features"):
        other.predict(ROWS[:, :3])
    with pytest.raises(ValueError, match=r"y \(3 columns\) must have 4 columns, as in fit"):
        other.score(ROWS, INDICATOR[:, :3])


def test_a_column_of_classes_is_taken_with_a_warning() -> None:
    with pytest.warns(DataConversionWarning, match="column-vector y was passed"):
        found = haste.Classifier(**FAST).fit(TEXTS, np.array(FIRST)[:, None])
    assert found.predict(TEXTS).shape == (80,)


def test_no_documents_are_no_predictions(fitted: haste.Classifier) -> None:
    assert fitted.predict([]).shape == (0, 4)
    assert fitted.predict_topk([], 2)[0].shape == (0, 2)


def test_haste_names_it_and_only_then_imports_scikit_learn() -> None:
    code = "import sys, haste; assert 'sklearn' not in sys.modules; haste.Classifier; assert 'sklearn' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "Classifier" in dir(haste)
    with pytest.raises(AttributeError, match="module 'haste' has no attribute 'Clasifier'"):
        haste.Clasifier  # noqa: B018
