"""Masking: its statistics against what is published, and rows that are not full."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.masking import is_subword, mask, number_of_places
from experiments.special_tokens import BOS, EOS, MASK, PAD

VOCABULARY = 1000
LENGTH = 128


def rows(count: int, length: int = LENGTH, seed: int = 0) -> jax.Array:
    """Full rows of random subwords behind BOS."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(MASK + 1, VOCABULARY, (count, length), np.int32)
    tokens[:, 0] = BOS
    return jnp.asarray(tokens)


def masked(tokens: jax.Array, seed: int = 0):
    keys = jax.random.split(jax.random.key(seed), len(tokens))
    return jax.vmap(mask, in_axes=(0, 0, None))(keys, tokens, VOCABULARY)


def test_fifteen_percent_of_which_eighty_ten_and_ten() -> None:
    tokens = rows(4000)
    found = masked(tokens)
    assert found.places.shape == (4000, number_of_places(LENGTH)) == (4000, 19)
    assert bool(found.counted.all())
    np.testing.assert_allclose(found.counted.sum() / (4000 * (LENGTH - 1)), 0.15, atol=5e-4)
    now = jnp.take_along_axis(found.tokens, found.places, 1)
    n = now.size
    # Five standard deviations of a binomial share; one in 995 of the random ones is the same again.
    same = 0.1 + 0.1 / (VOCABULARY - MASK - 1)
    for share, expected in (
        (jnp.mean(now == MASK), 0.8),
        (jnp.mean(now == found.targets), same),
        (jnp.mean((now != MASK) & (now != found.targets)), 0.2 - same),
    ):
        assert abs(float(share) - expected) < 5 * np.sqrt(expected * (1 - expected) / n)


def test_places_are_distinct_and_uniform_and_replacements_uniform() -> None:
    tokens = rows(6000, seed=1)
    found = masked(tokens, seed=1)
    places = np.asarray(found.places)
    assert all(len(set(row)) == places.shape[1] for row in places.tolist())
    counts = np.bincount(places.ravel(), minlength=LENGTH)
    assert counts[0] == 0  # BOS
    expected = places.size / (LENGTH - 1)
    assert abs(counts[1:] - expected).max() < 5 * np.sqrt(expected)
    now = np.asarray(jnp.take_along_axis(found.tokens, found.places, 1))
    random = now[(now != MASK) & (now != np.asarray(found.targets))]
    assert random.min() >= MASK + 1 and random.max() < VOCABULARY
    assert abs(random.mean() - (MASK + VOCABULARY) / 2) < 5 * VOCABULARY / np.sqrt(12 * random.size)


def test_nothing_else_changes() -> None:
    tokens = rows(50)
    found = masked(tokens)
    np.testing.assert_array_equal(found.targets, jnp.take_along_axis(tokens, found.places, 1))
    for before, after, places in zip(tokens, found.tokens, found.places, strict=True):
        apart = np.flatnonzero(np.asarray(before) != np.asarray(after))
        assert set(apart) <= set(places.tolist())


@pytest.mark.parametrize(("subwords", "asked"), [(0, 0), (1, 1), (3, 1), (10, 2), (27, 4), (50, 8)])
def test_control_pieces_and_padding_are_never_asked_for(subwords: int, asked: int) -> None:
    row = np.full(LENGTH, PAD, np.int32)
    row[0] = BOS
    behind = np.arange(1, 2 * subwords, 2)  # EOS after every subword
    row[behind], row[behind + 1] = 7, EOS
    for seed in range(20):
        found = mask(jax.random.key(seed), jnp.asarray(row), VOCABULARY)
        assert int(found.counted.sum()) == asked == max(round(0.15 * subwords), bool(subwords))
        places = np.asarray(found.places)[np.asarray(found.counted)]
        assert set(places) <= set(behind)
        kept = np.setdiff1d(np.arange(LENGTH), places)
        np.testing.assert_array_equal(np.asarray(found.tokens)[kept], row[kept])


def test_the_same_key_masks_alike_and_another_does_not() -> None:
    row = rows(1)[0]
    one, again = mask(jax.random.key(3), row, VOCABULARY), mask(jax.random.key(3), row, VOCABULARY)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    other = mask(jax.random.key(4), row, VOCABULARY)
    assert not np.array_equal(one.places, other.places)


def test_control_pieces_are_no_subwords() -> None:
    assert is_subword(jnp.arange(MASK + 2)).tolist() == [False] * (MASK + 1) + [True]
