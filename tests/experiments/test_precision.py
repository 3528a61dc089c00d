"""bfloat16: what is computed in it, and what stays in float32."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from random_variables import random_variables

import lowrank_jax as lrj
from configs import cifar_resnet
from experiments import describe, models

IMAGES = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)


def network(precision: str, name: str = "projection_resnet") -> Any:
    return models.build({"name": name, "depth": 8, "width": 1}, 10, precision=precision)


def test_only_the_computation_is_bfloat16() -> None:
    model = network("bfloat16")
    variables = random_variables("projection_resnet", model, IMAGES)

    @jax.jit
    def train(variables: Any) -> Any:
        collections = ["batch_stats", "intermediates"]
        return model.apply(variables, IMAGES, True, mutable=collections, capture_intermediates=True)

    logits, new = train(variables)
    found = new["intermediates"]
    for name in ("stem", "stem_norm", "block_1", "block_2", "block_3"):
        assert found[name]["__call__"][0].dtype == jnp.bfloat16, name
    for name in ("conv1", "conv2", "norm1", "norm2", "projection", "projection_norm"):
        assert found["block_2"][name]["__call__"][0].dtype == jnp.bfloat16, name
    assert logits.dtype == jnp.float32
    # The statistics are float32's of the bfloat16 activations, not sums in bfloat16.
    stem = np.asarray(found["stem"]["__call__"][0], np.float64)
    assert {leaf.dtype for leaf in jax.tree.leaves(new["batch_stats"])} == {jnp.dtype("float32")}
    before, after = (tree["batch_stats"]["stem_norm"] for tree in (variables, new))
    for name, value in (("mean", stem.mean((0, 1, 2))), ("var", stem.var((0, 1, 2)))):
        expected = 0.9 * np.asarray(before[name], np.float64) + 0.1 * value
        np.testing.assert_allclose(after[name], expected, rtol=1e-4, atol=1e-6)
    # The mean over pixels and the head are float32's of the last block.
    head = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"]["head"])
    pixels = np.asarray(found["block_3"]["__call__"][0], np.float64)
    expected = pixels.mean((1, 2)) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_logits_are_those_of_float32_to_bfloat16s_precision() -> None:
    found = []
    for precision in ("float32", "bfloat16"):
        model = network(precision, "resnet")
        variables = random_variables("resnet", model, IMAGES)
        apply = jax.jit(lambda variables, model=model: model.apply(variables, IMAGES, False))
        found.append(np.asarray(apply(variables)))
    difference = np.abs(found[1] - found[0]).max() / np.abs(found[0]).max()
    assert 1e-5 < difference < 0.05  # A single rounding is 2 ** -9.


def test_the_state_and_its_decay_are_float32s() -> None:
    half, single = (
        describe.describe(cifar_resnet.get_config(f"depth=8,rank_scale=0.5,precision={precision}"))
        for precision in ("bfloat16", "float32")
    )
    assert jax.tree.leaves(half.abstract) == jax.tree.leaves(single.abstract)
    assert jax.tree.structure(half.abstract) == jax.tree.structure(single.abstract)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), half.abstract.params
    )

    @jax.jit
    def decayed(params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return half.tx.update(zeros, half.tx.init(params), params)[0]

    weight, update = (tree["block_1"]["conv1"]["kernel"] for tree in (params, decayed(params)))
    u, vt = (np.asarray(factor, np.float64) for factor in (weight.u, weight.vt))
    u, vt = u.reshape(-1, u.shape[-1]), np.moveaxis(vt, 2, 0).reshape(vt.shape[2], -1)
    expected = -0.1 * 1e-4 * (u @ (vt @ vt.T))
    found = np.asarray(update.u).reshape(u.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_gradients_are_float32() -> None:
    model = network("bfloat16")
    variables = random_variables("projection_resnet", model, IMAGES)

    def loss(params: Any) -> jax.Array:
        return jnp.sum(model.apply({**variables, "params": params}, IMAGES, False) ** 2)

    value, gradient = jax.eval_shape(jax.value_and_grad(loss), variables["params"])
    assert {leaf.dtype for leaf in jax.tree.leaves([value, gradient])} == {jnp.dtype("float32")}
    kernel = gradient["block_2"]["projection"]["kernel"]
    assert lrj.is_factorized(kernel) and kernel.shape == (1, 1, 64, 128)
