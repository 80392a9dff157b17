"""Dynamic sparse training: when to rewire, how much, by which rule, and what came of it.

1. score[k, f] = mean over the group's labels of |weight[k, s, f]|
2. prune the lowest fraction per group, over all groups, or all below a threshold
3. regrow as many from the H - F inputs the group did not hold: at random (SET), or by gradient (RigL)
4. new weights are zero or uniform; the first moment of new links is zero, the second the mean of the survivors'
5. re-sort every row, with everything that is laid out like the weight
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from haste.ops import _rewire as links

REGROW = ("random", "gradient")
SCOPES = ("group", "global")
INITS = ("zero", "uniform")
_SECOND_MOMENTS = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When to rewire and which fraction to replace.

    Every ``interval`` steps, until ``end`` of ``total_steps``; the fraction stays constant or falls by a cosine to 0:

        fraction(t) = fraction / 2 * (1 + cos(pi t / (end * total_steps)))
    """

    interval: int
    fraction: float
    end: float
    total_steps: int
    schedule: str = "cosine"

    def fraction_at(self, step: int) -> float:
        """Return the fraction to replace after ``step`` steps; 0 where rewiring is not due."""
        last = self.end * self.total_steps
        if self.interval < 1 or step % self.interval or not 0 < step < last:
            return 0.0
        if self.schedule == "constant":
            return self.fraction
        return 0.5 * self.fraction * (1 + math.cos(math.pi * step / last))


@torch.no_grad()
def rewire_links(
    weight: Tensor,
    indices: Tensor,
    regrown: Tensor,
    *,
    in_features: int,
    num_labels: int,
    fraction: float,
    regrow: str,
    scope: str,
    threshold: float | None,
    init: str,
    candidates: Any,
    state: dict[str, Tensor],
    seed: int,
    layer: int,
    step: int,
    first_group: int = 0,
) -> dict[str, float]:
    """Prune and regrow the links of one layer in place.

    Args:
        weight: (G, S, F).
        indices, regrown: (G, F) inputs, and which of them came with the last rewiring.
        in_features, num_labels: sizes.
        fraction, scope, threshold: what to prune: the lowest ``fraction`` per ``group`` or ``global``; all below
            ``threshold`` where it is given.
        regrow, candidates: ``random``, or ``gradient`` with candidates(most) giving the inputs to take, (G, most).
        init: new weights, ``zero`` or ``uniform``.
        state: the optimizer's tensors of the weight's shape, by torch's key names.
        seed, layer, step, first_group: coordinates of the random numbers.

    Returns:
        fraction (of links replaced), survivors (fraction of the links regrown last time that were kept now),
        inputs_used, inputs_unused (inputs that some, or no, group reads afterwards).
    """
    groups, fan_in = indices.shape
    scores = links.link_scores(weight, num_labels)
    rank = scores.argsort(dim=1, stable=True).argsort(dim=1)
    counts = _prune_counts(scores, fraction, scope, threshold).clamp_(max=in_features - fan_in)
    most = int(counts.max())
    gone = rank < counts[:, None]
    fresh = int(regrown.sum())
    survivors = 1.0 - int((gone & regrown).sum()) / fresh if fresh else 1.0
    if most:
        if regrow == "random":
            new = links.regrow_random(
                indices, in_features, most, seed=seed, step=step, layer=layer, first_group=first_group
            )
        else:
            new = candidates(most)
        tensors = [(weight, "weight")]
        tensors += [(t, "mean" if name in _SECOND_MOMENTS else "zero") for name, t in sorted(state.items())]
        where = {"seed": seed, "layer": layer, "step": step, "first_group": first_group}
        links.replace_links(indices, regrown, rank, counts, new, tensors, num_labels=num_labels, init=init, **where)
    used = torch.zeros(in_features, dtype=torch.bool, device=indices.device)
    for part in indices.split(max(1, (1 << 22) // fan_in)):
        used[part.reshape(-1).long()] = True
    return {
        "fraction": int(counts.sum()) / (groups * fan_in),
        "survivors": survivors,
        "inputs_used": float(used.sum()),
        "inputs_unused": float(in_features - used.sum()),
    }


def _prune_counts(scores: Tensor, fraction: float, scope: str, threshold: float | None) -> Tensor:
    """Return how many links each group loses, (G,) int64."""
    groups, fan_in = scores.shape
    if threshold is not None:
        return (scores < threshold).sum(dim=1)
    if scope == "group":
        return torch.full((groups,), int(fraction * fan_in), device=scores.device)
    lowest = scores.reshape(-1).argsort(stable=True)[: int(fraction * scores.numel())]
    return torch.bincount(lowest // fan_in, minlength=groups)


def check_settings(fraction: float, regrow: str, scope: str, threshold: float | None, init: str) -> None:
    """Raise ValueError for a setting of `rewire` that does not exist."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction ({fraction}) must be between 0 and 1")
    if threshold is not None and threshold < 0:
        raise ValueError(f"threshold ({threshold}) must not be negative")
    for name, value, known in (("regrow", regrow, REGROW), ("scope", scope, SCOPES), ("init", init, INITS)):
        if value not in known:
            raise ValueError(f"{name} ({value}) must be one of {', '.join(known)}")
