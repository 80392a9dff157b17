"""Rewiring on schedule, in a training loop that calls back."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from haste.nn import FanInLinear, HeadTail
from haste.nn.linear import Positives
from haste.rewire import Schedule, check_settings


class Rewiring:
    """What the callbacks of `huggingface` and `lightning` share.

    Args:
        interval: optimizer steps between two replacements of links.
        fraction, end, schedule, threshold: as `haste.rewire.Schedule`.
        regrow, scope, init, state, seed: as `haste.nn.FanInLinear.rewire`; ``gradient`` needs ``batch``.

    Attributes:
        batch: (features (B, H) without gradient, positives) of the last step, for ``gradient``; set it in each.
        history: of every rewiring, the step and what `rewire` returned.

    Raises:
        ValueError: a setting that does not exist.
    """

    def __init__(
        self,
        interval: int = 300,
        fraction: float = 0.25,
        end: float = 0.66,
        *,
        schedule: str = "cosine",
        threshold: float | None = None,
        regrow: str = "gradient",
        scope: str = "group",
        init: str = "zero",
        state: str = "mean",
        seed: int = 0,
    ) -> None:
        if interval < 1:
            raise ValueError(f"interval ({interval}) must be at least 1; leave the callback out to keep all links")
        if not 0 <= end <= 1:
            raise ValueError(f"end ({end}) must be in [0, 1], a fraction of all steps")
        if schedule not in ("cosine", "constant"):
            raise ValueError(f"schedule ({schedule}) must be one of cosine, constant")
        check_settings(fraction, regrow, scope, threshold, init, state)
        self.when: dict[str, Any] = {"interval": interval, "fraction": fraction, "end": end, "schedule": schedule}
        self.threshold, self.regrow = threshold, regrow
        self.how: dict[str, Any] = {"regrow": regrow, "scope": scope, "init": init, "state": state, "seed": seed}
        self.batch: tuple[Tensor, Positives] | None = None
        self.history: list[dict[str, float]] = []

    def after_step(self, output: FanInLinear | HeadTail, optimizer: Optimizer, step: int, total_steps: int) -> None:
        """Rewire if that is due after ``step`` of ``total_steps`` optimizer steps.

        Raises:
            ValueError: ``gradient`` without a batch.
        """
        due = Schedule(**self.when, threshold=self.threshold, total_steps=total_steps)
        batch, self.batch = self.batch, None
        if not due.due(step):
            return
        if self.regrow == "gradient" and batch is None:
            raise ValueError(
                "regrow (gradient) needs the features of a batch: set the callback's batch = (features.detach(), "
                "positives) in each step, or use regrow='random'"
            )
        training = output.training
        output.eval()  # without its dropout
        try:
            found = output.rewire(
                due.fraction_at(step), optimizer, step=step, batch=batch, threshold=due.threshold_at(step), **self.how
            )
        finally:
            output.train(training)
        self.history.append({"step": step, **found})


def output_of(model: Any) -> FanInLinear | HeadTail:
    """Return the output layer of a model: its attribute ``output``.

    Raises:
        TypeError: there is none.
    """
    output = getattr(model, "output", None)
    if not isinstance(output, FanInLinear | HeadTail):
        raise TypeError(
            f"model.output ({type(output).__name__}) must be a haste.nn.FanInLinear or HeadTail; give the model one"
        )
    return output
