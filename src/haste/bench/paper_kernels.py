"""Claim paper-kernels: forward and backward at the sizes of the kernel figures of HASTE (arXiv 2606.01117, Figs. 4, 5).

B=64, H=768. Labels from 65,536 to 9.2 million at fan_in 32 and group_size 32; sparsity 83, 92 and 96 % and group_size
16, 32 and 64 at 670,091 labels. ``backward`` is both gradients; the parts are timed too where a variant has them apart.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from haste.bench import _run
from haste.bench._baselines import Bottleneck, Csr, Dense, MaskedDense
from haste.bench._case import Case, batch_of
from haste.bench._expected import check_products
from haste.bench._run import OURS, Options, Outcome
from haste.bench._variants import Grouped, Ungrouped, Variant

_BASE = Case(name="L=670k", batch=64, in_features=768, num_labels=670_091, fan_in=32, group_size=32)
CASES = (
    *(
        replace(_BASE, name=f"L={name}", num_labels=labels)
        for name, labels in (
            ("64k", 65_536),
            ("256k", 262_144),
            ("670k", 670_091),
            ("1.3M", 1_305_265),
            ("2.8M", 2_812_281),
            ("4.1M", 4_194_304),
            ("9.2M", 9_200_000),
        )
    ),
    replace(_BASE, name="sparsity=83%", fan_in=128),
    replace(_BASE, name="sparsity=92%", fan_in=64),
    replace(_BASE, name="S=16", group_size=16),
    replace(_BASE, name="S=64", group_size=64),
)
KINDS: tuple[type[Variant], ...] = (Grouped, Bottleneck, Dense, MaskedDense, Csr, Ungrouped)
OPERATIONS = ("forward", "backward", "backward_features", "backward_weights")
TARGETS = {"forward": 4.4, "backward": 25.0}  # over the fixed fan-in of the paper
BASELINE = "fixed_fan_in"


def records(cases: list[Case], options: Options) -> Iterator[dict[str, Any]]:
    """Check and time; yield one record per case and operation.

    Raises:
        CheckError: this library's forward or backward is wrong.
    """
    kinds = _run.variants(fixed_fan_in=True, device=options.device, chosen=KINDS)
    for case in cases:
        timed = case.tiny() if options.smoke else case
        outcome = _run.run_case(
            timed, case.tiny(), kinds, OPERATIONS, options, check_timed=lambda ours: check_timed(ours, options)
        )
        if options.device.type != "cuda":
            for operation in OPERATIONS:
                for name in (BASELINE, f"{BASELINE}_columns"):
                    if options.variants and name not in options.variants:
                        continue
                    outcome.not_run.setdefault(operation, {})[name] = "Triton kernels, on a GPU only"
        for record in _run.records("paper-kernels", timed, outcome, OPERATIONS, options):
            yield record | {"claims": _claims(outcome, record["operation"])}


def check_timed(ours: Grouped, options: Options) -> float:
    """Compare logits and gradients at the timed shape with the formulas (`check_products`)."""
    features = batch_of(ours.case, options.device)[0].detach()
    logits = ours.forward(features)
    g = torch.randn_like(logits)
    return check_products(ours.case, ours.operands(), features, g, logits, ours.backward(features, g))


def _claims(outcome: Outcome, operation: str) -> dict[str, str]:
    timings = outcome.timings.get(operation, {})
    if operation not in TARGETS or OURS not in timings or BASELINE not in timings:
        return {}
    target, found = TARGETS[operation], timings[BASELINE].median / timings[OURS].median
    return {operation: f">= {target}x over fixed fan-in: {found:.1f}x, {'met' if found >= target else 'missed'}"}
