"""Lightning: a callback that rewires the output layer. Needs lightning, or pytorch-lightning."""

from typing import Any

try:
    from lightning.pytorch import Callback
except ImportError:
    from pytorch_lightning import Callback

from haste.integrations.rewiring import Rewiring, output_of


class RewireCallback(Rewiring, Callback):
    """Rewires ``module.output`` on schedule, counted in optimizer steps.

    With ``regrow="gradient"``, ``training_step`` must return {"loss": ..., "features": ..., "positives": ...}.

    Args:
        interval and the others: as `haste.integrations.Rewiring`.
    """

    _seen = -1  # steps when it was last asked: batches of an accumulation share their number

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Take the steps of a checkpoint as seen: it was written after their rewiring."""
        self._seen = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Rewire if that is due."""
        step = trainer.global_step
        if step == self._seen:
            return
        self._seen = step
        if isinstance(outputs, dict) and "features" in outputs:
            self.batch = outputs["features"].detach(), outputs["positives"]
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"optimizers ({len(trainer.optimizers)}) must be one for this callback; chain them with "
                "haste.optim.ChainedOptimizer"
            )
        self.after_step(output_of(pl_module), trainer.optimizers[0], step, int(trainer.estimated_stepping_batches))
