"""Rank rules against brute force, NumPy and the published ranks."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_jax import (
    ChannelLowRank,
    Energy,
    FixedRank,
    LowRank,
    ParamFraction,
    RankScale,
    Rule,
    SpatialLowRank,
    StableRank,
    break_even_rank,
)
from lowrank_jax.ranks import parameters

SIZES = st.integers(1, 12)


def scale_rank(scale, shape, kind=LowRank, **axes):
    return RankScale(scale).rank(kind, shape, axes, 2, None)


@pytest.mark.parametrize(
    ("out", "scale", "rank"),
    [
        *((16, s, r) for s, r in ((0.037, 2), (0.111, 5), (0.333, 16), (1.0, 48), (3.0, 144))),
        *((32, s, r) for s, r in ((0.037, 4), (0.111, 11), (0.333, 32), (1.0, 96), (9.0, 864))),
        *((64, s, r) for s, r in ((0.037, 7), (0.111, 21), (0.333, 64), (1.0, 192))),
    ],
)
def test_published_cifar_ranks(out, scale, rank):
    assert scale_rank(scale, (3, 3, 16, out), SpatialLowRank) == rank


def test_published_wide_resnet_ranks():
    # WRN-28-10: 1x1 shortcuts to 160, 320 and 640 channels and 3x3 convolutions.
    shapes = {
        160: (1, 1, 16, 160),
        320: (1, 1, 160, 320),
        480: (3, 3, 160, 160),
        640: (1, 1, 320, 640),
        960: (3, 3, 320, 320),
        1920: (3, 3, 640, 640),
    }
    ranks = [scale_rank(0.031982421875, shape, SpatialLowRank) for shape in shapes.values()]
    assert ranks == [5, 10, 15, 20, 31, 61]


def test_each_kind_owns_its_base():
    shape = (3, 5, 4, 8)
    assert scale_rank(0.5, shape, SpatialLowRank) == 12  # of out * kh = 24, not of 20
    assert scale_rank(0.5, shape, ChannelLowRank) == 4  # of min(60, 8)
    assert scale_rank(0.5, (10, 6)) == 3
    assert scale_rank(0.5, (7, 10, 6)) == 3  # batch axes are no part of a kernel
    assert scale_rank(0.5, (6, 4, 8), in_axes=1, out_axes=2) == 3
    assert scale_rank(0.5, (4, 8, 6), in_axes=2, out_axes=1) == 3


def test_halves_round_to_even_but_the_channel_kind_truncates():
    assert [scale_rank(0.5, (n, n)) for n in (3, 5, 7, 9)] == [2, 2, 4, 4]
    assert [scale_rank(0.5, (1, 1, 9, n), SpatialLowRank) for n in (3, 5, 7, 9)] == [2, 2, 4, 4]
    assert [scale_rank(0.5, (1, 1, 9, n), ChannelLowRank) for n in (3, 5, 7, 9)] == [1, 2, 3, 4]
    assert scale_rank(0.99, (1, 1, 9, 9), ChannelLowRank) == 8


@pytest.mark.parametrize("kind", [LowRank, SpatialLowRank, ChannelLowRank])
def test_at_least_one(kind):
    shape = (4, 4) if kind is LowRank else (1, 1, 4, 4)
    assert scale_rank(1e-6, shape, kind) == 1


def counted(kind, shape, rank, depth):
    """Number of entries of the factors, written out per kind."""
    if kind is LowRank:
        (n_in, n_out), stack = shape[-2:], math.prod(shape[:-2])
        ends = n_in * rank + rank * n_out
    else:
        (kh, kw, n_in, n_out), stack = shape[-4:], math.prod(shape[:-4])
        if kind is SpatialLowRank:
            ends = kw * n_in * rank + kh * rank * n_out
        else:
            ends = kh * kw * n_in * rank + rank * n_out
    return stack * (ends + (rank * rank if depth == 3 else 0))


@st.composite
def kernels(draw):
    kind = draw(st.sampled_from([LowRank, SpatialLowRank, ChannelLowRank]))
    ndim = 2 if kind is LowRank else 4
    shape = tuple(draw(st.lists(SIZES, min_size=ndim, max_size=ndim)))
    batch = tuple(draw(st.lists(st.integers(1, 3), max_size=1)))
    return kind, batch + shape, draw(st.sampled_from([2, 3]))


@given(kernels(), st.integers(1, 30))
@settings(deadline=None, max_examples=50)
def test_parameters_of_a_weight(kernel, rank):
    kind, shape, depth = kernel
    assert parameters(kind, shape, rank, depth) == counted(kind, shape, rank, depth)


@given(kernels(), st.fractions(min_value="1/64", max_value=4, max_denominator=64))
@settings(deadline=None, max_examples=80)
def test_param_fraction_by_brute_force(kernel, fraction):
    kind, shape, depth = kernel
    fraction = math.floor(fraction * 64) / 64  # exact in binary
    budget = fraction * math.prod(shape)
    fits = [r for r in range(1, 600) if counted(kind, shape, r, depth) <= budget]
    assert ParamFraction(fraction).rank(kind, shape, {}, depth, None) == max(fits, default=1)


@given(kernels())
@settings(deadline=None, max_examples=80)
def test_break_even_by_brute_force(kernel):
    kind, shape, depth = kernel
    rank = next(r for r in range(1, 2000) if counted(kind, shape, r, depth) >= math.prod(shape))
    assert break_even_rank(shape, kind, depth) == rank


def test_break_even_of_a_large_kernel():
    assert break_even_rank((1024, 1024)) == 512
    assert break_even_rank((3, 3, 64, 64), SpatialLowRank) == 96
    assert break_even_rank((64, 4, 16), in_axes=1, out_axes=2) == 32


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=8),
    st.integers(1, 16),
)
@settings(deadline=None)
def test_energy_by_numpy(values, sixteenths):
    # Integer singular values and binary shares: no rounding anywhere.
    values = np.sort(np.array(values, np.float64))[::-1]
    share = sixteenths / 16
    total = np.sum(values**2)
    expected = next(
        r for r in range(1, len(values) + 1) if np.sum(values[:r] ** 2) >= share * total
    )
    assert Energy(share).rank(LowRank, (9, 9), {}, 2, lambda: values) == expected


def test_energy_and_stable_rank_of_a_stack_are_the_largest():
    stack = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert Energy(0.9).rank(LowRank, (2, 3, 3), {}, 2, lambda: stack) == 3
    assert StableRank().rank(LowRank, (2, 3, 3), {}, 2, lambda: stack) == 3


def test_energy_of_everything_keeps_all_that_is_not_zero():
    values = np.array([3.0, 2.0, 1e-3, 0.0])
    assert Energy(1.0).rank(LowRank, (4, 4), {}, 2, lambda: values) == 3
    assert Energy(1.0).rank(LowRank, (4, 4), {}, 2, lambda: np.zeros(4)) == 1


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5, 100.0])
def test_stable_rank_by_numpy(scale):
    w = np.random.default_rng(0).standard_normal((20, 12))
    values = np.linalg.svd(w, compute_uv=False)
    stable = np.linalg.norm(w) ** 2 / np.linalg.norm(w, 2) ** 2
    expected = min(12, math.ceil(scale * stable))
    assert StableRank(scale).rank(LowRank, w.shape, {}, 2, lambda: values) == expected


def test_stable_rank_of_equal_and_of_no_singular_values():
    # sqrt and squares leave 7.000000000000001 or so; that is rank 7, not 8.
    values = np.full(7, math.sqrt(0.1))
    assert StableRank().rank(LowRank, (7, 9), {}, 2, lambda: values) == 7
    assert StableRank().rank(LowRank, (7, 9), {}, 2, lambda: np.zeros(7)) == 1


@pytest.mark.parametrize("rule", [Energy(0.5), StableRank()])
def test_rules_that_need_values_say_so(rule):
    with pytest.raises(TypeError, match="needs the values"):
        rule.rank(LowRank, (4, 4), {}, 2, None)


@pytest.mark.parametrize("rank", [0.5, 4, np.int64(4), True, "0.5", RankScale, np.float32(0.5)])
def test_a_bare_number_is_refused(rank):
    with pytest.raises(TypeError, match="is not a rank rule"):
        Rule(".*", rank)


def test_the_refusal_names_the_three_meanings():
    with pytest.raises(TypeError, match=r"RankScale\(0.5\).*ParamFraction\(0.5\).*Energy\(0.5\)"):
        Rule(".*", 0.5)
    with pytest.raises(TypeError, match=r"FixedRank\(4\)"):
        Rule(".*", 4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RankScale(0.0),
        lambda: RankScale(-1.0),
        lambda: RankScale(math.nan),
        lambda: RankScale(math.inf),
        lambda: FixedRank(0),
        lambda: FixedRank(2.0),
        lambda: FixedRank(True),
        lambda: ParamFraction(0.0),
        lambda: ParamFraction(math.nan),
        lambda: Energy(0.0),
        lambda: Energy(1.1),
        lambda: Energy(math.nan),
        lambda: StableRank(0.0),
        lambda: StableRank(math.inf),
    ],
)
def test_impossible_numbers(make):
    with pytest.raises(ValueError):
        make()
