from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor

from haste import optim
from haste.config import Config
from haste.nn import Model, build_model, initialize_output

NUM_INPUTS, NUM_LABELS, NUM_POINTS = 40, 30, 60


def _config(encoder: dict[str, Any] | None = None, **output: Any) -> Config:
    settings = {"fan_in": 6, "group_size": 4, "head_ratio": 0.25} | output
    return Config.from_dict(
        {"data": {"path": "."}, "encoder": {"features": 16} | (encoder or {}), "output": settings, "run": {"seed": 3}}
    )


def _data() -> tuple[scipy.sparse.csr_matrix, scipy.sparse.csr_matrix, np.ndarray]:
    """Return documents, truth with columns for labels that the layer has not, and training frequencies."""
    rng = np.random.default_rng(0)
    features = scipy.sparse.random(NUM_POINTS, NUM_INPUTS, 0.2, format="csr", dtype=np.float32, random_state=rng)
    truth = scipy.sparse.random(NUM_POINTS, NUM_LABELS + 2, 0.1, format="csr", dtype=np.float32, random_state=rng)
    truth.data[:] = 1
    return features, truth, np.asarray(truth[:, :NUM_LABELS].sum(axis=0)).ravel().astype(np.int64)


def _batch(features: scipy.sparse.csr_matrix) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.from_numpy(features.indptr).long(),
        torch.from_numpy(features.indices).long(),
        torch.from_numpy(features.data),
    )


def _ready(**output: Any) -> tuple[Model, np.ndarray]:
    config, (features, truth, counts) = _config(**output), _data()
    model = build_model(config, num_inputs=NUM_INPUTS, num_labels=NUM_LABELS)
    initialize_output(model, config, features=features, truth=truth, counts=counts)
    return model, counts


@pytest.mark.parametrize("grouping", ["semantic", "frequency", "random"])
def test_the_head_is_the_most_frequent_labels(grouping: str) -> None:
    model, counts = _ready(grouping=grouping)
    order = model.output.label_order.numpy()
    assert sorted(order.tolist()) == list(range(NUM_LABELS))
    assert model.output.num_head_labels == 8
    assert order[:8].tolist() == np.argsort(-counts, kind="stable")[:8].tolist()
    tail = order[8:].tolist()
    by_frequency = np.argsort(-counts, kind="stable")[8:].tolist()
    assert (tail == by_frequency) == (grouping == "frequency")


@pytest.mark.parametrize("output", [{"fan_in": 16}, {"head_ratio": 1.0}])
def test_labels_that_share_no_inputs_are_not_clustered(output: dict) -> None:
    model, counts = _ready(grouping="semantic", **output)
    assert model.output.label_order.tolist() == np.argsort(-counts, kind="stable").tolist()


@pytest.mark.parametrize("bias_init", ["prior", "zero"])
def test_scores_of_an_untrained_model(bias_init: str) -> None:
    model, counts = _ready(bias_init=bias_init)
    odds = np.log((counts + 0.5) / (NUM_POINTS - counts + 0.5)) if bias_init == "prior" else np.zeros(NUM_LABELS)
    logits = model.output(torch.zeros(1, 16))[0].detach().numpy()
    np.testing.assert_allclose(logits, odds, rtol=1e-5)


def test_the_seed_decides_everything() -> None:
    first, _ = _ready(private_features="projection")
    torch.manual_seed(77)
    second, _ = _ready(private_features="projection")
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_parameters_are_split_between_two_optimizers() -> None:
    model, _ = _ready(private_features="projection")
    parts = [*model.encoder_parameters(), *model.output.layer_parameters()]
    assert {id(p) for p in parts} == {id(p) for p in model.parameters()}
    assert len(parts) == len(list(model.parameters()))


@pytest.mark.parametrize("private_features", ["none", "slice", "projection"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_learns_by_either_way(dtype: str, private_features: str) -> None:
    features, truth, _ = _data()
    truth = truth[:, :NUM_LABELS].tocsr()
    batch, positives = _batch(features), _batch(truth)[:2]
    losses = {}
    for fused in (True, False):
        model, _ = _ready(dtype=dtype, private_features=private_features, fan_in=5)
        model.eval()
        update = optim.SGD(model.output.layer_parameters(), lr=0.02)
        encoder = optim.AdamW(model.encoder_parameters(), lr=0.05)
        losses[fused] = []
        for _ in range(30):
            loss = model.step(batch, positives, update) if fused else model.loss(batch, positives)
            loss.backward()
            encoder.step()
            if not fused:
                update.step()
            model.zero_grad()
            losses[fused].append(loss.item())
    assert losses[True][-1] < 0.7 * losses[True][0]
    # Later on, a difference in one rounded weight has grown.
    assert losses[True][:8] == pytest.approx(losses[False][:8], rel=1e-4 if dtype == "float32" else 0.02)
    scores, labels = model.topk(batch, 3)
    assert not scores.requires_grad
    assert np.take_along_axis(truth.toarray(), labels.numpy(), axis=1).mean() > 0.4


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("encoder", [{"features": 0}, {"features": 12}, {"features": 12, "hidden": 16}])
def test_the_model_learns_from_given_features(encoder: dict[str, Any], dense: bool) -> None:
    config = _config({"kind": "features", **encoder}, fan_in=5)
    features, truth, counts = _data()
    rows = features.toarray() if dense else features
    batch = torch.from_numpy(rows) if dense else _batch(features)
    model = build_model(config, num_inputs=NUM_INPUTS, num_labels=NUM_LABELS, dense_inputs=dense)
    assert model.output.in_features == (encoder["features"] or NUM_INPUTS)
    initialize_output(model, config, features=rows, truth=truth, counts=counts)
    positives = _batch(truth[:, :NUM_LABELS].tocsr())[:2]
    model.eval()
    update = optim.SGD(model.output.layer_parameters(), lr=0.05)
    parameters = model.encoder_parameters()
    other = optim.AdamW(parameters, lr=0.01) if parameters else None
    losses = []
    for _ in range(80):
        loss = model.step(batch, positives, update)
        losses.append(loss.item())
        if other is not None:
            loss.backward()
            other.step()
            other.zero_grad()
    assert losses[-1] < 0.8 * losses[0]
    assert model.topk(batch, 3)[1].shape == (NUM_POINTS, 3)


def test_dense_and_sparse_rows_give_the_same_model() -> None:
    config, (features, truth, counts) = _config({"kind": "features", "features": 0}), _data()
    orders = []
    for rows in (features, features.toarray()):
        model = build_model(config, num_inputs=NUM_INPUTS, num_labels=NUM_LABELS, dense_inputs=rows is not features)
        initialize_output(model, config, features=rows, truth=truth, counts=counts)
        orders.append(model.output.label_order.tolist())
    assert orders[0] == orders[1]
    assert sorted(orders[0][8:]) != orders[0][8:]  # in groups, not by number


@pytest.mark.parametrize(
    ("encoder", "num_inputs", "dense", "message"),
    [
        ({}, 40, True, r"encoder.kind \(bag\) must be features for dense features; set encoder.kind: features"),
        ({"kind": "features"}, 65_537, False, r"num_inputs \(65,537\) must not exceed 65,536 .* use encoder.kind: bag"),
        (
            {"kind": "features", "features": 0},
            5,
            True,
            r"output.fan_in \(6\) must not exceed the 5 features that labels read; lower output.fan_in, or set enco",
        ),
    ],
)
def test_encoders_that_cannot_read_the_documents(
    encoder: dict[str, Any], num_inputs: int, dense: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(_config(encoder), num_inputs=num_inputs, num_labels=NUM_LABELS, dense_inputs=dense)
