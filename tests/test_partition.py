"""Where parameters, factors and optimizer states live on a mesh, and what is sent because of it."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from eight_devices import printed_by
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

import lowrank_jax as lrj
from lowrank_jax.sharding import Partition, largest_axes, partition, partition_state

MESH = AbstractMesh((2, 4, 2), ("data", "fsdp", "tensor"))


def shapes(**named):
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in named.items()}


def specs(tree):
    return jax.tree.map(lambda sharding: sharding.spec, tree)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((), P()),
        ((64,), P(None)),
        ((8, 64), P("fsdp", "tensor")),
        ((3, 3, 16, 32), P(None, None, "fsdp", "tensor")),
        ((3, 3, 16, 5), P(None, None, "fsdp", None)),  # 5 channels cannot be halved
        ((6, 32), P(None, "tensor")),
        ((3, 3, 3, 5), P(None, None, None, None)),
    ],
)
def test_by_size(shape, spec):
    assert largest_axes(shape, MESH) == spec
    assert set(largest_axes(shape, AbstractMesh((8,), ("data",)))) <= {None}


def test_factors_are_split_along_their_long_axes():
    params = shapes(matrix=(64, 128), conv=(3, 3, 16, 32), stack=(5, 64, 32), odd=(12, 6))
    rules = [
        lrj.Rule("matrix", lrj.FixedRank(4), depth=3),
        lrj.Rule("conv", lrj.FixedRank(4), lrj.SpatialLowRank),
        lrj.Rule("stack", lrj.FixedRank(4), in_axes=1, out_axes=1),
        lrj.Rule("odd", lrj.FixedRank(2)),
    ]
    found = specs(partition(lrj.factorize(params, rules), MESH))
    matrix, conv, stack, odd = (found[name] for name in params)
    assert (matrix.u, matrix.vt) == (P(("fsdp", "tensor"), None), P(None, ("tensor", "fsdp")))
    assert matrix.m == P(None, None)
    assert conv.u == P(None, None, ("fsdp", "tensor"), None)
    assert conv.vt == P(None, None, None, ("tensor", "fsdp"))
    assert stack.u == P(None, ("fsdp", "tensor"), None)
    assert stack.vt == P(None, None, ("tensor", "fsdp"))
    # 12 inputs over 4, and not over 8; 6 outputs over 2, and not over 8.
    assert (odd.u, odd.vt) == (P("fsdp", None), P(None, "tensor"))


def test_every_factor_can_be_placed():
    """Sizes divide, whatever kinds and shapes; checked on the shards themselves."""
    params = shapes(matrix=(24, 40), conv=(3, 3, 24, 40), pointwise=(1, 1, 16, 16))
    for rules in (
        [lrj.Rule(".*(matrix)", lrj.FixedRank(3))],
        [lrj.Rule("conv", lrj.FixedRank(3), kind) for kind in (lrj.ChannelLowRank,)],
        [lrj.Rule("pointwise", lrj.FixedRank(2), lrj.Tucker)],
        [lrj.Rule("pointwise", lrj.FixedRank(2), lrj.TensorTrain)],
    ):
        weights = lrj.factorize(params, rules)
        placed = partition(weights, MESH)
        for leaf, sharding in zip(jax.tree.leaves(weights), jax.tree.leaves(placed), strict=True):
            shard = sharding.shard_shape(leaf.shape)  # Raises where a size does not divide.
            parts = math.prod(leaf.shape) // math.prod(shard)
            assert parts in (1, 2, 4, 8)


def test_rules_come_first_and_the_first_one_wins():
    params = shapes(up=(64, 128), down=(128, 64), other=(64, 64))
    rules = [Partition("up|down", P("tensor")), Partition("down", P("fsdp"))]
    found = specs(partition(params, MESH, rules, otherwise=lambda shape, mesh: P("data")))
    assert found == {"up": P("tensor"), "down": P("tensor"), "other": P("data")}


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Partition("kernle", P("fsdp")), "matches no kernel; near misses: kernel"),
        (Partition("kernel", P("model")), "names the mesh axis 'model'; the mesh has 'data'"),
        (Partition("kernel", P("fsdp", "fsdp")), "names a mesh axis twice"),
        (Partition("kernel", P(("fsdp", "tensor"))), r"axis 0 of shape \(12, 6\) .* 8 devices"),
        (Partition("kernel", P(None, "fsdp")), r"axis 1 .* cannot be split over 'fsdp', .* 4"),
        (Partition("kernel", P(None, None, None)), "for 3 axes, and a kernel of shape .* has 2"),
    ],
)
def test_rules_that_do_not_fit(rule, words):
    with pytest.raises(ValueError, match=words):
        partition(shapes(kernel=(12, 6)), MESH, [rule])


@pytest.mark.parametrize(
    "tx",
    [
        optax.sgd(0.1, momentum=0.9),
        optax.adamw(1e-3),
        optax.chain(lrj.decay(1e-3), optax.masked(optax.trace(0.9), {"up": True, "bias": False})),
        optax.MultiSteps(optax.adam(1e-3), 2),
    ],
)
def test_what_an_optimizer_remembers_lives_with_its_parameter(tx):
    params = lrj.factorize(shapes(up=(64, 128), bias=(128,)), [lrj.Rule("up", lrj.FixedRank(4))])
    placed = partition(params, MESH)
    state = jax.eval_shape(tx.init, params)
    found = specs(partition_state(state, params, placed))
    assert jax.tree.structure(found) == jax.tree.structure(state)
    up, where = params["up"], placed["up"]
    expected = {up.u.shape: where.u.spec, up.vt.shape: where.vt.spec}
    remembered = 0
    for leaf, spec in zip(jax.tree.leaves(state), jax.tree.leaves(found), strict=True):
        remembered += leaf.shape in expected
        assert spec == expected.get(leaf.shape, P(*(None,) * leaf.ndim))
    assert remembered >= 2


def test_state_of_no_parameter_is_split_by_its_size():
    params = shapes(kernel=(64, 128))
    state = {"masks": (jax.ShapeDtypeStruct((64, 128), bool),), "factored": shapes(kernel=(64,))}
    found = specs(partition_state(state, params, partition(params, MESH)))
    assert found["masks"] == (P("fsdp", "tensor"),)
    assert found["factored"]["kernel"] == P(None)


@pytest.fixture(scope="module")
def sent():
    """What devices send each other in a training step, by network, form and kind of operation; see
    `partition_checks.py`."""
    return printed_by(Path(__file__).with_name("partition_checks.py"))


@pytest.mark.optimized
@pytest.mark.parametrize("network", ["matrix", "matrix_deep", "spatial", "channel"])
@pytest.mark.parametrize("mesh", ["8x1", "4x2", "1x8"])
def test_no_full_kernel_is_gathered(sent, network, mesh):
    """Nor sent otherwise. Factors are gathered, and of the dense network the kernel itself
    is, so this would be seen."""
    found = sent[f"{network}-{mesh}"]
    assert max(size for sizes in found["factored"].values() for size in sizes) < found["kernel"] / 2
    if mesh == "8x1":
        assert max(found["dense"]["all-gather"]) >= found["kernel"]
        assert max(found["factored"]["all-gather"]) >= found["factor"]
