import numpy as np
import pytest
import scipy.sparse
import torch

from haste.config import Config
from haste.nn import build_model, initialize_output
from haste.nn import inputs as module
from haste.nn.inputs import telling_inputs


def _data(documents: int = 60, width: int = 30, labels: int = 10) -> tuple[np.ndarray, scipy.sparse.csr_matrix]:
    generator = np.random.default_rng(0)
    features = generator.random((documents, width)).astype(np.float32) * (generator.random((documents, width)) < 0.3)
    truth = (generator.random((documents, labels)) < 0.2).astype(np.float32)
    truth[:, -1] = 0  # a label without a document
    return features, scipy.sparse.csr_matrix(truth)


def _expected(features: np.ndarray, truth: np.ndarray, labels: np.ndarray, fan_in: int, size: int) -> list[set[int]]:
    found = []
    for start in range(0, len(labels), size):
        score = np.zeros(features.shape[1])
        for label in labels[start : start + size]:
            n = truth[:, label].sum()
            if n:
                score += n / (n + 3) * (features[truth[:, label] > 0].mean(axis=0) - features.mean(axis=0))
        found.append(set(np.argsort(-np.abs(score), kind="stable")[:fan_in].tolist()))
    return found


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_inputs_of_largest_score(sparse: bool, normalize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ELEMENTS", 60)  # runs of two groups
    features, truth = _data()
    labels = np.array([3, 1, 0, 2, 8, 7, 6, 5, 4])  # the last group is short
    x = features / np.linalg.norm(features, axis=1, keepdims=True) if normalize else features
    given = scipy.sparse.csr_matrix(features) if sparse else features
    found = telling_inputs(given, truth, labels, fan_in=5, group_size=2, normalize=normalize)
    assert [set(row) for row in found.tolist()] == _expected(x, truth.toarray(), labels, 5, 2)
    assert (np.diff(found, axis=1) > 0).all()


def test_a_group_without_documents_reads_some_inputs() -> None:
    features, truth = _data()
    found = telling_inputs(features, truth, np.array([9]), fan_in=30, group_size=2, normalize=False)
    assert found.tolist() == [list(range(30))]


def test_the_tail_of_a_model_starts_with_them() -> None:
    features, truth = _data()
    settings = {
        "data": {"path": "x"},
        "encoder": {"kind": "features", "features": 0},
        "output": {"fan_in": 6, "group_size": 2, "head_ratio": 0.2, "inputs": "positives", "grouping": "frequency"},
    }
    config = Config.from_dict(settings)
    model = build_model(config, num_inputs=30, num_labels=10, dense_inputs=True)
    counts = np.asarray(truth.sum(axis=0)).ravel().astype(np.int64)
    initialize_output(model, config, features=features, truth=truth, counts=counts)
    labels = model.output.label_order[2:].numpy()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert model.output.tail is not None
    assert model.output.tail.indices is not None
    assert [set(row) for row in model.output.tail.indices.tolist()] == _expected(unit, truth.toarray(), labels, 6, 2)
    assert model.output.tail.indices.dtype == torch.int16


def test_only_where_the_documents_own_features_are_read() -> None:
    with pytest.raises(ValueError, match=r"output.inputs \(positives\) must be random unless the output layer reads"):
        Config.from_dict({"data": {"path": "x"}, "output": {"inputs": "positives"}})
    straight = {"data": {"path": "x"}, "encoder": {"kind": "features", "features": 0}}
    for change in ({"private_features": "slice"}, {"block": 16}, {"duplicates": True}):
        with pytest.raises(ValueError, match=r"output.inputs \(positives\) must be random with"):
            Config.from_dict({**straight, "output": {"inputs": "positives", "fan_in": 16, **change}})
