"""What sparse training does inside the output layer: its inputs, its weights, and the gradients it sends back."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from haste.nn import FanInLinear, HeadTail

_PAIRS = 1000  # of groups, whose inputs are compared
_CHUNK = 1 << 22  # weights looked at together


class Diagnostics:
    """Measures an output layer while it trains; costs one pass over the weights each time.

    Args:
        output: the layer.
        counts: (L,) training frequency of every label.
        seed: of the pairs of groups that are compared.
    """

    def __init__(self, output: HeadTail, counts: np.ndarray, seed: int) -> None:
        self._output, self._seed = output, seed
        self._decile = torch.from_numpy(deciles(counts)).to(output.label_order.device)

    def watch(self) -> None:
        """Note the gradients of the backward pass that comes next."""
        self._output.gradient_norms = {}

    def collect(self) -> dict[str, Any]:
        """What there is to say after a step.

        Returns:
            weight_by_decile: ten times the mean |weight| of labels, the most frequent first;
            gradient_head, gradient_tail, gradient_auxiliary: mean over the documents of the norm of the gradient that
            each sends back to the features it reads, where `watch` was called before the step;
            input_coverage: part of the inputs that some group of the tail reads; group_overlap: inputs that two groups
            share over those that either reads, mean of up to 1,000 pairs. Both only where the tail is sparse.
        """
        found: dict[str, Any] = {"weight_by_decile": self._weight_by_decile().tolist()}
        norms, self._output.gradient_norms = self._output.gradient_norms or {}, None
        found |= {f"gradient_{name}": float(norm) for name, norm in norms.items()}
        tail = self._output.tail
        if tail is not None and tail.indices is not None:
            found["input_coverage"] = len(tail.indices.unique()) / tail.in_features
            if tail.num_groups > 1:
                found["group_overlap"] = group_overlap(tail.indices, self._seed)
        return found

    def _weight_by_decile(self) -> Tensor:
        by_row = torch.cat([_mean_weight(layer) for layer in self._output.layers()])
        decile = self._decile[self._output.label_order]
        sums = torch.zeros(10, dtype=torch.float64, device=by_row.device).index_add_(0, decile, by_row)
        return sums / torch.bincount(decile, minlength=10).clamp_(min=1)


def deciles(counts: np.ndarray) -> np.ndarray:
    """Return the decile of every label, 0 of the most frequent; ties by label, as `haste.metrics.per_decile`."""
    of_label = np.empty(len(counts), dtype=np.int64)
    of_label[np.argsort(-counts.astype(np.int64), kind="stable")] = np.arange(len(counts)) * 10 // len(counts)
    return of_label


@torch.no_grad()
def group_overlap(indices: Tensor, seed: int) -> float:
    """Return the mean Jaccard index of the inputs of random pairs of groups.

    Args:
        indices: (G, F) sorted inputs, G at least 2; groups that read the same inputs have 1, F random of H inputs
            about F / (2 H - F).
        seed: of the pairs.
    """
    generator = np.random.default_rng(seed)
    groups, fan_in = indices.shape
    first = generator.integers(groups, size=_PAIRS)
    second = (first + generator.integers(1, groups, size=_PAIRS)) % groups
    a, b = (indices[torch.from_numpy(chosen).to(indices.device)] for chosen in (first, second))
    both = torch.cat((a, b), dim=1).sort(dim=1).values
    shared = (both[:, 1:] == both[:, :-1]).sum(dim=1)
    return float((shared / (2 * fan_in - shared)).double().mean())


@torch.no_grad()
def _mean_weight(layer: FanInLinear) -> Tensor:
    """Mean |weight| of every label, (num_labels,) float64."""
    _, size, fan_in = layer.weight.shape
    parts = layer.weight.detach().split(max(1, _CHUNK // (size * fan_in)))
    return torch.cat([part.abs().mean(dim=2, dtype=torch.float64).reshape(-1) for part in parts])[: layer.num_labels]
