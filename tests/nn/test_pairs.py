import pytest
import torch

from haste.nn import HeadTail


@pytest.mark.parametrize(("head", "fan_in", "group_size"), [(8, 5, 4), (0, 5, 1), (20, 5, 4), (4, 0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_pairs_are_logits(head: int, fan_in: int, group_size: int, dtype: torch.dtype, monkeypatch) -> None:
    monkeypatch.setattr("haste.nn.pairs._ELEMENTS", 12)  # a few pairs at a time
    output = HeadTail(9, 20, num_head_labels=head, fan_in=fan_in, group_size=group_size, dtype=dtype, seed=1).eval()
    generator = torch.Generator().manual_seed(0)
    output.set_label_order(torch.randperm(20, generator=generator))
    features = torch.randn((3, 9), generator=generator)
    for layer in output.layers():
        layer.bias.data.normal_(generator=generator)
    labels = torch.tensor([4, 19, 0, 7, 7, 3, 11, 12, 13])
    pairs = torch.tensor([0, 4, 4, 9]), labels
    found = output.scores(features, pairs)
    points = torch.tensor([0, 0, 0, 0, 2, 2, 2, 2, 2])
    expected = output(features)[points, labels]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-2)
    if dtype == torch.float32:
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)
