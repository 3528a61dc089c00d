"""The properties of the data order."""

import jax
import numpy as np
import pytest

from experiments.data.example_order import (
    batch_indices,
    epoch_permutation,
    padded_evaluation_indices,
    steps_per_epoch,
)


def test_order_is_the_documented_one():
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), 0xDA7A), 2)
    expected = jax.random.permutation(key, 50)
    np.testing.assert_array_equal(epoch_permutation(7, 2, 50), expected)


def test_every_epoch_is_a_different_permutation_without_the_partial_batch():
    n, batch_size = 53, 8
    steps = steps_per_epoch(n, batch_size)
    assert steps == 6
    epochs = []
    for epoch in range(3):
        batches = [batch_indices(1, epoch * steps + i, n, batch_size) for i in range(steps)]
        seen = np.concatenate(batches)
        assert len(set(seen.tolist())) == steps * batch_size
        permutation = np.asarray(epoch_permutation(1, epoch, n))
        assert sorted(permutation.tolist()) == list(range(n))
        np.testing.assert_array_equal(seen, permutation[: steps * batch_size])
        epochs.append(seen)
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])
    assert not np.array_equal(epochs[0], np.asarray(batch_indices(2, 0, n, 48)))


def test_steps_out_of_order_give_the_same_batches():
    in_order = [np.asarray(batch_indices(5, step, 40, 8)) for step in range(12)]
    for step in np.random.default_rng(0).permutation(12):
        np.testing.assert_array_equal(batch_indices(5, int(step), 40, 8), in_order[step])
        with jax.disable_jit():
            np.testing.assert_array_equal(batch_indices(5, int(step), 40, 8), in_order[step])


@pytest.mark.parametrize("batch_size", [0, 11])
def test_an_epoch_without_a_batch_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch size {batch_size} with 10 training examples"):
        steps_per_epoch(10, batch_size)


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (8, 4), (3, 5), (1, 1)])
def test_evaluation_counts_every_example_once(n, batch_size):
    indices, valid = padded_evaluation_indices(n, batch_size)
    assert indices.shape == valid.shape == (-(-n // batch_size), batch_size)
    assert indices[valid].tolist() == list(range(n))
    assert indices.min() >= 0 and indices.max() < n
