"""Which documents come in a step, how many pads they need, and that a thread ahead changes nothing."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from haste.config import Config, Data
from haste.data.dataset import Split, load_dataset
from haste.data.tokens import Tokenizer
from haste.train.batches import Batches, batch_of, epoch_order, pad_share

CPU = torch.device("cpu")
LENGTHS = np.random.default_rng(0).integers(3, 60, 1003)


@pytest.mark.parametrize("buckets", [0, 1, 4, 1000])
def test_every_epoch_has_every_document_once(buckets: int) -> None:
    orders = []
    for epoch in range(2):
        order, bounds = epoch_order(np.arange(1003), 32, seed=5, epoch=epoch, lengths=LENGTHS, buckets=buckets)
        assert sorted(order) == list(range(1003))
        assert (bounds[0], bounds[-1], len(bounds)) == (0, 1003, 33)
        assert sorted(np.diff(bounds)) == [11, *[32] * 31]
        orders.append(order)
    assert not np.array_equal(*orders)
    again, _ = epoch_order(np.arange(1003), 32, seed=5, epoch=1, lengths=LENGTHS, buckets=buckets)
    assert np.array_equal(orders[1], again)


def test_without_lengths_the_order_is_the_permutation() -> None:
    order, bounds = epoch_order(np.arange(10), 4, seed=5, epoch=2)
    assert np.array_equal(order, np.random.default_rng((5, 1, 2)).permutation(10))
    assert bounds.tolist() == [0, 4, 8, 10]


def test_buckets_save_pads_and_shuffle_batches() -> None:
    shares = []
    for buckets in (0, 4, 32):
        order, bounds = epoch_order(np.arange(1003), 32, seed=5, epoch=0, lengths=LENGTHS, buckets=buckets)
        batches = [LENGTHS[order[a:b]] for a, b in itertools.pairwise(bounds)]
        padded = sum(len(batch) * batch.max() for batch in batches)
        shares.append(pad_share(LENGTHS, order, bounds))
        assert shares[-1] == pytest.approx(1 - LENGTHS.sum() / padded)
    assert shares[0] > 0.4 > 0.2 > shares[1] > 0.05 > shares[2]
    longest = [batch.max() for batch in batches]
    assert longest != sorted(longest)


@pytest.fixture
def split(tiny_data: Path, tiny_bert: Path) -> Split:
    tokenizer = Tokenizer.pretrained(str(tiny_bert), 40)
    return load_dataset(Data(path=str(tiny_data)), seed=0, tokenizer=tokenizer, log=lambda line: None).train


def test_batches_made_ahead_are_those_asked_for(split: Split) -> None:
    batches = Batches(split, 32, seed=3, device=CPU, buckets=3)
    assert batches.steps_per_epoch == 8
    for step in (0, 1, 2, 7, 8, 3, 3):  # on, over an epoch's end, and back as after a resume
        found, rows = batches.take(step), batches.rows(step)
        documents, positives = batch_of(split, rows, CPU)
        for parts in (zip(found.documents, documents, strict=True), zip(found.positives, positives, strict=True)):
            assert all(torch.equal(x, y) for x, y in parts)
        assert (found.size, found.tokens) == (len(rows), int(batches.lengths[rows].sum()))
    shares = batches.pads()
    assert 0 < shares["pads"] < shares["pads_without_buckets"] < 1


def test_a_batch_has_a_mask_where_it_has_pads(split: Split) -> None:
    lengths = split.features.lengths
    longest = np.flatnonzero(lengths == lengths.max())[:3]
    (ids,), _ = batch_of(split, longest, CPU)
    assert ids.shape == (3, lengths.max())
    rows = np.append(longest, lengths.argmin())
    documents, _ = batch_of(split, rows, CPU)
    assert documents[1].sum(dim=1).tolist() == lengths[rows].tolist()


def test_features_are_not_bucketed(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config()
    split = load_dataset(config.data, seed=0, log=lambda line: None).train
    batches = Batches(split, 32, seed=3, device=CPU, buckets=50)
    assert np.array_equal(batches.rows(8), epoch_order(np.arange(240), 32, seed=3, epoch=1)[0][:32])
    assert (batches.take(0).tokens, batches.pads()) == (0, {})


def test_what_goes_wrong_ahead_is_raised_when_it_is_asked_for(split: Split) -> None:
    batches = Batches(split, 32, seed=3, device=CPU)
    made = batches._make

    def broken(step: int):  # type: ignore[no-untyped-def]
        if step == 1:
            raise OSError("the disk is gone")
        return made(step)

    batches._make = broken  # type: ignore[method-assign]
    batches.take(0)
    with pytest.raises(OSError, match="the disk is gone"):
        batches.take(1)
