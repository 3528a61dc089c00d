"""A tree of parameters to restructure, optimizers, and their states after some steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from lowrank_jax.factorize import merge
from lowrank_jax.ranks import FixedRank
from lowrank_jax.rules import Rule
from lowrank_jax.tree import path_string
from lowrank_jax.weights import SpatialLowRank

CHANGED = ["block/conv/kernel", "stem/kernel"]
RULES = [
    Rule("stem/kernel", FixedRank(3)),
    Rule("block/conv/kernel", FixedRank(4), SpatialLowRank),
]


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def dense_params():
    """Names meant to confuse: `kernel` at the root, and parameters named as optimizers' fields."""
    return {
        "stem": {"kernel": normal(0, 6, 8), "bias": normal(1, 8)},
        "block": {"conv": {"kernel": normal(2, 3, 3, 8, 8)}},
        "kernel": normal(3, 8, 5),
        "mu": {"count": normal(4, 5)},
    }


TARGETS = jax.tree.map(lambda leaf: 0.5 * leaf[::-1], dense_params())
CURVATURES = jax.tree.map(lambda leaf: 0.2 + jnp.square(leaf), dense_params())


def loss(params):
    def square(value, target, curvature):
        return jnp.sum(curvature * jnp.square(value - target))

    return sum(jax.tree.leaves(jax.tree.map(square, merge(params), TARGETS, CURVATURES)))


def train(tx, params, state, steps):
    tx = optax.with_extra_args_support(tx)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


GROUPS = {
    "stem": {"kernel": "adam", "bias": "momentum"},
    "block": {"conv": {"kernel": "momentum"}},
    "kernel": "adam",
    "mu": {"count": "momentum"},
}
MASK = jax.tree.map(lambda group: group == "adam", GROUPS)

OPTIMIZERS = {
    "adamw": lambda: optax.adamw(optax.linear_schedule(0.01, 0.001, 100)),
    "sgd": lambda: optax.sgd(optax.constant_schedule(0.01), momentum=0.9),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.01), 2).gradient_transformation(),
    "multi_transform": lambda: optax.multi_transform(
        {"adam": optax.adam(0.01), "momentum": optax.sgd(0.01, momentum=0.9)}, GROUPS
    ),
    "adafactor": lambda: optax.adafactor(0.01, min_dim_size_to_factor=4, momentum=0.9),
    "lbfgs": lambda: optax.lbfgs(memory_size=3),
    "schedule_free_sgd": lambda: optax.contrib.schedule_free_sgd(0.01, warmup_steps=2),
    "muon": lambda: optax.contrib.muon(0.01),
    "ema": lambda: optax.chain(optax.sgd(0.01), optax.ema(0.9)),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.01), 3),
    "masked": lambda: optax.chain(optax.sgd(0.01), optax.masked(optax.scale_by_adam(), MASK)),
}


@functools.cache
def trained(name):
    """An optimizer, and parameters and state after four steps."""
    tx = OPTIMIZERS[name]()
    params = dense_params()
    return tx, *train(tx, params, tx.init(params), 4)


def by_path(tree):
    return {path_string(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}
