"""Top-k labels of every row, streamed over chunks: no (B, L) scores.

Selection runs on one int64 key, exact and associative over chunks and shards:

    key = order-preserving int32 of (score + 0.0) << 32 | (2^31 - 1 - label)

so that the higher score wins, and among equal scores the lower label.
"""

import torch
from torch import Tensor

from haste.ops._chunks import SortedPositives, chunks, groups_per_chunk
from haste.ops._fan_in import check_operands, transpose_features
from haste.ops._library import define

_LABEL_MASK = 2**31 - 1


def pack_keys(scores: Tensor, labels: Tensor) -> Tensor:
    """Return int64 keys that order by (score descending, label ascending) when sorted in descending order.

    Args:
        scores: float32, no NaN.
        labels: integers in [0, 2^31), broadcastable to scores.
    """
    bits = (scores + 0.0).contiguous().view(torch.int32)
    ordered = bits ^ ((bits >> 31) & _LABEL_MASK)
    return (ordered.long() << 32) | (_LABEL_MASK - labels.long())


def unpack_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return (scores float32, labels int64) of keys; label -1 where the score is -inf."""
    ordered = (keys >> 32).to(torch.int32)
    scores = (ordered ^ ((ordered >> 31) & _LABEL_MASK)).view(torch.float32)
    labels = _LABEL_MASK - (keys & _LABEL_MASK)
    return scores, labels.masked_fill_(scores == -torch.inf, -1)


def _topk(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    indices: Tensor | None,
    row_labels: Tensor | None,
    num_labels: int,
    k: int,
    exclude_offsets: Tensor | None,
    exclude_rows: Tensor | None,
) -> Tensor:
    features_t, batch = transpose_features(features), len(features)
    best = torch.full(
        (batch, k),
        int(pack_keys(torch.tensor(-torch.inf), torch.tensor(_LABEL_MASK))),
        device=features.device,
    )
    per_chunk, excluded = _per_chunk(weight, batch, indices), None
    if exclude_offsets is not None and exclude_rows is not None:
        excluded = SortedPositives(exclude_offsets, exclude_rows, weight, per_chunk)
    for chunk in chunks(features_t, weight, bias, indices, per_chunk=per_chunk):
        rows = torch.arange(chunk.first_row, min(num_labels, chunk.stop * chunk.group_size), device=features.device)
        scores = chunk.logits().view(-1, batch)[: len(rows)].t().float()
        if scores.isnan().any():
            raise ValueError("scores must not be NaN; the features or the weights of this layer are not finite")
        if excluded is not None:
            here, points = excluded.of(chunk)
            scores[points, here] = -torch.inf
        keys = pack_keys(scores, rows if row_labels is None else row_labels[rows])
        best = torch.cat((best, keys.topk(min(k, len(rows)), dim=1).values), dim=1).topk(k, dim=1).values
    return best.sort(dim=1, descending=True).values


def _per_chunk(weight: Tensor, batch: int, indices: Tensor | None) -> int:
    # The int64 keys and their copies weigh more than what a training chunk holds per label.
    return max(1, min(groups_per_chunk(weight, batch, indices), (1 << 22) // (weight.shape[1] * max(batch, 1))))


def _topk_fake(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    indices: Tensor | None,
    row_labels: Tensor | None,
    num_labels: int,
    k: int,
    exclude_offsets: Tensor | None,
    exclude_rows: Tensor | None,
) -> Tensor:
    return features.new_empty((features.shape[0], k), dtype=torch.int64)


topk_op = define(
    "topk(Tensor features, Tensor weight, Tensor bias, Tensor? indices, Tensor? row_labels, int num_labels, int k, "
    "Tensor? exclude_offsets, Tensor? exclude_rows) -> Tensor",
    _topk_fake,
    _topk,
)


def topk(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    indices: Tensor | None,
    *,
    num_labels: int,
    k: int,
    exclude: tuple[Tensor, Tensor] | None = None,
    row_labels: Tensor | None = None,
) -> Tensor:
    """Return the keys of the k best labels of every row, best first.

    Args:
        features, weight, bias, indices, num_labels: as `haste.ops.fan_in`.
        k: labels to return; more than num_labels are filled up.
        exclude: CSR (offsets (B + 1,), rows) of layer rows that may not be returned.
        row_labels: (num_labels,) label of every layer row; default the row itself.

    Returns:
        int64 (B, k), see `unpack_keys`; no gradient.

    Raises:
        ValueError: k < 1, or a score is NaN.
    """
    check_operands(features, weight, bias, indices, num_labels)
    if k < 1:
        raise ValueError(f"k ({k}) must be at least 1")
    offsets, rows = (None, None) if exclude is None else exclude
    return topk_op(features.detach(), weight.detach(), bias.detach(), indices, row_labels, num_labels, k, offsets, rows)
