import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from haste import Classifier
from haste.config import Config
from haste.data.dataset import load_dataset
from haste.data.formats import Record
from haste.nn import HeadTail
from haste.nn.initial import start_from_documents
from haste.train.alike import by_texts, texts_of
from haste.train.checkpoint import load_checkpoint, save_checkpoint
from haste.train.evaluate import evaluate_run, predict
from haste.train.loop import Loop
from haste.train.model_folder import load_model
from haste.train.trainer import train

CPU = torch.device("cpu")
COLD = "label 29"
SETTINGS: dict[str, dict[str, Any]] = {
    "train": {"train": True},
    "share": {"train": True, "share": 0.3},
    "init": {"init": True},
    "both": {"train": True, "init": True},
    "group": {"group": True},
}


@pytest.fixture(scope="module")
def described_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of two of the words of their label, whose text is all three; none has COLD, whose words are its own."""
    folder, generator = tmp_path_factory.mktemp("described"), random.Random(0)
    texts = {f"label {n}": [f"word{3 * n + x}" for x in range(3)] for n in range(30)}
    for split, size in (("train", 120), ("dev", 20), ("test", 29)):
        labels = [f"label {n % 29}" for n in range(size)]
        rows = ({"text": " ".join(generator.sample(texts[label], 2)), "labels": [label]} for label in labels)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = ({"label": label, "text": " ".join(words)} for label, words in texts.items())
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def described(tiny_config: Callable[..., Config], described_data: Path) -> Callable[..., Config]:
    return lambda **changes: tiny_config(data={"path": str(described_data), "min_df": 1}, **changes)


def make_loop(config: Config) -> Loop:
    dataset = load_dataset(config.data, seed=0, log=lambda text: None, label_texts=config.label_texts.read)
    loop = Loop(config, dataset, CPU)
    loop.initialize(dataset)
    return loop


@pytest.mark.parametrize("settings", [SETTINGS["train"], SETTINGS["share"]])
def test_an_epoch_passes_over_all_documents_and_its_share_of_the_texts(
    described: Callable[..., Config], settings: dict[str, Any]
) -> None:
    loop = make_loop(described(label_texts=settings))
    size, documents = loop.steps_per_epoch, loop.num_documents
    epochs = [np.concatenate([loop.rows(e * size + step) for step in range(size)]) for e in range(10)]
    texts = round(30 * settings.get("share", 1))
    for epoch in epochs:
        assert sorted(epoch[epoch < documents]) == list(range(documents))
        assert len(np.unique(epoch)) == len(epoch) == documents + texts
    visits = np.bincount(np.concatenate(epochs))
    assert visits[documents:].tolist() == [texts * 10 // 30] * 30


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_step_after_a_checkpoint_is_bitwise_the_same(
    described: Callable[..., Config], tmp_path: Path, settings: str
) -> None:
    config = described(label_texts=SETTINGS[settings])
    loop = make_loop(config)
    for step in range(12):
        if step == 7:
            save_checkpoint(tmp_path / "c", ["last"], step=step, tensors=loop.tensors(), meta=loop.meta())
        loop.step(step)
    dataset = load_dataset(config.data, seed=0, log=lambda text: None, label_texts=True)
    resumed = Loop(config, dataset, CPU)
    resumed.load(*load_checkpoint(tmp_path / "c" / "last"))
    for step in range(7, 12):
        resumed.step(step)
    for name, tensor in loop.tensors().items():
        assert torch.equal(resumed.tensors()[name], tensor), name


@pytest.mark.parametrize("settings", ["train", "both"])
def test_a_label_without_a_document_is_predicted_from_its_text(
    described: Callable[..., Config], tmp_path: Path, settings: str
) -> None:
    config = described(label_texts=SETTINGS[settings], optim={"epochs": 20, "output": {"lr": 1.0}})
    run = train(config, log=lambda line: None)
    trained, record = load_model(run / "model"), json.loads((run / "run.json").read_text())
    labels = trained.labels
    assert (labels.num_labels, labels.names[29], int(labels.counts[29])) == (30, COLD, 0)
    assert trained.num_points == record["data"]["train"]
    assert (record["data"]["labels"], record["data"]["label_texts"]) == (30, 30)
    (found,) = predict(trained, [Record("new", "word87 word88 word89")], k=30)
    place = [label["label"] for label in found["labels"]].index(COLD)
    assert place < 5
    assert found["labels"][place]["text"] == "word87 word88 word89"
    measured = json.loads((run / "metrics.json").read_text())
    assert evaluate_run(run, "test") == measured["test"]
    classifier = Classifier.from_pretrained(run)
    assert COLD in classifier.predict_topk(["word87 word88 word89"], k=30)[0][0, :5]


def test_counts_of_documents_alone_decide_head_biases_and_propensities(described: Callable[..., Config]) -> None:
    with_texts, without = (make_loop(described(label_texts={"train": on})) for on in (True, False))
    assert with_texts.num_documents == without.num_documents
    for label in range(29):
        biases = [
            torch.cat([layer.bias.flatten()[: layer.num_labels] for layer in loop.model.output.layers()])[
                loop.model.output.row_of_label[label]
            ]
            for loop in (with_texts, without)
        ]
        assert biases[0] == biases[1]
    heads = [
        set(loop.model.output.label_order[: loop.model.output.num_head_labels].tolist())
        for loop in (with_texts, without)
    ]
    assert heads[0] == heads[1]


@pytest.mark.parametrize("num_head_labels", [0, 6, 14])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_from_documents_are_what_the_formula_says(num_head_labels: int, dtype: torch.dtype) -> None:
    order = torch.randperm(14, generator=torch.Generator().manual_seed(1))
    output = HeadTail(
        9, 14, num_head_labels=num_head_labels, fan_in=4, group_size=3, label_order=order, dtype=dtype
    ).eval()
    before = [layer.weight.detach().clone() for layer in output.layers()]
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(20, 9, generator=generator)
    truth = torch.rand(20, 14, generator=generator) < 0.3
    truth[:, 5] = False
    batches = []
    for start in range(0, 20, 8):
        part = truth[start : start + 8]
        offsets = torch.nn.functional.pad(part.sum(dim=1).cumsum(0), (1, 0))
        batches.append((x[start : start + 8], (offsets, part.nonzero()[:, 1])))
    start_from_documents(output, batches)
    scale = 1 / x.double().var(dim=0, correction=0).mean()
    for row, label in enumerate(order.tolist()):
        layer, place, old = output.head, row, before[0]
        if row >= num_head_labels:
            layer, place, old = output.tail, row - num_head_labels, before[-1]
        assert layer is not None
        group, slot = divmod(place, layer.group_size)
        found = layer.weight[group, slot]
        n = int(truth[:, label].sum())
        if n == 0:
            assert torch.equal(found, old[group, slot])
            continue
        wanted = n / (n + 3) * (x[truth[:, label]].mean(dim=0) - x.mean(dim=0)) * scale / layer.fan_in
        if layer.indices is not None:
            wanted = wanted[layer.indices[group].long()]
        torch.testing.assert_close(
            found.double(), wanted.double(), rtol=1e-2 if dtype != torch.float32 else 1e-4, atol=1e-6
        )
    for layer in output.layers():
        assert not layer.weight.view(-1, layer.fan_in)[layer.num_labels :].any()


def test_labels_of_documents_in_memory_have_no_texts(described: Callable[..., Config]) -> None:
    message = r"label_texts\.train, init and group must be false: the labels of this data have no texts"
    with pytest.raises(ValueError, match=message):
        Classifier(preset=None, config={"label_texts": {"train": True}}, verbose=False).fit(["aa bb"] * 9, [["a"]] * 9)
    config = described(label_texts={"init": True})
    dataset = load_dataset(config.data, seed=0, log=lambda text: None, label_texts=True)
    with pytest.raises(ValueError, match=message):
        Loop(config, replace(dataset, points=None), CPU)


def test_a_share_outside_its_limits_is_refused(described: Callable[..., Config]) -> None:
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"label_texts\.share \({share}\) must be above 0, and 1 at most"):
            described(label_texts={"train": True, "share": share})


def test_labels_with_texts_are_grouped_by_them_and_others_by_their_documents() -> None:
    """Row 2 is the page of label 2, among other documents; rows 4 and 5 are the texts of labels 0 and 3."""
    features = csr_matrix(np.arange(12.0).reshape(6, 2))
    truth = [[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    texts = texts_of(["x", "label 1", "label 2", "y", "label 0", "label 3"], [f"label {n}" for n in range(4)])
    assert texts.tolist() == [-1, 1, 2, -1, 0, 3]
    rows, positives = by_texts(features, csr_matrix(np.array(truth)), texts)
    assert rows.shape == (4, 2)
    assert rows[:].toarray().tolist() == [[0, 1], [4, 5], [8, 9], [10, 11]]
    assert rows[np.array([3, 0])].toarray().tolist() == [[10, 11], [0, 1]]
    assert positives.toarray().tolist() == [[0, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("by_text", [True, False])
def test_groups_are_of_labels_whose_texts_or_whose_documents_are_alike(
    tiny_config: Callable[..., Config], tmp_path: Path, by_text: bool
) -> None:
    """Label n has the documents of n // 4 and the text of n % 2."""
    for split, size in (("train", 80), ("dev", 8)):
        rows = ({"text": f"page{n % 8 // 4} of", "labels": [str(n % 8)]} for n in range(size))
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = ({"label": str(n), "text": f"name{n % 2} is"} for n in range(8))
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny_config(
        data={"path": str(tmp_path), "min_df": 1},
        output={"head_ratio": 0.0, "group_size": 4, "fan_in": 4},
        label_texts={"group": by_text, "init": True},
    )
    output = make_loop(config).model.output
    groups = output.label_order.view(2, 4).sort(dim=1).values.tolist()
    assert sorted(groups) == ([[0, 2, 4, 6], [1, 3, 5, 7]] if by_text else [[0, 1, 2, 3], [4, 5, 6, 7]])
