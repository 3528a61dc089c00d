"""The Tucker decomposition against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax import FixedRank, RankScale, Rule, Tucker, factorize


def random(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def unfolding(tensor, mode):
    return np.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1)


def truncated(tensor, mode, rank):
    """The tensor projected on its leading directions along one of its dimensions."""
    u = np.linalg.svd(unfolding(tensor, mode), full_matrices=False)[0][:, :rank]
    return np.moveaxis(np.tensordot(u @ u.T, tensor, (1, mode)), 0, mode)


def discarded(tensor, mode, rank):
    return np.sum(np.linalg.svd(unfolding(tensor, mode), compute_uv=False)[rank:] ** 2)


def contract(leaves):
    core = np.einsum("uxp,pyq,qzv->xyz", *leaves[:3])
    return np.einsum("xyz,ax,by,cz->abc", core, *leaves[3:])


# (13, 2) is read as 13 x 2 x 1: its first dimension has fewer singular values than entries.
@pytest.mark.parametrize("shape", [(1, 1, 16, 160), (1, 1, 40, 40), (24, 30), (13, 2), (3, 1)])
def test_full_rank_reproduces_the_kernel(shape):
    kernel = random(*shape, dtype=np.float32)
    weight = factorize({"k": kernel}, [Rule("k", FixedRank(10**6), Tucker)])["k"]
    assert weight.shape == shape and weight.dtype == jnp.float32
    np.testing.assert_allclose(weight.dense(), kernel, atol=1e-5)
    for factor in (weight.factor1, weight.factor2, weight.factor3):
        np.testing.assert_allclose(factor.T @ factor, np.eye(factor.shape[1]), atol=1e-5)


def test_a_published_kernel_at_rank_scale_one_is_itself():
    kernel = random(1, 1, 160, 160, dtype=np.float32)
    weight = factorize({"k": kernel}, [Rule("k", RankScale(1.0), Tucker)])["k"]
    assert weight.rank == (32, 32, 25)
    np.testing.assert_allclose(weight.dense(), kernel, atol=1e-5)


@pytest.mark.parametrize("rank", [(1, 1, 1), (2, 4, 3), (5, 2, 3), (6, 7, 5), (1, 7, 5)])
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_truncation_from_the_third_dimension_to_the_first(rank, power):
    d1, d2, d3 = 6, 7, 5
    tensor = random(d1, d2, d3) * np.arange(1.0, d3 + 1) ** -power
    leaves = Tucker.decompose(tensor, rank)
    expected = tensor
    for mode in (2, 1, 0):
        expected = truncated(expected, mode, rank[mode])
    np.testing.assert_allclose(contract(leaves), expected, atol=1e-12)
    error = np.sum((tensor - expected) ** 2)
    bounds = [discarded(tensor, mode, rank[mode]) for mode in range(3)]
    assert max(bounds) - 1e-12 <= error <= sum(bounds) + 1e-12
    for factor, r in zip(leaves[3:], rank, strict=True):
        np.testing.assert_allclose(factor.T @ factor, np.eye(r), atol=1e-12)
    # The core is a train with orthonormal rows on the right and the norm on the left.
    b = min(d1, rank[1] * rank[2])
    second, third = leaves[1].reshape(b, -1), leaves[2].reshape(rank[2], -1)
    np.testing.assert_allclose(second @ second.T, np.eye(b), atol=1e-12)
    np.testing.assert_allclose(third @ third.T, np.eye(rank[2]), atol=1e-12)
    assert np.linalg.norm(leaves[0]) == pytest.approx(np.linalg.norm(expected), rel=1e-12)


@pytest.mark.parametrize("true_rank", [0, 1, 10])
def test_every_direction_has_a_gradient(true_rank):
    kernel = (random(12, true_rank) @ random(true_rank, 10, seed=1)).astype(np.float32)
    weight = factorize({"k": kernel}, [Rule("k", FixedRank(3), Tucker)])["k"]
    # The train's first rank is past the tensor's: the rest of it must train, too.
    assert weight.core1.shape == (1, 3, 5)
    direction = jnp.asarray(random(12, 10, seed=2), jnp.float32)
    gradient = jax.jit(jax.grad(lambda w: jnp.sum(w.dense() * direction)))(weight)
    assert (np.linalg.norm(gradient.core1, axis=(0, 1)) > 1e-3).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weight))
