"""Batch normalization with its own backward pass, against Flax's layer and autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lowrank_jax.linen.normalization import (
    batch_norm,
    batch_norm_of_parts,
    efficient_batch_norm,
)

AXES = [(6, 3), (4, 5, 3), (2, 4, 5, 3)]


def layer(**fields):
    return nn.BatchNorm(**({"use_running_average": False, "epsilon": 1e-3} | fields))


def trained(model, variables, x, efficient):
    """Output, new statistics and gradients of a random projection, by parameters and input."""
    direction = jax.random.normal(jax.random.key(9), x.shape, x.dtype)

    def loss(params, x):
        def apply():
            return model.apply({**variables, "params": params}, x, mutable=["batch_stats"])

        if not efficient:
            y, state = apply()
        else:
            with efficient_batch_norm():
                y, state = apply()
        return jnp.sum(jnp.sin(y) * direction), (y, state)

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables["params"], x)


def uses_own_backward(model, variables, x, **kwargs):
    def apply(x):
        with efficient_batch_norm():
            return model.apply(variables, x, mutable=["batch_stats"], **kwargs)[0]

    return "custom_vjp" in str(jax.make_jaxpr(apply)(x))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", AXES)
def test_it_is_flax_layer(shape):
    x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), shape, jnp.float64)
    model = layer(dtype=jnp.float64, param_dtype=jnp.float64)
    variables = model.init(jax.random.key(1), x)
    variables = jax.tree.map(lambda leaf: leaf + jnp.linspace(0.5, 1.5, 3), variables)
    assert uses_own_backward(model, variables, x)
    found, expected = (trained(model, variables, x, efficient) for efficient in (True, False))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-11, atol=1e-12)


def test_statistics_by_hand():
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    y, mean, var = batch_norm(x, jnp.full(4, 2.0), jnp.full(4, -1.0), 1e-5)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(0), atol=1e-6)
    np.testing.assert_allclose(var, exact.var(0), rtol=1e-5)
    expected = 2 * (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5) - 1
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_bfloat16_inputs_have_float32_statistics():
    x = jax.random.normal(jax.random.key(0), (64, 3), jnp.bfloat16)
    model = layer(dtype=jnp.bfloat16)
    variables = model.init(jax.random.key(1), x)
    assert uses_own_backward(model, variables, x)
    (_, (y, state)), (_, of_x) = trained(model, variables, x, True)
    (_, (theirs, _)), _ = trained(model, variables, x, False)
    assert y.dtype == of_x.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state))
    np.testing.assert_allclose(*(np.float32(a) for a in (y, theirs)), atol=2**-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"use_running_average": True},
        {"axis": 0},
        {"use_scale": False},
        {"use_bias": False},
        {"use_fast_variance": False},
        {"dtype": jnp.bfloat16},
    ],
    ids=str,
)
def test_other_settings_are_left_to_flax(fields):
    x = jax.random.normal(jax.random.key(0), (5, 5))
    model = layer(**fields)
    variables = model.init(jax.random.key(1), x)
    assert not uses_own_backward(model, variables, x)


def test_float32_parameters_promote_bfloat16_inputs():
    x = jax.random.normal(jax.random.key(0), (5, 5), jnp.bfloat16)
    variables = layer().init(jax.random.key(1), x)
    assert not uses_own_backward(layer(), variables, x)
    with efficient_batch_norm():
        assert layer().apply(variables, x, mutable=["batch_stats"])[0].dtype == jnp.float32


def test_a_mask_is_left_to_flax():
    x = jax.random.normal(jax.random.key(0), (5, 5))
    variables = layer().init(jax.random.key(1), x)
    assert not uses_own_backward(layer(), variables, x, mask=jnp.ones((5, 5), bool))


def test_the_same_variables_and_nothing_outside_the_context():
    x = jax.random.normal(jax.random.key(0), (5, 3))
    plain = layer().init(jax.random.key(1), x)
    with efficient_batch_norm():
        own = layer().init(jax.random.key(1), x)
    assert jax.tree.structure(plain) == jax.tree.structure(own)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(own), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and (a == b).all()
    jaxpr = jax.make_jaxpr(lambda x: layer().apply(plain, x, mutable=["batch_stats"])[0])(x)
    assert "custom_vjp" not in str(jaxpr)


@pytest.mark.usefixtures("x64")
def test_parts_of_a_batch_are_normalized_by_themselves():
    """Output and gradients are those of Flax's layer on each part; statistics are averaged."""
    x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (6, 5, 5, 3), jnp.float64)
    model = layer(dtype=jnp.float64, param_dtype=jnp.float64)
    variables = model.init(jax.random.key(1), x)
    variables = jax.tree.map(lambda leaf: leaf + jnp.linspace(0.5, 1.5, 3), variables)
    direction = jax.random.normal(jax.random.key(2), x.shape, x.dtype)

    def of_parts(params, x):
        with efficient_batch_norm(parts=3):
            y, state = model.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return jnp.sum(y * direction), (y, state["batch_stats"])

    def of_each(params, x):
        outcomes = [
            model.apply({**variables, "params": params}, x[i : i + 2], mutable=["batch_stats"])
            for i in (0, 2, 4)
        ]
        y = jnp.concatenate([y for y, _ in outcomes])
        states = [state["batch_stats"] for _, state in outcomes]
        return jnp.sum(y * direction), (y, jax.tree.map(lambda *s: sum(s) / 3, *states))

    found, expected = (
        jax.value_and_grad(loss, (0, 1), has_aux=True)(variables["params"], x)
        for loss in (of_parts, of_each)
    )
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-11, atol=1e-12)


def test_a_batch_that_cannot_be_cut_is_one_part():
    x = jax.random.normal(jax.random.key(0), (5, 4))
    whole = batch_norm(x, jnp.ones(4), jnp.zeros(4), 1e-5)
    for mine, theirs in zip(
        batch_norm_of_parts(x, jnp.ones(4), jnp.zeros(4), 1e-5, 2), whole, strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)
