"""Length buckets: shapes, what an epoch visits, and that it depends on seed and epoch alone."""

import collections

import numpy as np
import pytest

from experiments.data.buckets import Bucket, Buckets


def lengths_of(seed, n, longest=64):
    """Skewed as lengths of sentences are; the longest occurs."""
    lengths = np.random.default_rng(seed).geometric(0.06, n).clip(2, longest)
    lengths[n // 2] = longest
    return lengths


def cut(buckets, seed, epoch):
    """The batches as a training loop cuts them: their shapes, and their examples."""
    batches, order = buckets.batches(seed, epoch), buckets.order(seed, epoch)
    ends = np.cumsum([batch.size for batch in batches])
    assert ends[-1] == len(order)
    return list(zip(batches, np.split(order, ends[:-1]), strict=True))


@pytest.mark.parametrize(
    ("lengths", "tokens", "expected"),
    [
        ([5, 16, 9], 32, [Bucket(2, 16)]),
        ([5, 16, 17], 64, [Bucket(2, 16), Bucket(1, 17)]),
        ([1] * 9, 4, [Bucket(4, 1)]),
        ([64, 33] * 4 + [3] * 99, 256, [Bucket(16, 16), Bucket(4, 64)]),  # none of 17 to 32
        ([200] * 3 + [100] * 5, 300, [Bucket(2, 128), Bucket(1, 200)]),
        ([50], 10, [Bucket(1, 50)]),  # longer than the budget
        ([16] * 99 + [32] * 15, 500, [Bucket(24, 16), Bucket(8, 32)]),  # multiples of eight
    ],
)
def test_shapes(lengths, tokens, expected):
    assert list(Buckets(np.array(lengths), tokens).buckets) == expected


@pytest.mark.parametrize(("n", "tokens"), [(500, 256), (37, 4000)])
def test_every_batch_is_full_and_holds_what_fits(n, tokens):
    lengths = lengths_of(0, n)
    buckets = Buckets(lengths, tokens)
    lower = {16: 0, 32: 16, 64: 32}
    for epoch in range(3):
        batches = cut(buckets, seed=1, epoch=epoch)
        assert len(batches) == buckets.batches_per_epoch
        for bucket, examples in batches:
            assert len(examples) == bucket.size
            assert bucket.size * bucket.length <= max(tokens, bucket.length)
            assert (lengths[examples] <= bucket.length).all()
            assert (lengths[examples] > lower[bucket.length]).all()
        visited = np.concatenate([examples for _, examples in batches])
        assert len(set(visited.tolist())) == len(visited)  # nothing twice
        # what is left out is less than a batch of each bucket
        left = collections.Counter(
            min(b.length for b in buckets.buckets if b.length >= lengths[i])
            for i in set(range(n)) - set(visited.tolist())
        )
        assert all(left[bucket.length] < bucket.size for bucket in buckets.buckets)


def test_a_bucket_with_too_few_examples_loses_none():
    lengths = np.array([3] * 40 + [60, 61])
    buckets = Buckets(lengths, tokens=640)
    assert buckets.buckets == (Bucket(40, 16), Bucket(2, 61))
    assert buckets.batches_per_epoch == 2


def test_members_are_a_partition_by_length():
    lengths = lengths_of(0, 300)
    buckets = Buckets(lengths, tokens=256)
    members = [buckets.members(number) for number in range(len(buckets.buckets))]
    assert sorted(np.concatenate(members).tolist()) == list(range(300))
    for bucket, rows in zip(buckets.buckets, members, strict=True):
        nearest = [min(b.length for b in buckets.buckets if b.length >= n) for n in lengths[rows]]
        assert set(nearest) == {bucket.length}


def test_an_epoch_is_a_function_of_seed_and_epoch():
    lengths = lengths_of(0, 500)
    buckets, again = Buckets(lengths, 256), Buckets(lengths.astype(np.int32), 256)
    orders = {}
    for seed, epoch in [(0, 0), (0, 1), (1, 0), (0, 2)]:
        orders[seed, epoch] = buckets.order(seed, epoch)
        assert orders[seed, epoch].dtype == np.int32
    for (seed, epoch), order in reversed(orders.items()):
        np.testing.assert_array_equal(again.order(seed, epoch), order)
        assert again.batches(seed, epoch) == buckets.batches(seed, epoch)
    assert len({order.tobytes() for order in orders.values()}) == len(orders)


def test_every_epoch_has_the_same_batches_in_another_order():
    buckets = Buckets(lengths_of(0, 500), 256)
    epochs = [buckets.batches(0, epoch) for epoch in range(4)]
    counts = [collections.Counter(batches) for batches in epochs]
    assert counts[1:] == counts[:1] * 3
    assert len(set(map(tuple, epochs))) == 4


def test_what_is_left_out_differs_and_nothing_is_left_out_for_ever():
    lengths = np.full(10, 16)
    buckets = Buckets(lengths, 48)  # three batches of three
    left = [set(range(10)) - set(buckets.order(0, epoch).tolist()) for epoch in range(40)]
    assert all(len(one) == 1 for one in left)
    assert len(set().union(*left)) > 7


def test_batches_are_visited_in_a_uniform_order():
    # one batch of each of two shapes: either is first in about half of the epochs
    buckets = Buckets(np.array([4] * 4 + [40] * 4), tokens=160)
    assert buckets.batches_per_epoch == 2
    first = sum(buckets.batches(0, epoch)[0].length == 16 for epoch in range(200))
    assert 70 < first < 130


@pytest.mark.parametrize(("lengths", "tokens"), [([], 10), ([3], 0)])
def test_nothing_to_batch(lengths, tokens):
    with pytest.raises(ValueError, match=r"examples in batches of \d+ tokens: expected at least 1"):
        Buckets(np.array(lengths, np.int32), tokens)
