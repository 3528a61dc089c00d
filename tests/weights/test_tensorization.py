"""Pointwise kernels as tensors: the published dimensions, ranks and counts; rules and refusals."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weights_cases import tensor_shapes

from lowrank_jax import (
    Energy,
    FixedRank,
    ParamFraction,
    RankScale,
    Rule,
    StableRank,
    Table,
    TensorTrain,
    Tucker,
    break_even_rank,
    describe,
    factorize,
    merge,
    resolve,
)
from lowrank_jax.weights.tensorization import dimensionize

KINDS = [TensorTrain, Tucker]
both_kinds = pytest.mark.parametrize("kind", KINDS)

# WRN-28-10: inputs and outputs of its 24 block convolutions, how many there are, and the published
# dimensions of the tensor.
WIDE_RESNET = {
    (16, 160): (1, (16, 16, 10)),
    (160, 160): (7, (32, 32, 25)),
    (160, 320): (1, (40, 40, 32)),
    (320, 320): (7, (50, 64, 32)),
    (320, 640): (1, (64, 64, 50)),
    (640, 640): (7, (80, 80, 64)),
}


def wide_resnet():
    return {
        f"conv_{n_in}_{n_out}_{number}": {
            "depthwise": {"kernel": jax.ShapeDtypeStruct((3, 3, 1, n_in), "float32")},
            "pointwise": {"kernel": jax.ShapeDtypeStruct((1, 1, n_in, n_out), "float32")},
        }
        for (n_in, n_out), (count, _) in WIDE_RESNET.items()
        for number in range(count)
    }


def size(shapes):
    return sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.parametrize(("sizes", "dims"), [(k, d) for k, (_, d) in WIDE_RESNET.items()])
def test_published_dimensions(sizes, dims):
    assert dimensionize(math.prod(sizes)) == dims


def dimensions_by_search(size):
    root = round(size ** (1 / 3))
    if root**3 == size:
        expected = (root, root, root)
    else:
        left, found = size, []
        for _ in range(2):
            found.append(next((d for d in range(root, left + 1) if left % d == 0), left))
            left //= found[-1]
        expected = (*found, left)
    return expected


def test_dimensions_by_search():
    for size in (*range(1, 300), 1009, 2 * 509, 27 * 64, 2560):
        assert dimensionize(size) == dimensions_by_search(size)
        assert math.prod(dimensionize(size)) == size


@pytest.mark.parametrize(
    ("kind", "scale", "cores", "factors"),
    [
        (TensorTrain, 0.705, 2076324, 0),
        (TensorTrain, 0.234, 248782, 0),
        (Tucker, 0.68, 1945664, 140181),
        (Tucker, 0.211, 205788, 44335),
    ],
)
def test_published_counts(kind, scale, cores, factors):
    rules = [Rule(".*/pointwise/kernel", RankScale(scale), kind)]
    table = resolve(wide_resnet(), rules)
    assert len(table.rows) == 24
    assert sum(row.parameters for row in table.rows) == cores + factors
    assert table.other_parameters == 75024  # the depthwise kernels, as published
    planned = factorize(wide_resnet(), rules)
    found = {"core": 0, "factor": 0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(planned):
        name = jax.tree_util.keystr(path[-1:], simple=True).rstrip("123")
        if name in found:
            found[name] += leaf.size
    assert found == {"core": cores, "factor": factors}


@pytest.mark.parametrize("scale", [0.01, 0.211, 0.5, 0.705, 1.0])
def test_ranks_of_a_scale(scale):
    d1, d2, d3 = 50, 64, 32
    train = (max(1, round(scale * min(d1, d2))), max(1, round(scale * min(d2, d3))))
    tucker = tuple(max(1, round(scale * d)) for d in (d1, d2, d3))
    for kind, rank in ((TensorTrain, train), (Tucker, tucker)):
        assert kind.rank_from_scale(scale, (1, 1, 320, 320)) == rank
        template = kind.template((1, 1, 320, 320), np.float32, rank, 2)
        shapes = {name: leaf.shape for name, leaf in template.children()}
        assert shapes == tensor_shapes((d1, d2, d3), rank)


@both_kinds
def test_ranks_in_tables(kind):
    params = jax.eval_shape(lambda: {"conv": {"kernel": jnp.ones((1, 1, 12, 8))}, "b": jnp.ones(3)})
    rules = [Rule(".*/kernel", RankScale(0.7), kind)]
    table = resolve(params, rules)
    (row,) = table.rows
    # 96 entries: dimensions 6, 8, 2, the cube root being 4.6.
    assert row.rank == {TensorTrain: (4, 1), Tucker: (4, 6, 1)}[kind]
    assert row.depth == {TensorTrain: 3, Tucker: 6}[kind]
    assert row.axes == {"outputs": 8, "spatial_axes": 2}
    again = Table.from_json(table.to_json())
    assert again == table and isinstance(again.rows[0].rank, tuple)
    planned = factorize(params, table)
    assert describe(planned) == table
    assert table.differences(describe(planned)) == []
    assert resolve(planned, rules) == table
    smaller = describe(factorize(params, [Rule(".*/kernel", FixedRank(1), kind)]))
    assert len(table.differences(smaller)) == 1
    assert re.search(rf" {','.join(map(str, row.rank))}\*? ", str(table))


@both_kinds
def test_kernels_that_fit(kind):
    def axes(shape, **named):
        params = {"k": jax.ShapeDtypeStruct(shape, "float32")}
        (row,) = resolve(params, [Rule("k", FixedRank(2), kind, **named)]).rows
        weight = factorize(params, [Rule("k", FixedRank(2), kind, **named)])["k"]
        assert weight.shape == row.shape == shape
        assert merge({"k": weight})["k"].shape == shape
        return row.axes["spatial_axes"]

    assert axes((6, 8)) == 0
    assert axes((1, 1, 6, 8)) == 2
    assert axes((1, 1, 6, 8), spatial_axes=0) == 0
    assert axes((5, 6, 8), spatial_axes=0) == 0
    assert axes((5, 1, 1, 6, 8), spatial_axes=2) == 2
    assert axes((1, 6, 8), spatial_axes=1) == 1


@pytest.mark.parametrize(
    ("shape", "options", "text"),
    [
        ((3, 3, 6, 8), {}, r"k: .* is for pointwise kernels \(1, 1, in, out\).*\(3, 3, 6, 8\)"),
        ((1, 3, 6, 8), {}, "is for pointwise kernels"),
        ((5, 6, 8), {}, "k: .*neither a matrix.*name spatial_axes=0 or spatial_axes=2"),
        ((5, 1, 1, 6, 8), {}, "neither a matrix"),
        ((8,), {}, "neither a matrix"),
        ((8,), {"spatial_axes": 0}, "neither a matrix"),
        ((6, 8), {"spatial_axes": 2}, "k: spatial_axes=2, and the kernel's shape is"),
        ((6, 8), {"spatial_axes": -1}, "spatial_axes=-1"),
        ((6, 8), {"outputs": 6}, "k: outputs=6, and the kernel's shape is"),
        ((0, 8), {}, "k: a kernel without entries"),
    ],
)
@both_kinds
def test_kernels_that_do_not_fit(kind, shape, options, text):
    params = {"k": jax.ShapeDtypeStruct(shape, "float32")}
    with pytest.raises(ValueError, match=text):
        resolve(params, [Rule("k", FixedRank(2), kind, **options)])


@both_kinds
def test_what_has_no_meaning_is_refused(kind):
    kernel = {"k": jnp.ones((1, 1, 6, 8))}
    with pytest.raises(ValueError, match=r"depth=3, expected 2 for"):
        Rule("k", RankScale(0.5), kind, depth=3)
    for rank in (Energy(0.9), StableRank()):
        for params in (kernel, jax.eval_shape(lambda: kernel)):
            with pytest.raises(ValueError, match=r"k: .*reads the singular values of one matrix"):
                resolve(params, [Rule("k", rank, kind)])
    with pytest.raises(ValueError, match=r"k: ranks .* read as \(4, 4, 3\).*expected numbers from"):
        resolve(kernel, [Rule("k", RankScale(1.5), kind)])
    with pytest.raises(ValueError, match=r"ranks 2 for"):
        kind.template((1, 1, 6, 8), np.float32, 2, 2)


@both_kinds
def test_leaves_that_do_not_fit_together(kind):
    rank = {TensorTrain: (2, 2), Tucker: (2, 2, 2)}[kind]
    weight = kind.template((1, 1, 6, 8), np.float32, rank, 2)
    for change in (
        {"core2": jax.ShapeDtypeStruct((3, 4, 2), "float32")},
        {"core3": jax.ShapeDtypeStruct((5, 2, 3, 1), "float32")},
        {"outputs": 7},
        {"outputs": 96},
    ):
        with pytest.raises(ValueError, match=r"do not fit together|without entries"):
            _ = weight.replace(**change).shape


SIZES = st.integers(1, 40)


def count(kind, dims, number):
    """Parameters at one number everywhere, no rank above that of a full one; written out."""
    d1, d2, d3 = dims
    most = {TensorTrain: (min(d1, d2 * d3), min(d3, d1 * d2)), Tucker: dims}[kind]
    return size(tensor_shapes(dims, tuple(min(number, m) for m in most)))


@given(st.sampled_from(KINDS), SIZES, SIZES, st.integers(1, 20))
@settings(deadline=None, max_examples=60)
def test_equal_ranks_stop_at_full_rank(kind, n_in, n_out, number):
    shape = (1, 1, n_in, n_out)
    rank = FixedRank(number).rank(kind, shape, {}, 2, None)
    template = kind.template(shape, np.float32, rank, 2)
    assert template.shape == shape and template.rank == rank
    entries = sum(leaf.size for leaf in jax.tree.leaves(template))
    assert entries == count(kind, dimensionize(n_in * n_out), number)


@given(st.sampled_from(KINDS), SIZES, SIZES, st.integers(1, 96))
@settings(deadline=None, max_examples=60)
def test_param_fraction_and_break_even_by_brute_force(kind, n_in, n_out, thirty_seconds):
    shape, dims = (n_in, n_out), dimensionize(n_in * n_out)
    counts = {number: count(kind, dims, number) for number in range(1, max(dims) + 1)}
    budget = thirty_seconds / 32 * n_in * n_out
    largest = max((n for n, c in counts.items() if c <= budget), default=1)
    found = ParamFraction(thirty_seconds / 32).rank(kind, shape, {}, 2, None)
    assert found == kind.uniform_rank(largest, shape)
    first = next(number for number, c in counts.items() if c >= n_in * n_out)
    assert break_even_rank(shape, kind) == first
