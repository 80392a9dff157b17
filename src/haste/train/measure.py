"""What a workload of `haste.estimate` really takes on this machine: built and trained for a few steps.

On a CPU a fresh process does it, and what counts is by how much its resident memory rises above that of a tiny model
trained before; on a GPU what PyTorch's allocator counts. Documents and labels are random.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from haste import optim
from haste.estimate import Bag, Given, Workload
from haste.estimate._memory import forget_peak, held, peak
from haste.nn import Auxiliary, Features, HeadTail
from haste.nn import Bag as BagEncoder

_TINY = Workload(
    num_labels=64,
    in_features=32,
    fan_in=8,
    group_size=4,
    head_ratio=0.5,
    batch_size=4,
    encoder=Bag(num_inputs=10, widths=(32,), terms=2.0),
)


def measure(workload: Workload, *, device: str = "cpu", steps: int = 3, threads: int | None = None) -> dict[str, int]:
    """Return bytes at most in every phase: construction, steps, rewiring (where there is any).

    Args:
        workload: its encoder is none, a bag, or given features.
        device: cpu, or a CUDA device.
        steps: of training; the first allocates the optimizer's state.
        threads: of PyTorch; default its own choice.

    Raises:
        ValueError: an encoder of another kind, or the measured process failed (its last line says why).
    """
    check_measurable(workload)
    given = json.dumps({"workload": asdict(workload), "device": device, "steps": steps, "threads": threads})
    done = subprocess.run([sys.executable, "-m", __name__, given], capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["killed, perhaps for want of memory"])[-1]
        raise ValueError(f"the measured process ended with status {done.returncode}: {why}")
    found: dict[str, int] = json.loads(done.stdout)
    return found


def check_measurable(workload: Workload) -> None:
    """Raise ValueError for an encoder that is not measured."""
    if workload.encoder is not None and not isinstance(workload.encoder, Given):
        raise ValueError(
            f"encoder ({workload.encoder.kind}) must be a bag, given features or none to be measured; transformers are "
            "measured by haste bench --claim end-to-end"
        )


class _Model:
    """Encoder, what lies between, output layer, and their optimizers."""

    def __init__(self, workload: Workload, device: torch.device) -> None:
        self.workload, self.device, encoder = workload, device, workload.encoder
        self.generator = torch.Generator().manual_seed(0)
        self.encoder = _encoder(encoder).to(device)
        self.output = HeadTail(
            workload.in_features,
            workload.num_labels,
            num_head_labels=workload.num_head_labels,
            fan_in=workload.fan_in,
            group_size=workload.group_size,
            private_features=workload.private_features,
            intermediate=workload.intermediate,
            activation="none",
            dtype=getattr(torch, workload.dtype),
            device=device,
        )
        update = optim.AdamW if workload.rule == "adamw" else optim.SGD
        self.update = update(list(self.output.layer_parameters()), lr=0.01)
        for group in self.update.param_groups:
            group["momentum"] = 0.9 if workload.rule == "momentum" else 0.0
        if workload.rates:
            self.output.set_rates(self.update, torch.ones(workload.num_labels))
        trained = [*self.encoder.parameters(), *self.output.projection_parameters()]
        self.auxiliary = None
        if workload.clusters:
            self.auxiliary = Auxiliary(workload.in_features, workload.num_labels, workload.clusters).to(device)
            trained += self.auxiliary.parameters()
        self.updates = [self.update, *([optim.AdamW(trained, lr=0.01)] if trained else [])]

    def batch(self) -> tuple[Any, tuple[Tensor, Tensor]]:
        """Random documents and positives."""
        size, encoder = self.workload.batch_size, self.workload.encoder
        positives = min(self.workload.num_labels, max(1, round(self.workload.positives)))
        labels = torch.randint(self.workload.num_labels, (size, 1), generator=self.generator)
        labels = (labels + torch.arange(positives) * (self.workload.num_labels // positives)) % self.workload.num_labels
        offsets = torch.arange(0, size * positives + 1, positives)
        documents: Any
        if isinstance(encoder, Bag):
            terms = max(1, round(encoder.terms))
            chosen = torch.randint(encoder.num_inputs, (size * terms,), generator=self.generator)
            documents = (torch.arange(0, size * terms + 1, terms), chosen, torch.rand(size * terms))
            documents = tuple(part.to(self.device) for part in documents)
        else:
            width = encoder.widths[0] if isinstance(encoder, Given) else self.workload.in_features
            documents = torch.randn((size, width), generator=self.generator).to(self.device)
        return documents, (offsets.to(self.device), labels.flatten().to(self.device))

    def step(self) -> None:
        """Train on a batch."""
        documents, positives = self.batch()
        features = self.encoder(documents)
        if not features.requires_grad:
            features.requires_grad_()
        output = self.output
        loss = (
            output.step(features, positives, self.update) if self.workload.fused else output.loss(features, positives)
        )
        if self.auxiliary is not None:
            loss = loss + self.auxiliary.loss(features, positives)
        loss.backward()
        for update in self.updates:
            update.step()
            update.zero_grad()

    def rewire(self, step: int) -> None:
        """Replace a quarter of the links."""
        documents, positives = self.batch()
        with torch.no_grad():
            features = self.encoder(documents)
        self.output.rewire(
            0.25, optimizer=self.update, step=step, regrow=self.workload.regrow, batch=(features, positives)
        )


def _encoder(encoder: Any) -> nn.Sequential:
    if encoder is None or (not isinstance(encoder, Bag) and len(encoder.widths) == 1):
        return nn.Sequential()
    *hidden, width = encoder.widths if isinstance(encoder, Bag) else encoder.widths[1:]
    kind = BagEncoder if isinstance(encoder, Bag) else Features
    inputs = encoder.num_inputs if isinstance(encoder, Bag) else encoder.widths[0]
    return nn.Sequential(kind(inputs, width, *hidden))


def _run(workload: Workload, device: torch.device, steps: int, mark: Callable[[str], None]) -> None:
    model = _Model(workload, device)
    mark("construction")
    for _ in range(steps):
        model.step()
    mark("steps")
    tail = model.output.tail
    if workload.regrow != "none" and tail is not None and tail.indices is not None:
        model.rewire(steps)
        mark("rewiring")


def _measured(workload: Workload, device: torch.device, steps: int) -> dict[str, int]:
    # What the first step of any model brings with it is not this model's: code, thread pools, autograd's.
    _run(_TINY, device, 1, lambda name: None)
    before, found = held(device), {}

    def mark(name: str) -> None:
        found[name] = peak(device) - before
        forget_peak(device)

    forget_peak(device)
    _run(workload, device, steps, mark)
    return found


def _main(given: dict[str, Any]) -> None:
    values = dict(given["workload"])
    encoder = values.pop("encoder")
    if encoder is not None:
        encoder["widths"] = tuple(encoder["widths"])
        encoder = Bag(**encoder) if "num_inputs" in encoder else Given(**encoder)
    if given["threads"] is not None:
        torch.set_num_threads(given["threads"])
    print(json.dumps(_measured(Workload(**values, encoder=encoder), torch.device(given["device"]), given["steps"])))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
