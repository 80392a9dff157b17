"""Output weights that start from what the labels' documents look like to the encoder."""

from collections.abc import Iterable

import torch
from torch import Tensor

from haste.nn.linear import FanInLinear, Positives
from haste.nn.output import HeadTail

_SHRINK = 3.0  # documents that a label's mean is held against
_PAIRS = 1 << 22  # numbers of pairs of document and label taken at a time


@torch.no_grad()
def start_from_documents(output: HeadTail, batches: Iterable[tuple[Tensor, Positives]]) -> None:
    """Start every label's weights from the mean features of its documents, read through the inputs of its group.

        weight = n / (n + 3) * (mean over the label's n documents - mean over all) / (F * variance)

    variance is the mean over the inputs of the layer; a label without any document keeps the weights it has.

    Args:
        output: in evaluation mode, rows and inputs in place.
        batches: (features (B, H) of this module, positives as labels, CSR), every training document once.

    Accumulates in float32, the moments of the features in float64. Memory: one more copy of the weights, in float32.
    """
    sums = [_Sums(layer) for layer in output.layers()]
    for features, positives in batches:
        parts = zip((output.head, output.tail), output.split_features(features), strict=True)
        inputs = [x for layer, x in parts if layer is not None]
        rows = zip((output.head, output.tail), output.split_labels(positives, len(features)), strict=True)
        labels = [p for layer, p in rows if layer is not None]
        for layer_sums, x, p in zip(sums, inputs, labels, strict=True):
            layer_sums.add(x.float(), p)
    for layer_sums in sums:
        layer_sums.write()


class _Sums:
    """Sums over documents for one layer."""

    def __init__(self, layer: FanInLinear) -> None:
        self.layer, device = layer, layer.weight.device
        self.of_label = torch.zeros((layer.num_groups * layer.group_size, layer.fan_in), device=device)
        self.counts = torch.zeros(len(self.of_label), device=device)
        self.moments = torch.zeros((2, layer.in_features), dtype=torch.float64, device=device)
        self.documents = 0

    def add(self, x: Tensor, positives: Positives) -> None:
        offsets, rows = positives
        wide = x.double()
        self.moments += torch.stack((wide.sum(dim=0), wide.square().sum(dim=0)))
        self.documents += len(x)
        held = int(offsets[-1])
        document = torch.repeat_interleave(offsets.diff(), output_size=held)
        size, indices = max(1, _PAIRS // x.shape[1]), self.layer.indices
        for start in range(0, held, size):
            here = rows[start : min(start + size, held)]
            values = x[document[start : start + size]]
            if indices is not None:
                values = values.gather(1, indices[here // self.layer.group_size].long())
            self.of_label.index_add_(0, here, values)
            self.counts.index_add_(0, here, torch.ones_like(here, dtype=torch.float32))

    def write(self) -> None:
        layer, groups, size = self.layer, self.layer.num_groups, self.layer.group_size
        mean, square = self.moments / max(1, self.documents)
        variance = (square - mean.square()).clamp_(min=0).mean().clamp_(min=torch.finfo(torch.float32).tiny)
        scale = (1 / (layer.fan_in * variance)).float()
        weight, mean = layer.weight.data.view(-1, layer.fan_in), mean.float()
        length = max(1, _PAIRS // (size * layer.fan_in))
        for first in range(0, groups, length):
            rows = slice(first * size, (first + length) * size)
            count = self.counts[rows, None]
            inputs = slice(first, first + length)
            of_all = mean.expand(1, -1)
            if layer.indices is not None:
                of_all = mean[layer.indices[inputs].long()].repeat_interleave(size, dim=0)
            start = (self.of_label[rows] / count.clamp(min=1) - of_all) * (count / (count + _SHRINK)) * scale
            weight[rows] = torch.where(count > 0, start.to(weight.dtype), weight[rows])
