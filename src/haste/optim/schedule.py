"""Learning-rate schedules."""

import math

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
