"""Hugging Face's Trainer with an output layer of this package. Needs transformers and accelerate."""

import warnings
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer, TrainerCallback

from haste import metrics
from haste.integrations.rewiring import Rewiring, output_of
from haste.nn.linear import Positives
from haste.optim._rule import RuleOptimizer

_NO_LABEL = -100  # what the Trainer pads with


class RewireCallback(Rewiring, TrainerCallback):
    """Rewires ``model.output`` on schedule, counted in optimizer steps; `LabelTrainer` gives it its batches.

    Args:
        interval and the others: as `haste.integrations.Rewiring`.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Rewire if that is due."""
        self.after_step(output_of(given["model"]), given["optimizer"], state.global_step, state.max_steps)


class LabelTrainer(Trainer):
    """A Trainer of models with a `haste.nn` output layer: never (B, L), neither in training nor in evaluation.

    ``model(**inputs)`` returns features (B, H) and ``model.output`` is the layer; batches hold ``positives``, as
    `haste.integrations.Collator` makes them, beside the model's inputs. Evaluation ranks ``top_k`` labels a document;
    ``compute_metrics`` gets them, with the true labels padded by -100 (see `RankingMetrics`).

    Args:
        update: of ``model.output``, for the fused pass, `haste.nn.FanInLinear.step`: the layer is trained within
            `compute_loss`, once every micro-batch. It must be part of the optimizer, that saves its state:
            ``optimizers=(ChainedOptimizer(AdamW(encoder parameters), update), None)``. None trains the layer by
            ``loss``, with whatever optimizer the Trainer has.
        reduction: ``sum`` over labels and documents of a step, accumulated ones too, or ``mean`` of its documents.
        top_k: labels to rank in evaluation.
        arguments: as transformers.Trainer's.

    Raises:
        TypeError: the model has no such layer.
        ValueError: reduction, or an update that the optimizer does not hold.
    """

    def __init__(
        self,
        *arguments: Any,
        update: RuleOptimizer | None = None,
        reduction: str = "sum",
        top_k: int = 5,
        **more: Any,
    ) -> None:
        super().__init__(*arguments, **more)
        output_of(self.model)
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction ({reduction}) must be sum or mean")
        if update is not None:
            chained = getattr(self.optimizer, "optimizers", (self.optimizer,))
            if not any(update is optimizer for optimizer in chained):
                raise ValueError(
                    "update must be part of the Trainer's optimizer, or checkpoints lack its state; give "
                    "optimizers=(haste.optim.ChainedOptimizer(optimizer of the encoder, update), None)"
                )
        if reduction == "sum" and self.args.max_grad_norm:
            warnings.warn(
                f"max_grad_norm ({self.args.max_grad_norm}) clips nearly every step of a loss that is summed over "
                "batch and labels; set TrainingArguments(max_grad_norm=0), or reduction='mean'",
                stacklevel=2,
            )
        self.update, self.reduction, self.top_k = update, reduction, top_k

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch; in training with ``update`` the output layer is updated already."""
        positives, rest = _without_positives(inputs)
        features, output = model(**rest), output_of(self.accelerator.unwrap_model(model))
        if model.training and self.update is not None:
            loss = output.step(features, positives, self.update, self.reduction)
        else:
            loss = output.loss(features, positives, self.reduction)
        if model.training:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, RewireCallback):
                    callback.batch = features.detach(), positives
            if self.reduction == "sum":
                loss = loss * self.current_gradient_accumulation_steps  # by which the Trainer divides
        return (loss, features) if return_outputs else loss

    @torch.no_grad()
    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return mean loss of a document, the best labels (B, top_k) and the true ones, padded."""
        positives, rest = _without_positives(self._prepare_inputs(inputs))
        with self.compute_loss_context_manager():
            features, output = model(**rest), output_of(self.accelerator.unwrap_model(model))
            loss = output.loss(features, positives, "mean")
            if prediction_loss_only:
                return loss, None, None
            return loss, output.topk(features, self.top_k)[1], _padded(positives)


class RankingMetrics:
    """``compute_metrics`` of a `LabelTrainer`: P@k, nDCG@k, R@k and RP@k for k in 1, 3, 5, percent.

    Args:
        num_labels: L.
        counts, num_points: (L,) training documents of every label, and of all: adds PSP@k and PSnDCG@k.
        propensity: a and b of these (see `haste.metrics.inverse_propensity`).
    """

    def __init__(
        self,
        num_labels: int,
        counts: np.ndarray | None = None,
        num_points: int = 0,
        propensity: tuple[float, float] = (0.55, 1.5),
    ) -> None:
        self.num_labels, self.inverse = num_labels, None
        if counts is not None:
            self.inverse = metrics.inverse_propensity(counts, num_points, *propensity)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Score ranked labels (N, K), K at least 5, against true ones, padded."""
        ranked, padded = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        held = padded != _NO_LABEL
        offsets = np.concatenate([[0], np.cumsum(held.sum(axis=1))])
        truth = csr_matrix(
            (np.ones(offsets[-1], dtype=np.float32), padded[held], offsets), (len(held), self.num_labels)
        )
        truth.sort_indices()
        found = metrics.evaluate(np.where(ranked < 0, -1, ranked), truth, k=5, inverse_propensity=self.inverse)
        return metrics.as_percent(found)


def _without_positives(inputs: dict[str, Any]) -> tuple[Positives, dict[str, Any]]:
    if "positives" not in inputs:
        raise ValueError("inputs must hold positives; give data_collator=haste.integrations.Collator(...)")
    return inputs["positives"], {key: value for key, value in inputs.items() if key != "positives"}


def _padded(positives: Positives) -> Tensor:
    """Return (B, most labels of a document), -100 after the last."""
    offsets, labels = positives
    counts = offsets.diff()
    padded = labels.new_full((len(counts), max(1, int(counts.max()))), _NO_LABEL)
    padded[torch.arange(padded.shape[1], device=labels.device) < counts[:, None]] = labels
    return padded
