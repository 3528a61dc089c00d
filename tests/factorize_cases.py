"""Kernels to be factorized and how, and NumPy's best approximations of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights_cases import Case, matrix

from lowrank_jax import (
    ChannelLowRank,
    LowRank,
    Rule,
    SpatialLowRank,
)

CASES = [
    Case("matrix", LowRank, (9, 7)),
    Case("stack", LowRank, (3, 6, 8), 1),
    Case("heads", LowRank, (6, 2, 4), 0, (("in_axes", 1), ("out_axes", 2))),
    Case("spatial", SpatialLowRank, (3, 2, 4, 6)),
    Case("spatial_stack", SpatialLowRank, (2, 3, 3, 2, 4), 1),
    Case("channel", ChannelLowRank, (2, 3, 4, 6)),
    Case("pointwise", SpatialLowRank, (1, 1, 5, 6)),
]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def random(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def rule(case, rank, depth=2):
    # A stack of kernels is not a matrix: its axes are named.
    axes = dict(case.axes) or ({"in_axes": 1} if case.kind is LowRank else {})
    return Rule("kernel", rank, case.kind, depth=depth, **axes)


def truncated(case, kernel, rank):
    u, s, vt = np.linalg.svd(matrix(case, kernel), full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ vt[..., :rank, :], s


def component_gradients(case, weight, seed=9):
    """Norms of the gradients of every rank-one component, left and right, of a random loss."""
    direction = jnp.asarray(random(*case.shape, seed=seed), weight.dtype)
    gradient = jax.jit(jax.grad(lambda w: jnp.sum(w.dense() * direction)))(weight)
    u, vt = weight.geometry(**weight.axes).fold(np.asarray(gradient.u), np.asarray(gradient.vt))
    return np.linalg.norm(u, axis=-2), np.linalg.norm(vt, axis=-1)
