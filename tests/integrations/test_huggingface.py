import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch.utils.data import SequentialSampler
from transformers import TrainingArguments

from haste import metrics
from haste.integrations import Collator, csr_positives
from haste.integrations.huggingface import LabelTrainer, RankingMetrics, RewireCallback
from haste.optim import SGD
from haste.rewire import Schedule
from integration_cases import NUM_LABELS, TinyModel, documents, optimizers, pad, same


class InOrder(LabelTrainer):
    """Documents in their order, to be compared with a loop."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    values = {
        "output_dir": str(folder),
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "max_grad_norm": 0.0,
        "remove_unused_columns": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return TrainingArguments(**{**values, **changes})


def trainer(model: TinyModel, folder: Path, kind: type[LabelTrainer] = InOrder, **more: Any) -> LabelTrainer:
    settings = {key: more.pop(key) for key in list(more) if key in TrainingArguments.__dataclass_fields__}
    return kind(
        model=model,
        args=arguments(folder, **settings),
        data_collator=Collator(pad),
        train_dataset=documents(),
        eval_dataset=documents(20),
        **more,
    )


def fused(model: TinyModel, folder: Path, kind: type[LabelTrainer] = InOrder, **more: Any) -> LabelTrainer:
    chain, update = optimizers(model)
    return trainer(model, folder, kind, optimizers=(chain, None), update=update, **more)


def loop(model: TinyModel, *, fused: bool, steps: int = 8, accumulate: int = 1, rewire: Schedule | None = None) -> None:
    """What the Trainer is to do, written out."""
    collate, examples = Collator(pad), documents()
    optimizer: torch.optim.Optimizer
    optimizer, update = optimizers(model)
    if not fused:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(steps * accumulate):
        batch = collate([examples[i % 32] for i in range(4 * step, 4 * step + 4)])
        positives = batch.pop("positives")
        features = model(**batch)
        if fused:
            model.output.step(features, positives, update).backward()
        else:
            model.output.loss(features, positives).backward()
        if (step + 1) % accumulate:
            continue
        optimizer.step()
        optimizer.zero_grad()
        done = (step + 1) // accumulate
        if rewire is not None and rewire.due(done):
            given = (features.detach(), positives)
            model.output.rewire(rewire.fraction_at(done), optimizer, regrow="gradient", batch=given, step=done)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_fused_pass_trains_as_a_loop_does(tmp_path: Path, accumulate: int) -> None:
    model, other = TinyModel(), TinyModel()
    fused(model, tmp_path, gradient_accumulation_steps=accumulate).train()
    loop(other, fused=True, accumulate=accumulate)
    assert same(model, other)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loss_trains_as_a_loop_does(tmp_path: Path, accumulate: int) -> None:
    model, other = TinyModel(), TinyModel()
    adamw = torch.optim.AdamW(model.parameters(), lr=0.01)
    trainer(model, tmp_path, optimizers=(adamw, None), gradient_accumulation_steps=accumulate).train()
    loop(other, fused=False, accumulate=accumulate)
    assert all(torch.allclose(x, y) for x, y in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("step", [True, False], ids=["step", "loss"])
def test_the_callback_rewires_as_a_loop_does(tmp_path: Path, step: bool) -> None:
    model, other, callback = TinyModel(), TinyModel(), RewireCallback(2, 0.5)
    given: dict[str, Any] = {}
    if not step:
        given["optimizers"] = (torch.optim.AdamW(model.parameters(), lr=0.01), None)
    (fused if step else trainer)(model, tmp_path, callbacks=[callback], **given).train()
    loop(other, fused=step, rewire=Schedule(interval=2, fraction=0.5, end=0.66, total_steps=8))
    assert [found["step"] for found in callback.history] == [2, 4]
    assert same(model, other)


@pytest.mark.parametrize("step", [True, False], ids=["step", "loss"])
def test_a_resumed_run_is_bitwise_the_one_that_was_not_stopped(tmp_path: Path, step: bool) -> None:
    settings: dict[str, Any] = {"lr_scheduler_type": "cosine", "max_steps": 12, "kind": LabelTrainer}
    settings |= {"save_strategy": "steps", "save_steps": 5}
    whole, again = TinyModel(), TinyModel(seed=1)
    make = fused if step else trainer
    make(whole, tmp_path, callbacks=[RewireCallback(2, 0.5)], **settings).train()
    make(again, tmp_path, callbacks=[RewireCallback(2, 0.5)], **settings).train(str(tmp_path / "checkpoint-5"))
    assert same(whole, again)


def test_a_resumed_run_has_the_momentum_of_the_layer(tmp_path: Path) -> None:
    fused(TinyModel(), tmp_path, save_strategy="steps", save_steps=4).train()
    model = TinyModel()
    chain, update = optimizers(model)
    resumed = trainer(model, tmp_path, optimizers=(chain, None), update=update, max_steps=5)
    resumed.train(str(tmp_path / "checkpoint-4"))
    assert model.output.tail is not None
    assert update.state[model.output.tail.weight]["step"] == 5


def test_mixed_precision(tmp_path: Path) -> None:
    losses = []
    for precision in (False, True):
        model = TinyModel()
        run = fused(model, tmp_path, bf16=precision, max_steps=16)
        run.train()
        losses.append(run.evaluate()["eval_loss"])
        assert model.embedding.weight.dtype == model.output.tail.weight.dtype == torch.float32
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[0] < trainer(TinyModel(), tmp_path).evaluate()["eval_loss"] - 1


def test_evaluation_ranks_labels(tmp_path: Path) -> None:
    model = TinyModel()
    run = trainer(model, tmp_path, compute_metrics=RankingMetrics(NUM_LABELS), per_device_eval_batch_size=7)
    found = run.evaluate()
    held = documents(20)
    batch = Collator(pad)(held)
    offsets, labels = positives = batch.pop("positives")
    model.eval()
    with torch.no_grad():
        features = model(**batch)
        ranked = model.output.topk(features, 5)[1]
        loss = model.output.loss(features, positives, "mean")
    truth = csr_matrix((np.ones(len(labels)), labels, offsets), (20, NUM_LABELS))
    expected = metrics.as_percent(metrics.evaluate(ranked.numpy(), truth, k=5))
    assert {name: found[f"eval_{name}"] for name in expected} == pytest.approx(expected)
    assert found["eval_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert run.predict(held).predictions.shape == (20, 5)


def test_propensity_scored_metrics() -> None:
    ranked, padded = np.array([[3, 1, 0, 2, 4], [2, 0, 1, -100, -100]]), np.array([[1, -100], [0, 2]])
    counts = np.array([4, 1, 2, 0, 0])
    prediction = type("Prediction", (), {"predictions": ranked, "label_ids": padded})()
    found = RankingMetrics(5, counts, 7)(prediction)
    truth = csr_matrix(np.array([[0, 1, 0, 0, 0], [1, 0, 1, 0, 0]], dtype=float))
    ranked = np.where(ranked < 0, -1, ranked)
    inverse = metrics.inverse_propensity(counts, 7)
    assert found == metrics.as_percent(metrics.evaluate(ranked, truth, 5, inverse))
    assert "PSP@5" in found


def test_the_default_clips_a_summed_loss(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"max_grad_norm \(1.0\) clips nearly every step"):
        run = fused(TinyModel(), tmp_path, max_grad_norm=1.0, logging_steps=1)
    run.train()
    norms = [entry["grad_norm"] for entry in run.state.log_history if "grad_norm" in entry]
    assert len(norms) == 8
    assert min(norms) > 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused(TinyModel(), tmp_path, max_grad_norm=1.0, reduction="mean")
        fused(TinyModel(), tmp_path)


def test_what_it_refuses(tmp_path: Path) -> None:
    model = TinyModel()
    with pytest.raises(ValueError, match=r"reduction \(max\)"):
        trainer(model, tmp_path, reduction="max")
    with pytest.raises(ValueError, match="ChainedOptimizer"):
        trainer(model, tmp_path, update=SGD(model.output.layer_parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"model.output \(NoneType\)"):
        trainer(torch.nn.Linear(3, 3), tmp_path)  # type: ignore[arg-type]
    run = trainer(model, tmp_path)
    run.data_collator = pad
    with pytest.raises(ValueError, match=r"haste.integrations.Collator"):
        run.train()


def test_the_positives_of_an_unlabelled_document_are_none(tmp_path: Path) -> None:
    examples = [{**example, "labels": []} for example in documents(6)]
    found = trainer(TinyModel(), tmp_path).predict(examples)
    assert found.label_ids.tolist() == [[-100]] * 6
    assert csr_positives([[]] * 6)[0].tolist() == [0] * 7
