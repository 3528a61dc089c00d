"""VGG against the published counts, moments, and a computation in NumPy."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from numpy_layers import convolve, dense_variables, norm, relu

from experiments import models
from experiments.errors import RunError
from experiments.models.vgg import FACTORIZED, VGG


def shapes(depth, classes=10, width=1.0):
    model = models.build({"name": "vgg", "depth": depth, "width": width}, classes)
    return jax.eval_shape(
        lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), False)["params"], jax.random.key(0)
    )


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_published_count():
    assert count(shapes(19)) == 20035018
    assert count(shapes(19, classes=200)) == 20035018 + 190 * 513


@pytest.mark.parametrize(("depth", "width"), [(11, 1.0), (13, 0.5), (16, 0.25), (19, 0.25)])
def test_count_in_closed_form(depth, width):
    per_stage = {11: "11222", 13: "22222", 16: "22333", 19: "22444"}[depth]
    channels = [
        int(width * c)
        for c, layers in zip((64, 128, 256, 512, 512), per_stage, strict=True)
        for _ in range(int(layers))
    ]
    assert len(channels) == depth - 3  # three linear layers in the original, one here
    convolutions = sum(9 * a * b for a, b in zip([3, *channels], channels, strict=False))
    expected = convolutions + 2 * sum(channels) + channels[-1] * 10 + 10
    assert count(shapes(depth, width=width)) == expected


def test_all_convolutions_but_the_first_are_factorized():
    paths = ["/".join(path) for path in flatten_dict(shapes(19))]
    chosen = [path for path in paths if re.fullmatch(FACTORIZED, path)]
    assert sorted(chosen) == sorted(f"layer_{i}/conv/kernel" for i in range(2, 17))


def test_initialization_moments():
    model = models.build({"name": "vgg", "depth": 11, "width": 0.5}, 200)
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 16, 16, 3)), False)["params"])
    for path, leaf in flatten_dict(init(jax.random.key(0))).items():
        values = np.asarray(leaf, np.float64)
        if path[-1] == "kernel":
            variance = 1e-4 if path[0] == "head" else 2 / np.prod(leaf.shape[:-1])
            error = 5 * np.sqrt(2 / values.size)
            assert abs(values.var() / variance - 1) < error, path
        else:
            np.testing.assert_array_equal(values, float(path[-1] == "scale"))


@pytest.mark.usefixtures("x64")
def test_forward_against_numpy():
    model = VGG(num_classes=5, depth=11, width=1 / 16)
    images = np.random.default_rng(1).normal(size=(2, 32, 32, 3))
    variables = dense_variables(model, images, False)
    p, statistics = variables["params"], variables["batch_stats"]
    x = images
    for index in range(1, 9):
        if index in (2, 3, 5, 7):  # Pooling between the stages of 1, 1, 2, 2, 2 layers.
            n, height, width, channels = x.shape
            x = x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))
        layer, running = p[f"layer_{index}"], statistics[f"layer_{index}"]
        x = relu(norm(convolve(x, layer["conv"]["kernel"]), layer["norm"], running["norm"]))
    assert x.shape == (2, 2, 2, 32)
    expected = x.mean((1, 2)) @ p["head"]["kernel"] + p["head"]["bias"]
    found = jax.jit(lambda v: model.apply(v, images, False))(variables)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_a_depth_that_does_not_exist_is_refused():
    with pytest.raises(RunError, match="depth 20 does not exist: depth is one of 11, 13, 16, 19"):
        models.build({"name": "vgg", "depth": 20, "width": 1.0}, 10)
