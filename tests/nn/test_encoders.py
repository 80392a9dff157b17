import pytest
import torch
from torch import Tensor

from haste import optim
from haste.nn import Bag
from layer_cases import leaf

OFFSETS = torch.tensor([0, 3, 3, 4, 8])
TERMS = torch.tensor([2, 7, 19, 7, 0, 2, 5, 11])
VALUES = torch.tensor([0.5, -1.0, 0.25, 2.0, 1.0, 0.125, 3.0, -0.5])
BATCH = (OFFSETS, TERMS, VALUES)


def _matrix(values: Tensor = VALUES) -> Tensor:
    documents = torch.repeat_interleave(torch.arange(4), OFFSETS.diff())
    return torch.zeros(4, 20).index_put((documents, TERMS), values)


@pytest.mark.parametrize("hidden", [0, 6])
def test_features_and_gradients_are_those_of_a_dense_product(hidden: int) -> None:
    bag = Bag(20, 9, hidden, dropout=0.3).eval()
    bag.bias.data.uniform_(0, 0.1, generator=torch.Generator().manual_seed(0))
    features = bag(BATCH)
    weight, bias = leaf(bag.embedding), leaf(bag.bias)
    expected = torch.relu(_matrix() @ weight + bias)
    if bag.linear is not None:
        expected = torch.relu(bag.linear(expected))
    assert features.shape == (4, 9)
    torch.testing.assert_close(features, expected)

    slope = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    features.backward(slope)
    expected.backward(slope)
    found = bag.embedding.grad
    assert found._indices()[0].tolist() == [0, 2, 5, 7, 11, 19]  # every term once, in order
    torch.testing.assert_close(found.to_dense(), weight.grad)
    torch.testing.assert_close(bag.bias.grad, bias.grad)


def test_terms_may_repeat_and_stand_in_any_order() -> None:
    bag = Bag(20, 9)
    repeated = (torch.tensor([0, 3]), torch.tensor([7, 2, 7]), torch.tensor([1.0, 2.0, 3.0]))
    merged = (torch.tensor([0, 2]), torch.tensor([2, 7]), torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(bag(repeated), bag(merged))
    gradients = [torch.autograd.grad(bag(batch).sum(), bag.embedding)[0].to_dense() for batch in (repeated, merged)]
    torch.testing.assert_close(*gradients)


def test_only_the_terms_of_the_batch_are_updated() -> None:
    bag = Bag(20, 9)
    bag.bias.data.fill_(1.0)
    before = bag.embedding.detach().clone()
    update = optim.AdamW(bag.parameters(), lr=0.1, weight_decay=0.1)
    bag(BATCH).sum().backward()
    update.step()
    changed = (bag.embedding != before).all(dim=1).nonzero()[:, 0]
    assert changed.tolist() == [0, 2, 5, 7, 11, 19]
    untouched = torch.ones(20, dtype=torch.bool)
    untouched[changed] = False
    assert torch.equal(bag.embedding[untouched], before[untouched])


def test_dropout_acts_in_training_alone() -> None:
    bag = Bag(20, 9, 64, dropout=0.5)
    assert not torch.equal(bag(BATCH), bag(BATCH))
    bag.eval()
    assert torch.equal(bag(BATCH), bag(BATCH))


def test_initial_values_follow_the_seed() -> None:
    first, again, other = Bag(20, 9, 6, seed=1), Bag(20, 9, 6, seed=1), Bag(20, 9, 6, seed=2)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(first.embedding, other.embedding)
    assert not torch.equal(first.linear.weight, other.linear.weight)
    assert not first.bias.any()
    assert not first.linear.bias.any()


def test_autocast() -> None:
    bag = Bag(20, 9, 6).eval()
    expected = bag(BATCH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = bag(BATCH)
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.01)
    found.float().sum().backward()
    assert bag.embedding.grad.to_dense().isfinite().all()


def test_documents_without_terms() -> None:
    empty = (torch.zeros(3, dtype=torch.int64), TERMS[:0], VALUES[:0])
    bag = Bag(20, 9)
    bag.bias.data.fill_(0.5)
    features = bag(empty)
    assert torch.equal(features, torch.full((2, 9), 0.5))
    features.sum().backward()
    assert not bag.embedding.grad.to_dense().any()


@pytest.mark.parametrize(("term", "found"), [(20, "0 to 20"), (-1, "-1 to 11")])
def test_terms_out_of_range(term: int, found: str) -> None:
    terms = TERMS.clone()
    terms[2] = term
    with pytest.raises(ValueError, match=rf"terms \({found}\) must be in \[0, 20\), num_inputs; encode texts with the"):
        Bag(20, 9)((OFFSETS, terms, VALUES))


@pytest.mark.parametrize("sizes", [(0, 9, 0), (20, 0, 0), (20, 9, -1)])
def test_sizes_that_do_not_fit(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"must be at least 1, hidden .* at least 0"):
        Bag(*sizes)
