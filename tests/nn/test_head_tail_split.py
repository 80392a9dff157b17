"""Splitting positives between head and tail where only the device knows the counts, here done on the CPU."""

import torch

from haste import nn
from haste.nn.output import split_rows


def test_split_rows_is_the_split_of_the_cpu() -> None:
    layer = nn.HeadTail(8, 30, num_head_labels=7, fan_in=4, group_size=4, label_order=torch.randperm(30))
    offsets = torch.tensor([0, 3, 3, 7, 9])
    labels = torch.tensor([4, 29, 11, 0, 8, 6, 17, 2, 21])
    expected = layer.split_labels((offsets, labels), 4)
    capacity = torch.cat((labels, torch.tensor([3, 3, 3])))
    held = torch.arange(12) < 9
    found = split_rows(offsets, layer.row_of_label[capacity], held, 7)
    for (bounds, rows), (wanted_bounds, wanted) in zip(found, expected, strict=True):
        assert torch.equal(bounds, wanted_bounds)
        assert len(rows) == 12
        assert torch.equal(rows[: len(wanted)], wanted)
