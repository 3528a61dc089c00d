"""flax.serialization of factorized weights: round trips and refusals."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import serialization

from lowrank_jax.linen import register_serialization
from lowrank_jax.weights import (
    ChannelLowRank,
    FactorizedWeight,
    LowRank,
    SpatialLowRank,
    register_weight,
)

SHAPES = {LowRank: (4, 5), SpatialLowRank: (3, 3, 4, 5), ChannelLowRank: (3, 3, 4, 5)}


def assert_trees_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("kind", list(SHAPES))
def test_round_trip(draw, kind, deep):
    weight = draw.weight(kind, SHAPES[kind], 2, deep)
    weight = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), weight)
    params = {"layer": {"kernel": weight, "bias": jnp.ones(5)}}
    saved = serialization.to_bytes(params)
    for target in (
        jax.tree.map(jnp.zeros_like, params),
        jax.eval_shape(lambda: params),
    ):
        assert_trees_equal(serialization.from_bytes(target, saved), params)
    state = serialization.to_state_dict(params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert_trees_equal(serialization.from_state_dict(params, state), params)


def test_optimizer_state_and_partition_boxes(draw):
    weight = jax.tree.map(jnp.asarray, draw.weight(LowRank, (4, 5), 2, True))
    tx = optax.masked(optax.adam(1e-3), {"kernel": True, "bias": False})
    params = {"kernel": weight, "bias": jnp.ones(5)}
    opt_state = tx.update(params, tx.init(params))[1]
    saved = serialization.to_bytes(opt_state)
    assert_trees_equal(serialization.from_bytes(tx.init(params), saved), opt_state)
    boxed = weight.replace(u=nn.Partitioned(weight.u, ("rows", None)))
    restored = serialization.from_bytes(boxed, serialization.to_bytes(boxed))
    assert_trees_equal(restored, boxed)


@pytest.mark.parametrize(
    ("saved", "target", "words"),
    [
        ((SpatialLowRank, (1, 1, 4, 5), 2, False), (ChannelLowRank, (1, 1, 4, 5), 2, False),
         r"found SpatialLowRank\(\) in the state dict, expected ChannelLowRank\(\)"),
        ((LowRank, (4, 5), 2, False), (LowRank, (4, 5), 3, False),
         r"kernel/u: found shape \(4, 2\) in the state dict, expected \(4, 3\)"),
        ((LowRank, (4, 5), 2, True), (LowRank, (4, 5), 2, False),
         "found the factors m, u, vt in the state dict, expected u, vt"),
        ((LowRank, (4, 5), 2, False), (LowRank, (4, 5), 2, True),
         "found the factors u, vt in the state dict, expected m, u, vt"),
        ((LowRank, (4, 2, 5), 2, False), (LowRank, (4, 5), 2, False),
         r"out_axes=2\) in the state dict, expected LowRank\(in_axes=1, out_axes=1\)"),
    ],
    ids=["kind", "rank", "deep into flat", "flat into deep", "axes"],
)  # fmt: skip
def test_another_kind_shape_or_depth_is_refused(draw, saved, target, words):
    saved = serialization.to_bytes({"layer": {"kernel": draw.weight(*saved)}})
    target = {"layer": {"kernel": draw.weight(*target)}}
    with pytest.raises(ValueError, match=f"layer/kernel.*{words}|{words}"):
        serialization.from_bytes(target, saved)


def test_a_dense_kernel_is_refused(draw):
    weight = draw.weight(LowRank, (4, 5), 2, False)
    saved = serialization.to_bytes({"kernel": draw.array(4, 5)})
    with pytest.raises(ValueError, match=r"kernel: found ndarray .*, expected LowRank"):
        serialization.from_bytes({"kernel": weight}, saved)


def test_a_kind_defined_later(draw):
    @register_weight()
    class Diagonal(FactorizedWeight):
        d: Any

        def dense(self, *, precision: Any = None) -> Any:
            return jnp.diag(self.d)

    register_serialization(Diagonal)
    register_serialization(Diagonal)
    weight = Diagonal(d=draw.array(3))
    restored = serialization.from_bytes(Diagonal(d=np.zeros(3)), serialization.to_bytes(weight))
    assert [field.name for field in dataclasses.fields(restored)] == ["d"]
    assert_trees_equal(restored, weight)
