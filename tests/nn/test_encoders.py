import pytest
import torch
from torch import Tensor, nn

from haste import optim
from haste.nn import Bag, Features
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
    message = rf"columns \({found}\) must be in \[0, 20\), num_inputs; give the features, or encode texts with the vec"
    for encoder in (Bag(20, 9), Features(20)):
        with pytest.raises(ValueError, match=message):
            encoder((OFFSETS, terms, VALUES))


@pytest.mark.parametrize("sizes", [(0, 9, 0), (20, 0, 0), (20, 9, -1)])
def test_sizes_that_do_not_fit(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"must be at least 1, hidden .* at least 0"):
        Bag(*sizes)


@pytest.mark.parametrize("kind", ["csr", "dense"])
@pytest.mark.parametrize(("features", "hidden"), [(0, 0), (9, 0), (9, 6)])
def test_given_features_go_through_no_or_one_or_two_layers(kind: str, features: int, hidden: int) -> None:
    encoder = Features(20, features, hidden, dropout=0.3).eval()
    assert encoder.out_features == (features or 20)
    expected = _matrix()
    for layer in (encoder.first, encoder.linear):
        if layer is not None:
            layer.bias.data.uniform_(0, 0.1, generator=torch.Generator().manual_seed(0))
            expected = torch.relu(expected @ layer.weight.T + layer.bias)
    found = encoder(BATCH if kind == "csr" else _matrix())
    assert found.shape == (4, encoder.out_features)
    torch.testing.assert_close(found, expected)
    assert found.t().is_contiguous() == (kind == "csr" and not features)  # as the output layer reads them on a CPU
    assert len(list(encoder.parameters())) == 2 * (features > 0) + 2 * (hidden > 0)


def test_columns_of_given_features_may_repeat() -> None:
    repeated = (torch.tensor([0, 3]), torch.tensor([7, 2, 7]), torch.tensor([1.0, 2.0, 3.0]))
    found = Features(20)(repeated)
    assert found[0, [2, 7]].tolist() == [2.0, 4.0]
    assert found.count_nonzero() == 2


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_documents_of_unit_length(scale: float) -> None:
    """Also where their squares are beyond float32, and a document of zeros stays one."""
    unit = nn.functional.normalize(_matrix().double(), dim=1).float()
    straight = Features(20, normalize=True)
    torch.testing.assert_close(straight(scale * _matrix()), unit)
    torch.testing.assert_close(straight((OFFSETS, TERMS, scale * VALUES)), unit)
    assert not unit[1].any()
    bag, plain = Bag(20, 9, normalize=True), Bag(20, 9)
    documents = torch.repeat_interleave(torch.arange(4), OFFSETS.diff())
    torch.testing.assert_close(
        bag((OFFSETS, TERMS, scale * VALUES)), plain((OFFSETS, TERMS, unit[documents, TERMS].contiguous()))
    )


def test_dropout_of_given_features_acts_between_the_layers_in_training() -> None:
    encoder = Features(20, 9, 64, dropout=0.5)
    assert not torch.equal(encoder(_matrix()), encoder(_matrix()))
    encoder.eval()
    assert torch.equal(encoder(_matrix()), encoder(_matrix()))


def test_initial_values_of_given_features_follow_the_seed() -> None:
    first, again, other = Features(20, 9, 6, seed=1), Features(20, 9, 6, seed=1), Features(20, 9, 6, seed=2)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert torch.equal(tensor, other.state_dict()[name]) == name.endswith("bias")


def test_given_features_of_another_shape() -> None:
    with pytest.raises(
        ValueError, match=r"documents \(4, 20\) must have shape \(batch, 19\), num_inputs; give the feat"
    ):
        Features(19)(_matrix())
    with pytest.raises(ValueError, match=r"documents \(4, 20\) must be CSR for a bag; use encoder.kind: features"):
        Bag(20, 9)(_matrix())
    wide = Features(65_537)
    assert wide(torch.ones(1, 65_537)).shape == (1, 65_537)
    with pytest.raises(ValueError, match=r"num_inputs \(65,537\) must not exceed 65,536 for .*; use encoder.kind: bag"):
        wide(BATCH)


@pytest.mark.parametrize("sizes", [(0, 9, 0), (20, -1, 0), (20, 9, -1), (20, 0, 4)])
def test_sizes_of_given_features_that_do_not_fit(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(
        ValueError, match=r"num_inputs .* must be at least 1, features .* and hidden .* at least 0, and"
    ):
        Features(*sizes)


@pytest.mark.parametrize("hidden", [0, 7])
def test_a_bfloat16_bag_is_the_float32_one_but_for_rounding(hidden: int) -> None:
    wide = Bag(30, 5, hidden, normalize=True, seed=1)
    narrow = Bag(30, 5, hidden, normalize=True, seed=1).to(torch.bfloat16)
    wide.load_state_dict({name: tensor.float() for name, tensor in narrow.state_dict().items()})
    batch = torch.tensor([0, 3, 3, 5]), torch.tensor([4, 9, 29, 0, 4]), torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0])
    results = [encoder(batch) for encoder in (wide, narrow)]
    assert results[1].dtype == torch.bfloat16
    torch.testing.assert_close(results[1].float(), results[0], rtol=2e-2, atol=1e-3)
    for result in results:
        (result.float() * torch.arange(1.0, 16.0).view(3, 5)).sum().backward()
    found, expected = narrow.embedding.grad, wide.embedding.grad
    assert found.is_sparse
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.to_dense().float(), expected.to_dense(), rtol=3e-2, atol=1e-2)


def test_bfloat16_layers_of_given_features() -> None:
    encoder = Features(6, 4, seed=1).to(torch.bfloat16)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    expected = torch.relu(x @ encoder.first.weight.float().t())
    torch.testing.assert_close(encoder(x).float(), expected, rtol=2e-2, atol=2e-3)
