"""Learning rates that differ from step to step, or from label to label."""

import math

import numpy as np
import torch


def cosine_schedule(
    optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a schedule that rises linearly over ``warmup_steps`` and falls by a half cosine to 0 at ``total_steps``.

        lr(t) = lr * (t + 1) / (warmup_steps + 1)                                     t < warmup_steps
        lr(t) = lr / 2 * (1 + cos(pi (t - warmup_steps) / (total_steps - warmup_steps)))     afterwards

    Args:
        optimizer: its groups' lr are the peaks.
        warmup_steps, total_steps: in optimizer steps; call ``step()`` once after each.

    Raises:
        ValueError: warmup_steps is negative.
    """
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps ({warmup_steps}) must not be negative")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def rarity_rates(counts: np.ndarray, rarity: float) -> torch.Tensor:
    """Return factors of the learning rate by label, larger for rare labels: of `haste.optim.SGD.set_rates`.

        rate = min(20, (n_max / n)^rarity)              n_max the largest of the counts n

    The loss is a sum over documents, and but for its positives a label's gradient is small: over an epoch its weights
    move by about lr * n. At a rate that suits frequent labels those of a few documents stay underfit even on them;
    rarity 1 gives all labels the same distance, as far as 20 times goes.

    Args:
        counts: (L,) training documents of every label.
        rarity: 0 (the same rate for all) to 1.

    Returns:
        (L,) float32.

    Raises:
        ValueError: rarity out of range.
    """
    if not 0 <= rarity <= 1:
        raise ValueError(f"rarity ({rarity}) must be in [0, 1]")
    n = np.maximum(np.asarray(counts, dtype=np.float64), 1)
    return torch.from_numpy(((n.max() / n) ** rarity).clip(max=20).astype(np.float32))
