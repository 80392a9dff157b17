import copy
import itertools
from typing import Any

import pytest
import torch

from haste.integrations import Collator, Rewiring, csr_positives
from haste.rewire import Schedule
from integration_cases import TinyModel, documents, optimizers, pad, same


def test_positives_are_csr() -> None:
    offsets, labels = csr_positives([[3, 1], [], [7]])
    assert offsets.tolist() == [0, 2, 2, 3]
    assert labels.tolist() == [3, 1, 7]
    assert offsets.dtype == labels.dtype == torch.int64
    offsets, labels = csr_positives([[]])
    assert offsets.tolist() == [0, 0]
    assert labels.shape == (0,)


def test_a_batch_is_that_of_the_other_collator_and_positives() -> None:
    examples = documents(5)
    batch = Collator(pad)(examples)
    expected = pad([{"input_ids": example["input_ids"]} for example in examples])
    assert batch.keys() == {*expected, "positives"}
    assert all(torch.equal(batch[key], value) for key, value in expected.items())
    offsets, labels = batch["positives"]
    rows = [labels[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    assert rows == [example["labels"] for example in examples]


def test_labels_that_were_dropped_are_missed() -> None:
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        Collator(pad)([{"input_ids": [1]}])


def trained(model: TinyModel) -> tuple[Any, torch.Tensor, Any]:
    chain, update = optimizers(model)
    batch = Collator(pad)(documents(8))
    positives = batch.pop("positives")
    features = model(**batch)
    model.output.step(features, positives, update).backward()
    chain.step()
    chain.zero_grad()
    return chain, features.detach(), positives


@pytest.mark.parametrize("regrow", ["random", "gradient"])
def test_rewiring_is_that_of_the_layer(regrow: str) -> None:
    model = TinyModel()
    chain, features, positives = trained(model)
    other, other_chain = copy.deepcopy((model, chain))
    rewiring = Rewiring(2, 0.5, end=1.0, regrow=regrow, seed=3)
    for step in range(5):
        rewiring.batch = features, positives
        rewiring.after_step(model.output, chain, step, 10)
        assert rewiring.batch is None
    schedule = Schedule(interval=2, fraction=0.5, end=1.0, total_steps=10)
    for step in (2, 4):
        other.output.rewire(
            schedule.fraction_at(step),
            other_chain,
            step=step,
            regrow=regrow,
            batch=(features, positives),
            seed=3,
        )
    assert same(model, other)
    assert [found["step"] for found in rewiring.history] == [2, 4]
    assert rewiring.history[0]["fraction"] > 0
    momentum = [c.state[m.output.tail.weight]["momentum_buffer"] for m, c in ((model, chain), (other, other_chain))]
    assert torch.equal(*momentum)


def test_dropout_of_the_layer_is_off_while_it_is_rewired() -> None:
    results = []
    for dropout in (0.0, 0.5):
        model = TinyModel()
        chain, features, positives = trained(model)
        model.output.dropout = dropout
        rewiring = Rewiring(1, 0.5)
        rewiring.batch = features, positives
        rewiring.after_step(model.output, chain, 1, 10)
        assert model.output.training
        results.append(model)
    assert same(*results)


def test_gradient_needs_features_only_when_due() -> None:
    model = TinyModel()
    chain, _, _ = trained(model)
    rewiring = Rewiring(2)
    rewiring.after_step(model.output, chain, 1, 10)
    with pytest.raises(ValueError, match="regrow='random'"):
        rewiring.after_step(model.output, chain, 2, 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 0}, r"interval \(0\)"),
        ({"end": 2.0}, r"end \(2.0\)"),
        ({"schedule": "linear"}, r"schedule \(linear\)"),
        ({"fraction": 1.5}, r"fraction \(1.5\)"),
        ({"regrow": "best"}, r"regrow \(best\)"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rewiring(**settings)
