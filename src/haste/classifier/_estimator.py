"""`Classifier`: texts or features in, labels out, with the manners of a scikit-learn estimator."""

import copy
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, issparse
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from haste import metrics
from haste.classifier._inputs import Inputs, as_features, as_texts, facts_of, make_dataset
from haste.classifier._scoring import above_zero, all_scores, topk
from haste.classifier._targets import Targets, learn
from haste.config import Config, Run, check_keys
from haste.data.tokens import FILE as TOKENIZER
from haste.train import preset as auto
from haste.train.evaluate import K, find_model
from haste.train.model_folder import ARCHITECTURE, TrainedModel, load_model, read_extra, save_model
from haste.train.progress import print_line
from haste.train.signals import Interrupted
from haste.train.trainer import train

EXTRA = "classifier.json"
_FORMAT = 1
_PATH = "in-memory"  # data.path of documents given to fit
_SETTINGS = {
    "features": "encoder.features",
    "fan_in": "output.fan_in",
    "group_size": "output.group_size",
    "head_ratio": "output.head_ratio",
    "epochs": "optim.epochs",
    "batch_size": "optim.batch_size",
    "device": "run.device",
    "run_dir": "run.dir",
}


def _gives_probabilities(classifier: "Classifier") -> bool:
    if hasattr(classifier, "model_"):
        return classifier.model_.config.output.loss == "bce"
    return dict((classifier.config or {}).get("output", {})).get("loss", "bce") == "bce"


class Classifier(ClassifierMixin, BaseEstimator):
    """A text or feature classifier for any number of labels, with HASTE's sparse output layer.

        classifier = haste.Classifier().fit(texts, labels)
        labels, probabilities = classifier.predict_topk(["..."], k=5)

    Settings that are not given are chosen from the data and shown with their reasons; `config_` holds all of them.

    Args:
        features: width of the encoder, `encoder.features`.
        fan_in: features that each tail label reads, `output.fan_in`.
        group_size: tail labels that share them, `output.group_size`.
        head_ratio: part of the labels that reads every feature, `output.head_ratio`.
        epochs: passes over the documents, `optim.epochs`.
        batch_size: documents a step, `optim.batch_size`.
        preset: auto = what is not given follows from the data; None = the defaults of the configuration.
        config: any other setting, as nested dictionaries: {"data": {"ngrams": 1}, "optim": {"output": {"lr": 0.1}}}.
        device: auto, cpu, cuda or cuda:N.
        random_state: of everything random; None is 0: a second fit gives the same model.
        run_dir: keep the run here, and continue it if it was stopped; None = nothing is left behind.
        verbose: show what was chosen and how training goes, on standard error.

    Attributes:
        classes_: (L,) labels: sorted; for an indicator y its column numbers, or the names of a DataFrame's columns.
        n_features_in_: columns of X, where X was not texts.
        model_: the trained model (`haste.train.model_folder.TrainedModel`).
        config_: all settings in force.
        chosen_: the lines that say what was chosen and why.
        metrics_: split -> metric -> percent, where documents were set aside (`data.dev_fraction`).
    """

    def __init__(
        self,
        fan_in: int | None = None,
        group_size: int | None = None,
        head_ratio: float | None = None,
        *,
        features: int | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        preset: str | None = "auto",
        config: dict[str, Any] | None = None,
        device: str = "auto",
        random_state: Any = None,
        run_dir: str | None = None,
        verbose: bool = True,
    ) -> None:
        self.fan_in = fan_in
        self.group_size = group_size
        self.head_ratio = head_ratio
        self.features = features
        self.epochs = epochs
        self.batch_size = batch_size
        self.preset = preset
        self.config = config
        self.device = device
        self.random_state = random_state
        self.run_dir = run_dir
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> "Classifier":
        """Train on documents and their labels.

        Args:
            X: N texts; or (N, D) features, dense or sparse.
            y: for every document a list of labels (text or whole numbers), or (N, L) zeros and ones, dense or sparse,
                or one class each, (N,).

        Raises:
            ValueError, TypeError: X, y or a setting that cannot be used; run_dir holds another run.
        """
        inputs = self._read(X, fit=True)
        targets, truth = learn(y)
        num = len(inputs) if isinstance(inputs, list) else inputs.shape[0]
        if num != truth.shape[0]:
            raise ValueError(f"X ({num} documents) and y ({truth.shape[0]}) must be of the same length")
        if not truth.nnz:
            raise ValueError(f"y must give a label to a document; all {num:,} have none")
        say = print_line if self.verbose else _quiet
        config, chosen = self._settings(inputs, truth)
        for line in chosen:
            say(line)
        dataset = make_dataset(config, inputs, truth, targets.names)
        with tempfile.TemporaryDirectory(prefix="haste-fit-") as folder:
            if self.run_dir is None:
                config = replace(config, run=replace(config.run, dir=str(Path(folder) / "run")))
            try:
                run = train(config, dataset=dataset, resume=True, log=None if self.verbose else _quiet)
            except Interrupted as error:
                if self.run_dir is not None:
                    raise
                raise KeyboardInterrupt("fit was stopped; give run_dir to be able to continue") from error
            trained = load_model(run / "model", device=self.device)
            measured = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        if self.run_dir is None:
            trained = replace(trained, config=replace(trained.config, run=replace(config.run, dir=Run.dir)))
        values = {split: values for split, values in measured.items() if split in ("dev", "test")}
        return self._take(trained, targets, chosen, values)

    def predict_topk(self, X: Any, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """The k best labels of every document, best first.

        Args:
            X: N documents, as in fit.
            k: labels a document; fewer where there are not that many.

        Returns:
            labels (N, k) of the type of `classes_`, and their probabilities (N, k) float32 (scores where the loss is
            squared_hinge).
        """
        inputs = self._read(X)
        scores, ids = topk(self.model_, inputs, k)
        values = expit(scores) if _gives_probabilities(self) else scores
        return self.classes_[self._class_of_label[ids]], values

    def predict(self, X: Any) -> Any:
        """Labels of every document.

        Returns:
            One class a document (N,) where y was that; else (N, L) CSR of ones, the labels whose probability is above
            0.5 (whose score is above 0).
        """
        inputs = self._read(X)
        if self.targets_.kind == "classes":
            return self.classes_[self._class_of_label[topk(self.model_, inputs, 1)[1][:, 0]]]
        rows, ids = above_zero(self.model_, inputs)
        shape = len(inputs) if isinstance(inputs, list) else inputs.shape[0], len(self.classes_)
        matrix = csr_matrix((np.ones(len(rows), np.int64), (rows, self._class_of_label[ids])), shape=shape)
        matrix.sort_indices()
        return matrix

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores of all labels, (N, L) float64; of two classes one column, (N,): for the second class if above 0.

        Raises:
            ValueError: N L is beyond 2^28; `predict_topk` has no such limit.
        """
        scores = self._scores(X)
        if self.targets_.kind == "classes" and len(self.classes_) == 2:
            return scores[:, 1] - scores[:, 0]
        return scores

    @available_if(_gives_probabilities)
    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of all labels, (N, L) float64, each label's own; of one class a document they sum to 1.

        Raises:
            ValueError: N L is beyond 2^28; `predict_topk` has no such limit.
        """
        scores = self._scores(X)
        if self.targets_.kind != "classes":
            return expit(scores)
        logs = -np.logaddexp(0, -scores)
        odds = np.exp(logs - logs.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def score(self, X: Any, y: Any) -> float:
        """Accuracy for one class a document; else nDCG@5, a fraction: labels not seen in fit count as missed."""
        inputs = self._read(X)
        if self.targets_.kind == "classes":
            return float(accuracy_score(y, self.predict(X)))
        truth = self.targets_.truth(y, self.model_.labels.names)
        _, ids = topk(self.model_, inputs, K)
        ids = np.pad(ids, ((0, 0), (0, K - ids.shape[1])), constant_values=-1)
        return float(metrics.evaluate(ids, truth, k=K)["ndcg"][-1])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder: JSON, npz and safetensors, no pickle; `haste predict FOLDER` reads it too.

        Raises:
            ValueError: the folder holds something else than a model.
        """
        check_is_fitted(self)
        folder = Path(folder)
        if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or _is_model(folder))):
            raise ValueError(f"{folder} must be new, empty, or a model folder; choose another")
        params = {name: value for name, value in self.get_params(deep=False).items() if name not in _NOT_SAVED}
        params["random_state"] = self.model_.config.run.seed
        extra = {
            "format": _FORMAT,
            "targets": self.targets_.to_json(),
            "chosen": self.chosen_,
            "params": _plain(params),
        }
        save_model(folder, self.model_, self.metrics_, extra={EXTRA: extra})

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, device: str = "auto") -> "Classifier":
        """Read what `save_pretrained` or `haste train` wrote; nothing in it is executed.

        Args:
            folder: model folder, or run folder.
            device: auto, cpu, cuda or cuda:N.

        Raises:
            ValueError: a file is missing, damaged or of another version.
        """
        folder = find_model(Path(folder))
        trained = load_model(folder, device=device)
        extra = read_extra(folder / EXTRA)
        if extra is None:
            targets = Targets("lists", np.array(sorted(trained.labels.names), dtype=object))
            extra = {"chosen": [], "params": {"config": trained.config.to_dict(), "preset": None}}
        else:
            if extra.keys() != {"format", "targets", "chosen", "params"} or extra["format"] != _FORMAT:
                raise ValueError(f"{folder / EXTRA}: must be of format {_FORMAT}; read it with the haste that wrote it")
            targets = Targets.from_json(extra["targets"])
            unknown = set(extra["params"]) - set(cls._get_param_names())
            if unknown or sorted(targets.names) != sorted(trained.labels.names):
                found = f"parameters {sorted(unknown)}" if unknown else "labels of another model"
                raise ValueError(f"{folder / EXTRA}: holds {found}; the file is damaged, get it again")
        classifier = cls(**{**extra["params"], "device": device})
        if trained.inputs != "text":
            classifier.n_features_in_ = trained.num_inputs
        return classifier._take(trained, targets, extra["chosen"], {})

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.sparse = True
        tags.classifier_tags.multi_label = True
        return tags

    def _scores(self, X: Any) -> np.ndarray:
        inputs = self._read(X)
        return all_scores(self.model_, inputs)[:, self._label_of_class]

    def _take(
        self, trained: TrainedModel, targets: Targets, chosen: list[str], measured: Mapping[str, Any]
    ) -> "Classifier":
        self.model_, self.targets_, self.chosen_, self.metrics_ = trained, targets, chosen, dict(measured)
        self.config_, self.classes_ = trained.config.to_dict(), targets.classes
        place = {name: number for number, name in enumerate(targets.names)}
        self._class_of_label = np.array([place[name] for name in trained.labels.names])
        self._label_of_class = np.argsort(self._class_of_label)
        return self

    def _settings(self, inputs: Inputs, truth: csr_matrix) -> tuple[Config, list[str]]:
        """All settings, and the lines about those that were chosen."""
        if self.preset not in ("auto", None):
            raise ValueError(f"preset ({self.preset!r}) must be auto or None")
        values: dict[str, Any] = copy.deepcopy(self.config) if self.config is not None else {}
        check_keys(values)
        seed = self.random_state
        if seed is None:
            seed = values.get("run", {}).get("seed", 0)
        elif not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31)
        given = {key: getattr(self, name) for name, key in _SETTINGS.items()}
        for key, value in {**given, "run.seed": seed, "data.path": _PATH}.items():
            if value is None or (key == "run.device" and value == "auto"):
                continue
            *sections, leaf = key.split(".")
            place = values
            for section in sections:
                place = place.setdefault(section, {})
            value = value.item() if isinstance(value, np.generic) else value
            if place.setdefault(leaf, value) != value:
                raise ValueError(f"{key} ({value}, and {place[leaf]} in config) must be given once")
        chosen: list[str] = []
        if self.preset == "auto":
            values, chosen = auto.fill(values, facts_of(inputs, truth, Run(**values["run"]).device))
        return Config.from_dict(values), chosen

    def _read(self, X: Any, *, fit: bool = False) -> Inputs:
        """X as texts, or as float32 rows of the kind that the model reads."""
        if not fit:
            check_is_fitted(self)
        texts = as_texts(X)
        wanted = None if fit else self.model_.inputs
        if texts is not None:
            if wanted not in (None, "text"):
                raise ValueError("X must be a matrix of features, as in fit; found texts")
            for name in ("n_features_in_", "feature_names_in_"):
                if hasattr(self, name):  # of an earlier fit
                    delattr(self, name)
            return texts
        if wanted == "text":
            if not issparse(X) and len(X) == 0:
                return []
            raise ValueError("X must be a list of texts, as in fit")
        rows = validate_data(self, X, reset=fit, accept_sparse="csr", dtype=np.float32)
        if wanted is not None and (wanted == "sparse") != issparse(rows):
            rows = csr_matrix(rows) if wanted == "sparse" else rows.toarray()
        return as_features(rows)


def _is_model(folder: Path) -> bool:
    """Whether everything in a folder belongs to a model that can be replaced."""
    known = {EXTRA, "config.json", "labels.jsonl", "README.md", "vectorizer.json", "vectorizer.npz"}
    known |= {"encoder.safetensors", "output.safetensors", TOKENIZER, ARCHITECTURE}
    names = {path.name for path in folder.iterdir()}
    return "config.json" in names and names <= known


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in params.items()}


def _quiet(text: str) -> None:
    pass


_NOT_SAVED = ("device", "run_dir", "random_state")
