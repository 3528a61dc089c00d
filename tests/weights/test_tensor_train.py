"""The tensor train decomposition against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax import FixedRank, RankScale, Rule, TensorTrain, factorize
from lowrank_jax.weights.tensor_train import right_orthonormal, train_svd


def random(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def truncated(matrix, rank):
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vt[:rank]


def discarded(matrix, rank):
    return np.sum(np.linalg.svd(matrix, compute_uv=False)[rank:] ** 2)


def contract(cores):
    return np.einsum("xay,ybz,zcw->abc", *cores)


@pytest.mark.parametrize("shape", [(1, 1, 16, 160), (1, 1, 40, 40), (24, 30), (13, 2), (3, 1)])
def test_full_rank_reproduces_the_kernel(shape):
    kernel = random(*shape, dtype=np.float32)
    weight = factorize({"k": kernel}, [Rule("k", FixedRank(10**6), TensorTrain)])["k"]
    assert weight.shape == shape and weight.dtype == jnp.float32
    np.testing.assert_allclose(weight.dense(), kernel, atol=1e-5)


def test_a_published_kernel_at_rank_scale_one_is_itself():
    kernel = random(1, 1, 160, 160, dtype=np.float32)
    weight = factorize({"k": kernel}, [Rule("k", RankScale(1.0), TensorTrain)])["k"]
    assert weight.rank == (32, 25)
    np.testing.assert_allclose(weight.dense(), kernel, atol=1e-5)


def test_the_tensor_is_the_transposed_matrix_row_by_row():
    # Of rank one as (out, in) in this very order: kernel[i, o] = a b c at o * 12 + i.
    parts = [random(n, seed=n) for n in (5, 6, 4)]
    tensor = np.einsum("a,b,c->abc", *parts)
    kernel = tensor.reshape(10, 12).T.astype(np.float32)[None, None]
    weight = factorize({"k": kernel}, [Rule("k", FixedRank(1), TensorTrain)])["k"]
    np.testing.assert_allclose(weight.dense(), kernel, atol=1e-5)


@pytest.mark.parametrize("rank", [(1, 1), (2, 4), (4, 2), (6, 5), (3, 5)])
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_truncation_by_sweeping_from_right_to_left(rank, power):
    d1, d2, d3 = 6, 7, 5
    decay = np.arange(1.0, d3 + 1) ** -power
    tensor = random(d1, d2, d3) * decay
    cores = train_svd(tensor, rank)
    # Truncated to the leading directions of the third axis, and of that, of the first.
    step = truncated(tensor.reshape(d1 * d2, d3), rank[1])
    expected = truncated(step.reshape(d1, d2 * d3), rank[0]).reshape(d1, d2, d3)
    np.testing.assert_allclose(contract(cores), expected, atol=1e-12)
    error = np.sum((tensor - contract(cores)) ** 2)
    bounds = (
        discarded(tensor.reshape(d1, d2 * d3), rank[0]),
        discarded(tensor.reshape(d1 * d2, d3), rank[1]),
    )
    assert max(bounds) - 1e-12 <= error <= sum(bounds) + 1e-12
    # Orthonormal rows on the right, the norm on the left.
    second, third = cores[1].reshape(rank[0], -1), cores[2].reshape(rank[1], -1)
    np.testing.assert_allclose(second @ second.T, np.eye(rank[0]), atol=1e-12)
    np.testing.assert_allclose(third @ third.T, np.eye(rank[1]), atol=1e-12)
    assert np.linalg.norm(cores[0]) == pytest.approx(np.linalg.norm(contract(cores)), rel=1e-12)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(9, 4, 3), (4, 9, 4), (2, 9, 7), (3, 3, 3)])
def test_right_orthonormal(rows, columns, rank):
    matrix = random(rows, columns)
    left, right = right_orthonormal(matrix, rank)
    assert left.shape == (rows, rank) and right.shape == (rank, columns)
    np.testing.assert_allclose(left @ right, truncated(matrix, rank), atol=1e-12)
    np.testing.assert_allclose(right @ right.T, np.eye(rank), atol=1e-12)


@pytest.mark.parametrize("true_rank", [0, 1])
def test_every_direction_of_a_kernel_of_low_rank_has_a_gradient(true_rank):
    kernel = (random(12, true_rank) @ random(true_rank, 10, seed=1)).astype(np.float32)
    weight = factorize({"k": kernel}, [Rule("k", FixedRank(4), TensorTrain)])["k"]
    np.testing.assert_allclose(weight.dense(), kernel, atol=1e-5)
    direction = jnp.asarray(random(12, 10, seed=2), jnp.float32)
    gradient = jax.jit(jax.grad(lambda w: jnp.sum(w.dense() * direction)))(weight)
    # The first core has the norm, so that where it is zero its own gradient must not be.
    assert (np.linalg.norm(gradient.core1, axis=(0, 1)) > 1e-3).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weight))
