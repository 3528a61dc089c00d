"""Mirrors: which state of an optimizer belongs to which parameter."""

import jax.numpy as jnp
import optax

from lowrank_jax.mirrors import owners
from lowrank_jax.tree import path_string
from lowrank_jax.weights import LowRank


def found(tx, params):
    return {path_string(p): o.parameter for p, o in owners(tx.init(params), params).items()}


def test_a_parameter_named_like_a_field():
    params = {"count": jnp.zeros(2)}
    tx = optax.adam(optax.constant_schedule(0.1))
    assert found(tx, params) == {"0/mu/count": "count", "0/nu/count": "count"}


def test_kernel_at_the_root_and_below():
    params = {"kernel": jnp.zeros(2), "dense": {"kernel": jnp.zeros(2)}}
    assert found(optax.sgd(0.1, momentum=0.9), params) == {
        "0/trace/dense/kernel": "dense/kernel",
        "0/trace/kernel": "kernel",
    }


def test_groups_named_like_parameters():
    params = {"encoder": jnp.zeros(2), "decoder": jnp.zeros(2)}
    groups = {name: optax.adam(0.1) for name in params}
    names = found(optax.partition(groups, {name: name for name in params}), params)
    prefix = "inner_states/{0}/inner_state/0/{1}/{0}"
    assert names == {
        prefix.format(name, moment): name for name in params for moment in ("mu", "nu")
    }


def test_parameters_in_a_tuple_are_not_the_links_of_a_chain():
    params = (jnp.zeros(2), jnp.zeros(3))
    tx = optax.chain(optax.trace(0.9), optax.scale_by_schedule(optax.constant_schedule(0.1)))
    assert found(tx, params) == {"0/trace/0": "0", "0/trace/1": "1"}


def test_a_weight_is_one_parameter():
    params = {"w": LowRank(jnp.zeros((3, 1)), jnp.zeros((1, 3)), jnp.zeros((1, 1)))}
    names = found(optax.sgd(0.1, momentum=0.9), params)
    assert names == {f"0/trace/w/{name}": "w" for name in ("u", "vt", "m")}
