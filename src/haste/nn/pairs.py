"""Logits of chosen pairs of document and label, where those of all labels would be too many."""

import torch
from torch import Tensor

from haste.nn.linear import FanInLinear

_ELEMENTS = 1 << 22  # weights gathered at a time


@torch.no_grad()
def pair_logits(layer: FanInLinear, features: Tensor, points: Tensor, rows: Tensor) -> Tensor:
    """Return the logits of pairs, (P,) float32: row r = k S + s of document b.

        logits[p] = sum_f features[b, indices[k, f]] * weight[k, s, f] + bias[k, s]

    Args:
        layer: of G groups of S rows.
        features: (B, H).
        points: (P,) int64, documents b in [0, B).
        rows: (P,) int64 in [0, num_labels).
    """
    weight, bias, read = layer.weight.flatten(0, 1), layer.bias.flatten(), layer.indices
    out = torch.empty(len(rows), dtype=torch.float32, device=features.device)
    length = max(1, _ELEMENTS // weight.shape[1])
    for start in range(0, len(rows), length):
        here = slice(start, start + length)
        b, r = points[here], rows[here]
        x = features[b] if read is None else features[b[:, None], read[r // layer.group_size].long()]
        out[here] = (x.float() * weight[r].float()).sum(dim=1) + bias[r].float()
    return out
