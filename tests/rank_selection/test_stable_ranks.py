"""Stable ranks on the device against float64 singular values and known spectra."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lowrank_jax.factorize import factorize
from lowrank_jax.rank_selection import accumulative_ranks, stable_ranks
from lowrank_jax.ranks import FixedRank, RankScale
from lowrank_jax.rules import Rule, resolve
from lowrank_jax.weights import ChannelLowRank, LowRank, SpatialLowRank


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def table_of(params, kind=LowRank, pattern=".*", **axes):
    return resolve(params, [Rule(pattern, RankScale(1.0), kind, **axes)])


def expected(matrix):
    s = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    return np.sum(s**2) / s[0] ** 2


def measured(kernel, kind=LowRank, **axes):
    params = {"kernel": jnp.asarray(kernel)}
    return stable_ranks(params, table_of(params, kind, **axes))["kernel"]


@pytest.mark.parametrize("shape", [(1, 7), (30, 4), (96, 200)])
def test_matrices_of_every_form(shape):
    kernel = normal(0, *shape)
    assert measured(kernel) == pytest.approx(expected(kernel), rel=1e-5)


def test_a_wide_layer_whose_leading_singular_values_are_close():
    # Of the size of a convolution with 512 channels; the gram matrix is quicker than the SVD.
    kernel = normal(1, 4608, 512)
    values = np.linalg.eigvalsh(kernel.T.astype(np.float64) @ kernel)
    assert values[-2] / values[-1] > 0.98
    assert measured(kernel) == pytest.approx(values.sum() / values[-1], rel=1e-5)


@pytest.mark.parametrize("gap", [0.0, 1e-6, 1e-4, 3e-4, 6e-4, 1e-3, 3e-3, 0.1])
@pytest.mark.parametrize("size", [2, 400])
def test_the_error_is_within_its_bound_however_close_the_spectrum(gap, size):
    squares = np.full(size, 1 - gap)
    squares[0] = 1.0
    found = measured(np.diag(np.sqrt(squares)).astype(np.float32))
    error = found / squares.sum() - 1
    assert -1e-5 < error < math.log(size) / 8192 + 1e-5


def test_the_leading_direction_may_be_orthogonal_to_any_start():
    # Power iteration from a vector of ones would never find it.
    basis = np.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2)
    kernel = basis @ np.diag([1.0, 3.0]) @ basis.T
    assert measured(kernel) == pytest.approx(10 / 9, rel=1e-6)


def test_rank_one_is_one_and_zeros_are_zero():
    assert measured(np.outer(normal(2, 300), normal(3, 40))) == pytest.approx(1.0, abs=1e-6)
    # Rounding must not bring it below 1, which truncation would make 0.
    assert all(measured(np.outer(normal(s, 9), normal(-s % 97, 5))) >= 1 for s in range(1, 20))
    assert measured(np.zeros((6, 4))) == 0.0


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_entries_whose_squares_leave_the_range(size):
    kernel = normal(4, 12, 20)
    assert measured(kernel * np.float32(size)) == pytest.approx(expected(kernel), rel=1e-5)


def test_half_precision_is_computed_in_single():
    kernel = jnp.asarray(normal(5, 40, 24), jnp.bfloat16)
    assert measured(kernel) == pytest.approx(expected(kernel.astype(jnp.float32)), rel=1e-5)


def test_double_precision_stays(x64):
    kernel = normal(6, 24, 40).astype(np.float64)
    assert measured(kernel) == pytest.approx(expected(kernel), rel=1e-12)


def test_a_kernel_is_read_as_its_kind_factorizes_it():
    kernel = normal(7, 3, 2, 5, 8)  # kh, kw, in, out
    rows = kernel.reshape(30, 8)
    assert measured(kernel, ChannelLowRank) == pytest.approx(expected(rows), rel=1e-5)
    spatial = kernel.transpose(1, 2, 0, 3).reshape(10, 24)
    assert measured(kernel, SpatialLowRank) == pytest.approx(expected(spatial), rel=1e-5)
    heads = normal(8, 12, 3, 4)
    found = measured(heads, in_axes=1, out_axes=2)
    assert found == pytest.approx(expected(heads.reshape(12, 12)), rel=1e-5)


def test_of_a_stack_the_largest():
    stack = normal(9, 4, 10, 6)
    stack[1] = np.outer(stack[1, :, 0], stack[1, 0])
    found = measured(stack, in_axes=1, out_axes=1)
    assert found == pytest.approx(max(map(expected, stack)), rel=1e-5)


def test_many_kernels_come_back_under_their_own_paths():
    shapes = [(10, 6), (6, 10), (10, 6), (7, 7), (6, 10), (10, 6)]
    params = {f"layer_{i}": {"kernel": normal(i, *shape)} for i, shape in enumerate(shapes)}
    params["conv"] = normal(6, 1, 1, 6, 10)
    table = resolve(
        params, [Rule("conv", RankScale(1.0), ChannelLowRank), Rule(".*", RankScale(1.0))]
    )
    found = stable_ranks(params, table)
    assert list(found) == [row.path for row in table.rows]
    matrices = {f"layer_{i}/kernel": params[f"layer_{i}"]["kernel"] for i in range(len(shapes))}
    for path, matrix in (matrices | {"conv": params["conv"][0, 0]}).items():
        assert found[path] == pytest.approx(expected(matrix), rel=1e-5)


def test_one_program_per_shape(monkeypatch):
    traced = []
    matricize = LowRank.matricize

    def counting(kernel, **axes):
        traced.append(kernel.shape)
        return matricize(kernel, **axes)

    params = {str(i): normal(i, 11 + i % 2, 5) for i in range(6)}
    table = table_of(params)
    monkeypatch.setattr(LowRank, "matricize", staticmethod(counting))
    first = stable_ranks(params, table)
    assert sorted(traced) == [(11, 5)] * 3 + [(12, 5)] * 3
    assert stable_ranks({k: 2 * v for k, v in params.items()}, table) == pytest.approx(first)
    assert len(traced) == 6


def test_a_mesh_with_explicit_axes():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,))
    kernel = normal(10, 3, 3, 4, 8)
    for spec in [(None, None, "x", None), (None, None, None, "x"), (None,) * 4]:
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        found = measured(jax.device_put(kernel, sharding), ChannelLowRank)
        assert found == pytest.approx(expected(kernel.reshape(36, 8)), rel=1e-5)


def test_misuse_is_named():
    params = {"block": {"kernel": jnp.ones((4, 6))}, "other": jnp.ones((4, 6))}
    table = table_of(params)
    for bad in (np.nan, np.inf, -np.inf):
        broken = {**params, "block": {"kernel": params["block"]["kernel"].at[1, 2].set(bad)}}
        with pytest.raises(ValueError, match=r"^block/kernel: 1 of 24 entries are not finite"):
            stable_ranks(broken, table)
    with pytest.raises(TypeError, match=r"^block/kernel: its values are being traced"):
        jax.jit(lambda params: stable_ranks(params, table))(params)
    with pytest.raises(TypeError, match=r"^block/kernel: only its shape is known"):
        stable_ranks(jax.eval_shape(lambda: params), table)
    with pytest.raises(ValueError, match=r"table names other, which is not in the tree"):
        stable_ranks({"block": params["block"]}, table)
    with pytest.raises(ValueError, match=r"^other has shape \(6, 4\), the table says \(4, 6\)"):
        stable_ranks({**params, "other": jnp.ones((6, 4))}, table)
    switched = factorize(params, [Rule("other", FixedRank(1))])
    with pytest.raises(ValueError, match=r"^other: it is LowRank\(rank=1.* already, .* switch"):
        stable_ranks(switched, table)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.999, 1.0])
def test_accumulative_ranks(share):
    params = {"conv": normal(11, 3, 3, 4, 20), "stack": normal(12, 3, 8, 5)}
    rules = [
        Rule("conv", RankScale(1.0), ChannelLowRank),
        Rule("stack", RankScale(1.0), in_axes=1, out_axes=1),
    ]

    def by_hand(matrix):
        s = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
        return next(k for k in range(1, len(s) + 1) if s[:k].sum() >= share * s.sum() * (1 - 1e-12))

    assert accumulative_ranks(params, resolve(params, rules), share) == {
        "conv": by_hand(params["conv"].reshape(36, 20)),
        "stack": max(map(by_hand, params["stack"])),
    }
