from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from haste import optim, topology
from haste.nn import HeadTail
from haste.nn.regroup import regroup
from layer_cases import operands

LABELS, WIDTH, HEAD, SIZE, FAN_IN = 101, 36, 16, 8, 11


def _made(name: str = "sgd", **settings: Any) -> tuple[HeadTail, torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(LABELS, generator=generator)
    output = HeadTail(
        WIDTH, LABELS, num_head_labels=HEAD, fan_in=FAN_IN, group_size=SIZE, label_order=order, **settings
    )
    parameters = output.layer_parameters()
    update = {
        "sgd": lambda: optim.SGD(parameters, lr=0.1, momentum=0.9),
        "adamw": lambda: optim.AdamW(parameters, lr=0.01),
        "torch": lambda: torch.optim.AdamW(parameters, lr=0.01),
    }[name]()
    batch = operands(seed=1)
    output.loss(batch.features[:, :WIDTH], batch.positives).backward()
    update.step()
    update.zero_grad()
    return output, update


def _new_order(output: HeadTail, seed: int = 5) -> Tensor:
    tail = output.label_order[HEAD:]
    shuffled = tail[torch.randperm(len(tail), generator=torch.Generator().manual_seed(seed))]
    return torch.cat((output.label_order[:HEAD], shuffled))


def _links(output: HeadTail, tensor: Tensor) -> dict[int, dict[int, float]]:
    """Label -> input -> number, of a tensor of the tail weight's shape."""
    assert output.tail is not None
    assert output.tail.indices is not None
    rows = tensor.detach().float().view(-1, FAN_IN)
    return {
        int(label): dict(zip(output.tail.indices[row // SIZE].tolist(), rows[row].tolist(), strict=True))
        for row, label in enumerate(output.label_order[HEAD:])
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["sgd", "adamw", "torch"])
def test_a_label_keeps_what_its_new_group_reads(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("haste.nn.regroup._ELEMENTS", 1000)
    output, update = _made(name, dtype=dtype)
    tail = output.tail
    assert tail is not None
    tensors = {"weight": tail.weight} | {
        key: value for key, value in update.state[tail.weight].items() if value.shape == tail.weight.shape
    }
    assert len(tensors) == (2 if name == "sgd" else 3)
    rates = update.state[tail.weight]["rates"] = torch.rand(tail.bias.shape)  # a number of every row moves, too
    rate_of = dict(zip(output.label_order[HEAD:].tolist(), rates.flatten().tolist(), strict=False))
    before = {key: _links(output, tensor) for key, tensor in tensors.items()}
    biases = {key: x.clone().flatten() for key, x in [("bias", tail.bias), *update.state[tail.bias].items()] if x.dim()}
    old_rows, order = output.row_of_label.clone(), _new_order(output)
    statistics = regroup(output, order, update)
    assert torch.equal(output.label_order, order)
    topology.check_indices(tail.indices, WIDTH)
    assert rates.flatten().tolist()[: tail.num_labels] == [rate_of[label] for label in order[HEAD:].tolist()]
    kept = total = 0.0
    for key, tensor in tensors.items():
        for label, links in _links(output, tensor).items():
            old = before[key][label]
            survivors = [old[place] for place in links if place in old]
            new = sum(survivors) / max(1, len(survivors)) if key == "exp_avg_sq" else 0.0
            for place, value in links.items():
                if place in old:
                    assert value == old[place]
                else:
                    assert value == pytest.approx(new, rel=1e-2 if dtype == torch.bfloat16 else 1e-5)
            if key == "weight":
                kept += sum(map(abs, survivors))
                total += sum(map(abs, old.values()))
        assert not tensor.view(-1, FAN_IN)[tail.num_labels :].any()
    assert 0.2 < statistics["kept"] < 0.9
    assert statistics["kept"] == pytest.approx(kept / total, rel=1e-2 if dtype == torch.bfloat16 else 1e-5)
    for key, tensor in [("bias", tail.bias), *update.state[tail.bias].items()]:
        if tensor.dim():
            moved = tensor.flatten()[: tail.num_labels]
            assert torch.equal(moved, biases[key][old_rows[order[HEAD:]] - HEAD])


def test_a_group_reads_the_inputs_of_the_largest_weights() -> None:
    output, update = _made()
    tail = output.tail
    assert tail is not None
    assert tail.indices is not None
    score = np.zeros((tail.num_groups, WIDTH))
    links, order = _links(output, tail.weight), _new_order(output)
    for row, label in enumerate(order[HEAD:].tolist()):
        for place, value in links[label].items():
            score[row // SIZE, place] += abs(value)
    regroup(output, order, update)
    for group, inputs in enumerate(tail.indices.tolist()):
        assert inputs == sorted(np.argsort(-score[group], kind="stable")[:FAN_IN].tolist())


def test_the_same_order_changes_nothing_and_back_again_is_lossless_where_groups_only_swap() -> None:
    output, update = _made("adamw")
    update.state[output.tail.weight]["exp_avg_sq"].add_(0.1)  # type: ignore[union-attr]
    before = {name: x.clone() for name, x in output.state_dict().items()}
    order = output.label_order.clone()
    assert regroup(output, order, update)["kept"] == 1.0
    assert all(torch.equal(x, before[name]) for name, x in output.state_dict().items())
    swapped = torch.cat(
        (order[:HEAD], order[HEAD + SIZE : HEAD + 2 * SIZE], order[HEAD : HEAD + SIZE], order[HEAD + 2 * SIZE :])
    )
    x = operands(seed=2).features[:, :WIDTH]
    logits = output(x)
    assert regroup(output, swapped, update)["kept"] == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(output(x), logits)
    regroup(output, order, update)
    assert all(torch.equal(x, before[name]) for name, x in output.state_dict().items())


def test_padding_has_no_say_in_the_inputs() -> None:
    output, update = _made()
    tail = output.tail
    assert tail is not None
    assert tail.indices is not None
    tail.weight.data.zero_()
    links = _links(output, tail.weight)
    regroup(output, order := _new_order(output), update)
    last = order[HEAD:][(tail.num_groups - 1) * SIZE :].tolist()
    assert len(last) < SIZE
    assert set(tail.indices[-1].tolist()) <= {place for label in last for place in links[label]}


def test_the_head_stays() -> None:
    output, update = _made()
    with pytest.raises(ValueError, match="label_order must leave the labels of the head where they are"):
        regroup(output, output.label_order.flip(0), update)


def test_cosine_to_the_centre_of_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    embeddings = generator.standard_normal((23, 5)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    embeddings[7] = 0
    expected = []
    for start in range(0, 23, 4):
        group = embeddings[start : start + 4].astype(np.float64)
        centre = group.sum(axis=0) / np.linalg.norm(group.sum(axis=0))
        expected += [float(row @ centre) for row in group if row.any()]
    assert topology.mean_cosine(embeddings, 4) == pytest.approx(np.mean(expected), rel=1e-6)
    monkeypatch.setattr(topology, "_CHUNK", 45)
    assert topology.mean_cosine(embeddings, 4) == pytest.approx(np.mean(expected), rel=1e-6)
