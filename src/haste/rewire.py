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

from haste import topology
from haste.ops import _rewire as links

REGROW = ("random", "gradient")
SCOPES = ("group", "global")
INITS = ("zero", "uniform")
STATES = ("mean", "zero", "keep")
SECOND_MOMENTS = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When to rewire, and which fraction of the links to replace, or below which threshold.

    Every ``interval`` steps, until ``end`` of ``total_steps``; fraction and threshold stay constant or fall by a
    cosine to 0:

        fraction(t) = fraction / 2 * (1 + cos(pi t / (end * total_steps)))

    ``threshold`` (Spartex) replaces the fraction where it is given.
    """

    interval: int
    fraction: float
    end: float
    total_steps: int
    schedule: str = "cosine"
    threshold: float | None = None

    def due(self, step: int) -> bool:
        """Return whether links are replaced after ``step`` steps."""
        on_time = self.interval >= 1 and step % self.interval == 0 and 0 < step < self.end * self.total_steps
        return on_time and (self.threshold is not None or self.fraction > 0)

    def fraction_at(self, step: int) -> float:
        """Return the fraction to replace after ``step`` steps; 0 where rewiring is not due."""
        return self.fraction * self._decay(step) if self.due(step) else 0.0

    def threshold_at(self, step: int) -> float | None:
        """Return the threshold below which links are replaced after ``step`` steps; None for a fraction of them."""
        return None if self.threshold is None else self.threshold * self._decay(step)

    def _decay(self, step: int) -> float:
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, step / (self.end * self.total_steps))))


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
    block: int = 1,
    duplicates: bool = False,
    new_state: str = "mean",
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
        block: links are pruned, by their mean score, and regrown as whole aligned blocks of this many inputs.
        duplicates: draw new inputs with replacement, from all inputs.
        new_state: second moments of new links: ``mean`` of the label's survivors, or ``zero``; first moments are zero.
            ``keep``: all as the pruned link had them.

    Returns:
        fraction (of links replaced), survivors (fraction of the links regrown last time that were kept now),
        inputs_used, inputs_unused (inputs that some, or no, group reads afterwards).
    """
    groups, fan_in = indices.shape
    scores = links.link_scores(weight, num_labels)
    if block > 1:
        scores = scores.view(groups, fan_in // block, block).mean(dim=2)
    rank = scores.argsort(dim=1, stable=True).argsort(dim=1)
    free = fan_in if duplicates else in_features - fan_in
    counts = _prune_counts(scores, fraction, scope, threshold).clamp_(max=free // block)
    most = int(counts.max())
    if block > 1:
        within = torch.arange(block, device=rank.device)
        rank = (rank[:, :, None] * block + within).view(groups, fan_in)
        counts = counts * block
    gone = rank < counts[:, None]
    fresh = int(regrown.sum())
    survivors = 1.0 - int((gone & regrown).sum()) / fresh if fresh else 1.0
    if most:
        where = {"seed": seed, "layer": layer, "step": step, "first_group": first_group}
        if duplicates:
            new = topology.random_inputs(
                first_group, groups, most, in_features, seed=seed, layer=layer, step=step, device=indices.device
            )
        elif block > 1:
            new = links.regrow_random(indices[:, ::block] // block, in_features // block, most, **where)
            new = (new[:, :, None] * block + within).view(groups, most * block)
        elif regrow == "random":
            new = links.regrow_random(indices, in_features, most, **where)
        else:
            new = candidates(most)
        tensors = [(weight, "weight")]
        for name, tensor in sorted(state.items()):
            of_new = "keep" if new_state == "keep" and name != "grad" else "zero"
            if new_state == "mean" and name in SECOND_MOMENTS:
                of_new = "mean"
            tensors.append((tensor, of_new))
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


def check_settings(
    fraction: float, regrow: str, scope: str, threshold: float | None, init: str, state: str = "mean"
) -> None:
    """Raise ValueError for a setting of `rewire` that does not exist."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction ({fraction}) must be between 0 and 1")
    if threshold is not None and threshold < 0:
        raise ValueError(f"threshold ({threshold}) must not be negative")
    choices = (("regrow", regrow, REGROW), ("scope", scope, SCOPES), ("init", init, INITS), ("state", state, STATES))
    for name, value, known in choices:
        if value not in known:
            raise ValueError(f"{name} ({value}) must be one of {', '.join(known)}")
