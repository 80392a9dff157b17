"""Claim topk: the best k labels of every row, kept while the labels stream by, against torch.topk of stored logits.

Of this library's own logits, stored at once (``materialised``) or chunk by chunk (``chunked``), and of every other
variant's.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from haste.bench import _run
from haste.bench._baselines import Bottleneck, Csr, Dense, MaskedDense
from haste.bench._case import Case, batch_of
from haste.bench._expected import check_topk
from haste.bench._run import Options
from haste.bench._variants import Grouped, Ungrouped, Variant

_CHUNK = 1 << 16  # labels

CASES = tuple(
    Case(name=f"{name} k={k}", batch=256, in_features=768, num_labels=labels, fan_in=fan_in, group_size=size, k=k)
    for name, labels, fan_in, size in (("670k", 670_091, 64, 32), ("2.8M", 2_812_281, 128, 64))
    for k in (5, 100)
)


class Materialised(Grouped):
    """This library's logits, all stored."""

    name = "materialised"

    @classmethod
    def memory(cls, case: Case, operations: Sequence[str]) -> int:
        return super().memory(case, ("forward",))

    def topk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return Variant.topk(self, x)

    def traffic(self, operation: str) -> int:
        return super().traffic("topk") + 2 * 4 * self.case.batch * self.case.num_labels


class Chunked(Materialised):
    """This library's logits, a chunk at a time."""

    name = "chunked"

    def topk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias, indices = self.operands()
        assert indices is not None
        size = weight.shape[1]
        groups = max(1, min(_CHUNK, self.case.num_labels // 3) // size)
        scores, labels = x.new_empty((len(x), 0), dtype=torch.float32), x.new_empty((len(x), 0), dtype=torch.int64)
        for start in range(0, len(weight), groups):
            first, here = start * size, slice(start, start + groups)
            rows = min(self.case.num_labels - first, groups * size)
            best = torch.ops.haste.fan_in(x, weight[here], bias[here], indices[here], rows).topk(
                min(self.case.k, rows), dim=1
            )
            scores, labels = torch.cat((scores, best.values), 1), torch.cat((labels, best.indices + first), 1)
            kept = scores.topk(min(self.case.k, scores.shape[1]), dim=1)
            scores, labels = kept.values, labels.gather(1, kept.indices)
        return scores, labels


KINDS: tuple[type[Variant], ...] = (Grouped, Materialised, Chunked, Bottleneck, Dense, MaskedDense, Csr, Ungrouped)


def records(cases: list[Case], options: Options) -> Iterator[dict[str, Any]]:
    """Check and time; yield one record per case.

    Raises:
        CheckError: this library's top-k is wrong.
    """
    for case in cases:
        timed = case.tiny() if options.smoke else case
        outcome = _run.run_case(
            timed, case.tiny(), KINDS, ("topk",), options, check_timed=lambda ours: check_timed(ours, options)
        )
        yield from _run.records("topk", timed, outcome, ("topk",), options)


def check_timed(ours: Grouped, options: Options) -> float:
    """Compare scores and labels at the timed shape with the formulas (`check_topk`)."""
    features = batch_of(ours.case, options.device)[0].detach()
    return check_topk(ours.case, ours.operands(), features, ours.topk(features))
