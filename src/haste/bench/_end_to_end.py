"""The process that claim end-to-end measures: a transformer and an output layer, trained for a few steps, by part.

The transformer is BERT of `transformers` with random weights, in bfloat16 with Kahan-summed Adam; tokens are random,
labels follow a power law. The parts of a step are waited for one after the other, and the peak of each is on record.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from haste.bench._case import size_of
from haste.bench._harness import check
from haste.estimate import Transformer, Workload
from haste.estimate._memory import forget_peak, held, peak
from haste.nn import HeadTail
from haste.nn.transformer import checkpoint_layers
from haste.optim import SGD, AdamW, KahanAdamW

PARTS = ("data", "encoder forward", "output", "encoder backward", "optimizer")
TINY = Workload(
    num_labels=300,
    in_features=64,
    fan_in=16,
    group_size=16,
    head_ratio=0.1,
    batch_size=4,
    encoder=Transformer(kind="tiny", layers=2, width=64, inner=128, vocabulary=100, positions=32, heads=2, tokens=16),
)
_SKEW = 3  # label = L u^3 for u in [0, 1): frequencies fall as rank^(-2/3)
_TOLERANCE = 1e-4  # of float32 gradients


class EndToEnd:
    """A model of a workload and what trains it."""

    def __init__(self, workload: Workload, device: torch.device) -> None:
        encoder = workload.encoder
        assert isinstance(encoder, Transformer)
        self.workload, self.device, self.tokens = workload, device, encoder.tokens
        self.generator = torch.Generator().manual_seed(0)
        self.encoder = build_bert(encoder).to(device)
        self.output = HeadTail(
            workload.in_features,
            workload.num_labels,
            num_head_labels=workload.num_head_labels,
            fan_in=workload.fan_in,
            group_size=workload.group_size,
            private_features=workload.private_features,
            dtype=getattr(torch, workload.dtype),
            device=device,
        )
        self.update = SGD(self.output.layer_parameters(), lr=0.01)
        self.optimizer: AdamW = (
            AdamW(self.encoder.parameters(), lr=1e-4)
            if encoder.element == 4
            else KahanAdamW(self.encoder.parameters(), lr=1e-4, state_dtype=torch.bfloat16)
        )
        self.loss = torch.zeros(())

    def batch(self) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Random tokens (B, T), and positives whose frequencies fall by a power law."""
        size, encoder = self.workload.batch_size, self.workload.encoder
        assert isinstance(encoder, Transformer)
        ids = torch.randint(encoder.vocabulary, (size, encoder.tokens), generator=self.generator)
        drawn = torch.rand((size, max(1, round(self.workload.positives))), generator=self.generator)
        labels = (self.workload.num_labels * drawn.double() ** _SKEW).long().sort(dim=1).values
        fresh = torch.ones_like(labels, dtype=torch.bool)
        fresh[:, 1:] = labels[:, 1:] != labels[:, :-1]
        offsets = nn.functional.pad(fresh.sum(dim=1).cumsum(0), (1, 0))
        return ids.to(self.device), (offsets.to(self.device), labels[fresh].to(self.device))

    def autocast(self) -> torch.autocast:
        """What the encoder computes in."""
        mixed = getattr(self.workload.encoder, "autocast", False)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=mixed)

    def step(self, clock: "Clock") -> None:
        """Train on a batch."""
        with clock.part("data"):
            ids, positives = self.batch()
        with clock.part("encoder forward"), self.autocast():
            features = self.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
        with clock.part("output"):
            loss = self.output.step(features, positives, self.update)
        with clock.part("encoder backward"):
            loss.backward()
        with clock.part("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.loss = loss.detach()

    def held(self) -> dict[str, int]:
        """Bytes held between steps, by part."""
        states = [*self.optimizer.state.values()], [*self.update.state.values()]
        encoder, output = (sum(size_of(*state.values()) for state in found) for found in states)
        return {
            "encoder weights": size_of(self.encoder),
            "encoder optimizer": encoder,
            "output layer": size_of(self.output),
            "output optimizer": output,
        }


def build_bert(encoder: Transformer) -> nn.Module:
    """Return BERT of some sizes, random weights of the element's dtype; RoBERTa's sizes make it a RoBERTa."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=encoder.vocabulary,
        hidden_size=encoder.width,
        num_hidden_layers=encoder.layers,
        num_attention_heads=encoder.heads,
        intermediate_size=encoder.inner,
        max_position_embeddings=encoder.positions,
    )
    torch.manual_seed(0)
    model = BertModel(config, add_pooling_layer=False).train()
    if encoder.checkpointing:
        checkpoint_layers(model)
    return model.to(torch.bfloat16) if encoder.element == 2 else model


class Clock:
    """Seconds and peak bytes of parts, each over all steps."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}
        self.peaks: dict[str, int] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what is entered, alone on the device."""
        self._wait()
        forget_peak(self.device)
        started = time.perf_counter()
        yield
        self._wait()
        self.seconds.setdefault(name, []).append(time.perf_counter() - started)
        self.peaks[name] = max(self.peaks.get(name, 0), peak(self.device))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def check_gradients(device: torch.device) -> float:
    """Compare the encoder's gradients behind the fused pass with those behind `loss`; return the largest error.

    Raises:
        CheckError: they differ.
    """
    encoder = TINY.encoder
    assert isinstance(encoder, Transformer)
    found: list[dict[str, Tensor]] = []
    for checkpointing in (False, True):
        exact = replace(encoder, element=4, checkpointing=checkpointing)
        model = EndToEnd(replace(TINY, dtype="float32", encoder=exact), device)
        model.encoder.eval()  # without dropout
        ids, positives = model.batch()
        features = model.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
        by_loss = model.output.loss(features, positives) if not checkpointing else None
        (by_loss if by_loss is not None else model.output.step(features, positives, model.update)).backward()
        found.append({name: p.grad for name, p in model.encoder.named_parameters() if p.grad is not None})
    expected = {name: grad for name, grad in found[0].items() if grad.abs().max() > 1e-5}  # a key's bias has none
    return check("the encoder's gradient", found[1], expected, _TOLERANCE)


def measure(workload: Workload, device: torch.device, steps: int) -> dict[str, Any]:
    """Build and train; return seconds and bytes."""
    error = check_gradients(device)
    first = EndToEnd(TINY, device)  # what the first step of any model brings is not this model's
    first.step(Clock(device))
    first.output.rewire(0.25, first.update, step=1)
    before = held(device)
    clock = Clock(device)
    with clock.part("construction"):
        model = EndToEnd(workload, device)
    for _ in range(steps):
        model.step(clock)
    with clock.part("rewiring"):
        model.output.rewire(0.25, model.update, step=steps)
    if not model.loss.isfinite():
        raise ValueError(f"the loss ({model.loss.item()}) must be finite")
    return {
        "largest_error": error,
        "seconds": {name: min(values) for name, values in clock.seconds.items()},
        "held": model.held(),
        "peaks": {name: value - before for name, value in clock.peaks.items()},
    }


def _main(given: dict[str, Any]) -> None:
    values = dict(given["workload"])
    encoder = Transformer(**values.pop("encoder"))
    torch.set_num_threads(given["threads"])
    found = measure(Workload(**values, encoder=encoder), torch.device(given["device"]), given["steps"])
    print(json.dumps(found))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
