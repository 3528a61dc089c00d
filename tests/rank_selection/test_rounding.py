"""Rounding of ranks: never above full rank, where floating point is."""

import math

import pytest

from lowrank_jax.rank_selection.rounding import require_multiple, rounded_rank


# How many whole stable ranks make the published expression exceed full rank: found by hand.
@pytest.mark.parametrize(("full", "failures"), [(196, 7), (384, 17), (768, 51), (512, 0)])
def test_the_ceiling_of_a_rescaled_rank_stays_at_full_rank(full, failures):
    published = [math.ceil(sr * (full / sr)) for sr in range(1, full + 1)]
    assert sum(rank > full for rank in published) == failures
    for sr in range(1, full + 1):
        assert rounded_rank(sr * (full / sr), full) == full


@pytest.mark.parametrize("full", [196, 384, 768])
def test_every_rescaled_rank_is_the_ceiling_in_whole_numbers(full):
    for initial in range(1, full + 1, 7):
        for now in range(1, initial + 1):
            exact = -(-now * full // initial)
            assert rounded_rank(now * (full / initial), full) == exact


def test_bounds():
    assert rounded_rank(0.0, 10) == 1
    assert rounded_rank(2.2, 10, minimum=5) == 5
    assert rounded_rank(7.2, 10, minimum=5) == 8
    assert rounded_rank(11.5, 10) == 10
    assert rounded_rank(0.0, 10, minimum=0) == 1


@pytest.mark.parametrize("multiple", [1, 4, 8, 128])
def test_multiples(multiple):
    for full in (100, 128, 196):
        for estimate in range(1, full + 20):
            rank = rounded_rank(estimate, full, multiple_of=multiple)
            plain = rounded_rank(estimate, full)
            assert plain <= rank <= full
            assert rank == full or (rank % multiple == 0 and rank - plain < multiple)


@pytest.mark.parametrize("multiple", [0, -8, 8.0, True, "8"])
def test_no_multiple(multiple):
    with pytest.raises(ValueError, match=r"multiple_of=.*expected a whole number"):
        require_multiple(multiple)
