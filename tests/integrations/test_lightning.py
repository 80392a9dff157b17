from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from haste.integrations import Collator
from haste.integrations.lightning import RewireCallback
from haste.nn import FanInLinear
from haste.optim import SGD, cosine_schedule
from haste.rewire import Schedule
from integration_cases import TinyModel, documents, optimizers, pad, same

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


class Module(pl.LightningModule):
    def __init__(self, fused: bool, seed: int = 0, features: bool = True) -> None:
        super().__init__()
        self.model, self.fused, self.features = TinyModel(seed), fused, features
        self.chain, self.update = optimizers(self.model)

    @property
    def output(self) -> Any:
        return self.model.output

    def configure_optimizers(self) -> Any:
        optimizer = self.chain if self.fused else torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [{"scheduler": cosine_schedule(optimizer, 2, 20), "interval": "step"}]

    def training_step(self, batch: dict[str, Any], number: int) -> dict[str, Any]:
        positives = batch.pop("positives")
        features = self.model(**batch)
        if self.fused:
            loss = self.output.step(features, positives, self.update)
        else:
            loss = self.output.loss(features, positives)
        return {"loss": loss, "features": features, "positives": positives} if self.features else {"loss": loss}


def fit(module: Module, callback: Any, folder: Path, *, accumulate: int = 1, **more: Any) -> pl.Trainer:
    resume = more.pop("resume", None)
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accumulate_grad_batches=accumulate,
        callbacks=[callback],
        **{"max_epochs": 2, **more},
    )
    trainer.fit(module, DataLoader(documents(), 4, collate_fn=Collator(pad)), ckpt_path=resume)  # type: ignore[arg-type]
    return trainer


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("fused", [True, False], ids=["step", "loss"])
def test_it_trains_as_a_loop_does(tmp_path: Path, fused: bool, accumulate: int) -> None:
    module, callback = Module(fused), RewireCallback(2, 0.5)
    trainer = fit(module, callback, tmp_path, accumulate=accumulate)
    assert trainer.global_step == 16 // accumulate
    other = Module(fused)
    (optimizer,), (schedule,) = other.configure_optimizers()
    rewiring = Schedule(interval=2, fraction=0.5, end=0.66, total_steps=16 // accumulate)
    loader, step = DataLoader(documents(), 4, collate_fn=Collator(pad)), 0  # type: ignore[arg-type]
    for number, batch in enumerate([*loader, *loader], 1):
        found = other.training_step(batch, number)
        (found["loss"] / accumulate).backward()  # as Lightning does
        if number % accumulate:
            continue
        optimizer.step()
        schedule["scheduler"].step()
        step += 1
        if rewiring.due(step):
            given = found["features"].detach(), found["positives"]
            other.output.rewire(rewiring.fraction_at(step), optimizer, regrow="gradient", batch=given, step=step)
        optimizer.zero_grad()
    assert [entry["step"] for entry in callback.history] == [s for s in range(1, 17) if rewiring.due(s)]
    assert same(module, other)


@pytest.mark.parametrize("fused", [True, False], ids=["step", "loss"])
def test_a_resumed_run_is_bitwise_the_one_that_was_not_stopped(tmp_path: Path, fused: bool) -> None:
    whole, half, again = Module(fused), Module(fused), Module(fused, seed=1)
    fit(whole, RewireCallback(3, 0.5), tmp_path, max_epochs=3)
    checkpoint = tmp_path / "half.ckpt"

    class Saving(RewireCallback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(checkpoint)

    fit(half, Saving(3, 0.5), tmp_path, max_epochs=3)
    fit(again, RewireCallback(3, 0.5), tmp_path, max_epochs=3, resume=checkpoint)
    assert same(whole, again)


def test_features_are_needed_for_gradients(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="regrow='random'"):
        fit(Module(True, features=False), RewireCallback(2), tmp_path)
    callback = RewireCallback(2, regrow="random")
    fit(Module(True, features=False), callback, tmp_path)
    assert callback.history


def test_a_resumed_accumulation_is_not_rewired_again() -> None:
    callback = RewireCallback(interval=5, regrow="random")
    module = SimpleNamespace(output=FanInLinear(8, 12, fan_in=3, group_size=4))
    update = SGD(module.output.parameters(), lr=0.1)
    trainer = SimpleNamespace(global_step=5, optimizers=[update], estimated_stepping_batches=20)
    callback.on_train_start(trainer, module)
    callback.on_train_batch_end(trainer, module, None, None, 0)  # a micro-batch of the sixth step
    assert callback.history == []
    trainer.global_step = 10
    callback.on_train_batch_end(trainer, module, None, None, 1)
    assert [row["step"] for row in callback.history] == [10]
