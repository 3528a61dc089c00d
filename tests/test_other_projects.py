"""Frobenius decay in other projects: a plain dictionary, `flax.nnx` state, an Equinox tree.

In each, steps of ``chain(frobenius_decay, sgd)`` are compared with steps of ``sgd`` on the loss
plus the dense penalty, written out without the library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lowrank_jax import (
    FixedRank,
    LowRank,
    Product,
    Rule,
    decay,
    dot_general,
    factorize,
    frobenius_decay,
    frobenius_penalty,
    products_by_suffix,
)

COEFFICIENT, RATE, STEPS = 0.3, 0.05, 3


def train(tx: optax.GradientTransformation, params: Any, gradient: Callable[[Any], Any]) -> Any:
    state = tx.init(params)
    for _ in range(STEPS):
        updates, state = tx.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    return params


def with_penalty(loss: Callable[[Any], Any], kernels: Callable[[Any], list[Any]]) -> Callable:
    """The loss plus the penalty of the dense kernels."""

    def penalized(params: Any) -> Any:
        squares = [jnp.sum(kernel**2) for kernel in kernels(params)]
        return loss(params) + COEFFICIENT / 2 * sum(squares)

    return penalized


def same_training(
    tx: optax.GradientTransformation,
    params: Any,
    loss: Callable[[Any], Any],
    kernels: Callable[[Any], list[Any]],
) -> Any:
    found = train(optax.chain(tx, optax.sgd(RATE)), params, jax.jit(jax.grad(loss)))
    wanted = train(optax.sgd(RATE), params, jax.jit(jax.grad(with_penalty(loss, kernels))))
    undecayed = train(optax.sgd(RATE), params, jax.jit(jax.grad(loss)))
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    differs = [
        float(jnp.abs(a - b).max())
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(undecayed), strict=True)
    ]
    assert max(differs) > 1e-3  # The comparison could have failed.
    return found


def value_of(variable: nnx.Variable) -> Any:
    # get_value came with flax 0.12, which deprecates value.
    return variable.get_value() if hasattr(nnx.Variable, "get_value") else variable.value


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def test_a_plain_dictionary_and_a_loop_of_ones_own() -> None:
    x, y = normal(0, 16, 6), normal(1, 16, 3)
    params = {
        "kernel": normal(2, 6, 5) / 2,
        "adapter": {"a": normal(3, 5, 2), "b": normal(4, 2, 3), "bias": jnp.zeros(3)},
    }
    params = factorize(params, [Rule("kernel", FixedRank(2))])

    def loss(params: Any) -> Any:
        hidden = jax.nn.relu(dot_general(x, params["kernel"], (((1,), (0,)), ((), ()))))
        adapter = params["adapter"]
        return jnp.mean((hidden @ adapter["a"] @ adapter["b"] + adapter["bias"] - y) ** 2)

    tx = frobenius_decay(COEFFICIENT, products=[Product("adapter/a", "adapter/b")])
    same_training(
        tx,
        params,
        loss,
        lambda p: [p["kernel"].u @ p["kernel"].vt, p["adapter"]["a"] @ p["adapter"]["b"]],
    )


class Bottleneck(nnx.Module):
    """Two linear layers that are one product, in an unedited model."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.down = nnx.Linear(6, 2, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(2, 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.up(self.down(x))


class Factorized(nnx.Module):
    """A factorized weight as the value of a variable."""

    def __init__(self) -> None:
        self.kernel = nnx.Param(LowRank(normal(5, 6, 2), normal(6, 2, 5)))
        self.bias = nnx.Param(jnp.ones(5))

    def __call__(self, x: Any) -> Any:
        kernel = value_of(self.kernel)
        return dot_general(x, kernel, (((1,), (0,)), ((), ()))) + value_of(self.bias)


def test_nnx_layers_as_a_product() -> None:
    x = normal(0, 16, 6)
    graph, params = nnx.split(Bottleneck(nnx.Rngs(0)), nnx.Param)
    products = [Product("down/kernel", "up/kernel")]

    def kernel(params: Any) -> Any:
        model = nnx.merge(graph, params)
        return value_of(model.down.kernel) @ value_of(model.up.kernel)

    found = same_training(
        frobenius_decay(COEFFICIENT, products=products),
        params,
        lambda p: jnp.mean((nnx.merge(graph, p)(x) - 1) ** 2),
        lambda p: [kernel(p)],
    )
    np.testing.assert_allclose(
        frobenius_penalty(found, products), 0.5 * jnp.sum(kernel(found) ** 2), rtol=1e-5
    )
    assert products_by_suffix(params, "down/kernel", "up/kernel") == tuple(products)
    with pytest.raises(ValueError, match=r"down/kernal, which is not.*down/kernel"):
        frobenius_decay(0.1, products=[Product("down/kernal", "up/kernel")]).init(params)


def test_nnx_variable_that_holds_a_weight() -> None:
    x = normal(0, 16, 6)
    graph, params = nnx.split(Factorized(), nnx.Param)

    def everything(params: Any) -> list[Any]:
        model = nnx.merge(graph, params)
        weight = value_of(model.kernel)
        return [weight.u @ weight.vt, value_of(model.bias)]

    def loss(params: Any) -> Any:
        return jnp.mean(nnx.merge(graph, params)(x) ** 2)

    same_training(decay(COEFFICIENT), params, loss, everything)


def test_nnx_optimizer() -> None:
    """nnx's own optimizer class drives the transform."""
    x, model = normal(0, 16, 6), Factorized()
    start = value_of(model.kernel)
    tx = optax.chain(frobenius_decay(COEFFICIENT), optax.sgd(RATE))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    gradient = nnx.grad(lambda model: 0.0 * jnp.mean(model(x)))(model)
    optimizer.update(model, gradient)
    moved = start.u - RATE * COEFFICIENT * start.u @ (start.vt @ start.vt.T)
    np.testing.assert_allclose(value_of(model.kernel).u, moved, rtol=1e-5, atol=1e-6)


class Net(eqx.Module):
    """A factorized weight as a field, a product of two fields, and what is no array."""

    kernel: LowRank
    down: eqx.nn.Linear
    up: eqx.nn.Linear
    activation: Callable
    calls: int

    def __call__(self, x: Any) -> Any:
        hidden = self.activation(x @ self.kernel.u @ self.kernel.vt)
        return self.up(self.down(hidden))


def test_an_equinox_tree() -> None:
    x = normal(0, 16, 6)
    keys = jax.random.split(jax.random.key(1))
    net = Net(
        LowRank(normal(2, 6, 2), normal(3, 2, 4)),
        eqx.nn.Linear(4, 2, use_bias=False, key=keys[0]),
        eqx.nn.Linear(2, 3, key=keys[1]),
        jax.nn.relu,
        3,
    )
    params, static = eqx.partition(net, eqx.is_inexact_array)
    # Equinox stores (out, in): the map is up @ down, and the first axis of `down` is contracted.
    product = Product("up/weight", "down/weight")
    found = same_training(
        frobenius_decay(COEFFICIENT, products=[product]),
        params,
        lambda p: jnp.mean(jax.vmap(eqx.combine(p, static))(x) ** 2),
        lambda p: [p.kernel.u @ p.kernel.vt, p.up.weight @ p.down.weight],
    )
    assert eqx.combine(found, static).calls == 3
