"""TensorTrain and Tucker in flax: a separable convolution, scans, remat, training, msgpack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import serialization

from lowrank_jax import RankScale, Rule, TensorTrain, Tucker, decay, describe, factorize, merge
from lowrank_jax.initializers import factorized
from lowrank_jax.linen import Conv, lift

KEY = jax.random.key(0)
both_kinds = pytest.mark.parametrize("kind", [TensorTrain, Tucker])


class Residual(nn.Module):
    """Three matrices under a scan."""

    @nn.compact
    def __call__(self, x):
        def body(module, carry, _):
            return carry + jnp.tanh(nn.Dense(12, name="dense")(carry)), None

        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        return nn.scan(body, length=3, **axes)(self, x, None)[0]


class Net(nn.Module):
    """A separable convolution, its pointwise half under remat, then the residual matrices."""

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        x = nn.Conv(channels, (3, 3), feature_group_count=channels, name="depthwise")(x)
        x = nn.remat(nn.Conv)(12, (1, 1), name="pointwise")(x)
        return Residual(name="residual")(x.mean((1, 2)))


def rules(kind):
    return [
        Rule("pointwise/kernel", RankScale(0.7), kind),
        Rule("residual/dense/kernel", RankScale(0.7), kind, spatial_axes=0),
    ]


@pytest.fixture(scope="module")
def example():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 6, 6, 8)), jnp.float32)
    return jax.jit(Net().init)(KEY, x)["params"], x


@both_kinds
def test_a_lifted_network_computes_with_the_composed_kernels(kind, example):
    params, x = example
    params = factorize(params, rules(kind))
    assert [row.shape for row in describe(params).rows] == [(1, 1, 8, 12), (3, 12, 12)]
    found = jax.jit(lift(Net()).apply)({"params": params}, x)
    expected = Net().apply({"params": merge(params)}, x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@both_kinds
def test_a_network_trains_with_donated_parameters(kind, example):
    params, x = example
    params = jax.tree.map(jnp.copy, factorize(params, rules(kind)))
    model, tx = lift(Net()), optax.chain(decay(1e-3), optax.sgd(0.05, momentum=0.9))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        def loss(params):
            return jnp.mean((model.apply({"params": params}, x) - 1.0) ** 2)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    before, state, losses = params, tx.init(params), []
    for _ in range(5):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    assert before["pointwise"]["kernel"].core1.is_deleted()
    assert describe(params).differences(describe(jax.eval_shape(lambda: params))) == []


@both_kinds
def test_msgpack_round_trip_and_refusal(kind, example):
    params = factorize(example[0], rules(kind))
    saved = serialization.to_bytes(params)
    for target in (jax.tree.map(jnp.zeros_like, params), jax.eval_shape(lambda: params)):
        restored = serialization.from_bytes(target, saved)
        assert jax.tree.structure(restored) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, restored, params)
    kernel = params["pointwise"]["kernel"]
    with pytest.raises(ValueError, match="outputs=12, spatial_axes=0"):
        serialization.from_bytes(
            {"k": kernel.replace(spatial_axes=0)}, serialization.to_bytes({"k": kernel})
        )


@both_kinds
def test_born_in_a_layer(kind):
    init = factorized(kind, RankScale(0.7))
    x = jnp.ones((2, 4, 4, 8))
    params = jax.jit(Conv(12, (1, 1), kernel_init=init).init)(KEY, x)["params"]
    assert isinstance(params["kernel"], kind) and params["kernel"].shape == (1, 1, 8, 12)
    found = Conv(12, (1, 1), kernel_init=init).apply({"params": params}, x)
    expected = nn.Conv(12, (1, 1)).apply({"params": merge(params)}, x)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(ValueError, match="is for pointwise kernels"):
        Conv(12, (3, 3), kernel_init=init).init(KEY, x)
    # A kernel for another number of inputs is refused by the layer, with the path.
    with pytest.raises(ValueError, match=r"kernel: found a .* of shape \(1, 1, 8, 12\)"):
        Conv(12, (1, 1)).apply({"params": params}, jnp.ones((2, 4, 4, 6)))
