"""Factors live where the dense axes they come from live."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lowrank_jax import FixedRank, Rule, SpatialLowRank, factorize, refactorize

MESH = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("x", "y"))


def placed(shape, *spec):
    values = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    return jax.device_put(values, NamedSharding(MESH, PartitionSpec(*spec)))


CASES = {
    "matrix": ((8, 6), ("x", "y"), Rule("k", FixedRank(3)), ("x", None), (None, "y")),
    "short spec": ((8, 6), ("x",), Rule("k", FixedRank(3)), ("x", None), (None, None)),
    "two outputs": (
        (8, 2, 6),
        ("x", "y", None),
        Rule("k", FixedRank(3), in_axes=1, out_axes=2),
        ("x", None),
        (None, "y", None),
    ),
    "convolution": (
        (3, 3, 4, 6),
        (None, None, "x", "y"),
        Rule("k", FixedRank(3), SpatialLowRank),
        (None, None, "x", None),
        (None, None, None, "y"),
    ),
}


def specs(weight):
    shardings = [weight.u.sharding, weight.vt.sharding]
    assert all(isinstance(s, NamedSharding) and s.mesh == MESH for s in shardings)
    ndims = [len(weight.u.shape), len(weight.vt.shape)]
    padded = [(*s.spec, *[None] * n)[:n] for s, n in zip(shardings, ndims, strict=True)]
    return tuple(padded)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_factorize_and_refactorize_keep_the_placement(case):
    shape, spec, rule, u, vt = case
    params = {"k": placed(shape, *spec)}
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )
    for tree in (params, abstract):
        weights = factorize(tree, [rule])
        assert specs(weights["k"]) == (u, vt)
        assert specs(refactorize(weights)["k"]) == (u, vt)


def test_without_a_named_sharding_nothing_is_placed():
    params = {"k": jnp.ones((8, 6))}
    weight = factorize(params, [Rule("k", FixedRank(2))])["k"]
    assert weight.u.sharding == params["k"].sharding
    abstract = factorize(jax.eval_shape(lambda: params), [Rule("k", FixedRank(2))])["k"]
    assert abstract.u.sharding is None
