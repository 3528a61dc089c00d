"""The wide ResNet against the published counts, moments, and a computation in NumPy."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from numpy_layers import convolve, dense_variables, depthwise, norm, relu

from experiments import models
from experiments.errors import RunError
from experiments.models.wide_resnet import FACTORIZED, POINTWISE, Block, WideResNet


def shapes(depth=28, classes=10, width=1.0, separable=False):
    model = WideResNet(classes, depth=depth, width=width, separable=separable)
    return jax.eval_shape(
        lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), False)["params"], jax.random.key(0)
    )


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def matching(pattern, tree):
    return [p for p in map("/".join, flatten_dict(tree)) if re.fullmatch(pattern, p)]


def test_published_count():
    assert count(shapes()) == 36479194
    assert count(shapes(classes=100)) == 36479194 + 90 * 641


def test_depthwise_kernels_and_factorized_kernels_as_published():
    assert len(matching(FACTORIZED, shapes())) == 27
    separable = shapes(separable=True)
    assert len(matching(POINTWISE, separable)) == 24
    flat = flatten_dict(separable, sep="/")
    assert sum(flat[p].size for p in matching(r".*/depthwise/kernel", separable)) == 75024
    pointwise = sum(flat[p].size for p in matching(POINTWISE, separable))
    dense = sum(leaf.size for p, leaf in flatten_dict(shapes(), sep="/").items()
                if re.fullmatch(r"block_\d+/conv[12]/kernel", p))  # fmt: skip
    assert 9 * pointwise == dense


@pytest.mark.parametrize("width", [0.1, 0.25, 0.4])
def test_narrow_twins_keep_the_stem(width):
    params = shapes(depth=10, width=width)
    assert params["stem"]["kernel"].shape == (3, 3, 3, 16)
    assert params["head"]["kernel"].shape == (round(640 * width), 10)
    # At the smallest width the first group has as many channels as the stem: no projection.
    assert ("projection" in params["block_1"]) == (width != 0.1)


@pytest.mark.parametrize("separable", [False, True])
def test_initialization_moments(separable):
    model = WideResNet(200, depth=10, width=0.4, separable=separable)
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 16, 16, 3)), False)["params"])
    for path, leaf in flatten_dict(init(jax.random.key(0))).items():
        values = np.asarray(leaf, np.float64)
        if path[-1] != "kernel":
            np.testing.assert_array_equal(values, float(path[-1] == "scale"))
            continue
        height, width, _, out = leaf.shape if leaf.ndim == 4 else (1, 1, *leaf.shape)
        variance = {"head": 1 / (3 * 256), "depthwise": 2 / (9 * out)}.get(
            path[-2], 2 / (height * width * out)
        )
        assert abs(values.var() / variance - 1) < 5 * np.sqrt(2 / values.size), path
        if path[0] == "head":
            assert np.abs(values).max() <= 1 / 16


@pytest.mark.parametrize(
    ("channels", "stride", "separable"), [(4, 2, False), (6, 1, False), (4, 2, True), (6, 1, True)]
)
@pytest.mark.usefixtures("x64")
def test_block_against_numpy(channels, stride, separable):
    x = np.random.default_rng(2).normal(size=(2, 8, 8, channels))
    block = Block(features=6, stride=stride, separable=separable)
    variables = dense_variables(block, x, False)
    p, statistics = variables["params"], variables["batch_stats"]

    def conv(x, name, stride):
        if separable:
            x = depthwise(x, p[name]["depthwise"]["kernel"], stride)
            return x @ p[name]["pointwise"]["kernel"][0, 0]
        return convolve(x, p[name]["kernel"], stride)

    activated = relu(norm(x, p["norm1"], statistics["norm1"]))
    y = relu(norm(conv(activated, "conv1", stride), p["norm2"], statistics["norm2"]))
    y = conv(y, "conv2", 1)
    if channels == 6:
        expected = x + y
    else:
        expected = activated[:, ::stride, ::stride] @ p["projection"]["kernel"][0, 0] + y
    found = jax.jit(lambda v: block.apply(v, x, False))(variables)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_what_surrounds_the_blocks_against_numpy():
    model = WideResNet(num_classes=5, depth=10, width=1 / 32)
    images = np.random.default_rng(1).normal(size=(2, 16, 16, 3))
    variables = dense_variables(model, images, False)
    p, statistics = variables["params"], variables["batch_stats"]
    x = convolve(images, p["stem"]["kernel"])
    for index, (features, stride) in enumerate([(5, 1), (10, 2), (20, 2)], start=1):
        name = f"block_{index}"
        block = Block(features=features, stride=stride)
        x = block.apply({"params": p[name], "batch_stats": statistics[name]}, x, False)
    x = relu(norm(np.asarray(x), p["norm"], statistics["norm"])).mean((1, 2))
    expected = x @ p["head"]["kernel"] + p["head"]["bias"]
    found = jax.jit(lambda v: model.apply(v, images, False))(variables)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_a_depth_that_does_not_exist_is_refused():
    with pytest.raises(RunError, match="depth 20 does not exist: depth is 6n \\+ 4"):
        models.build({"name": "wide_resnet", "depth": 20, "width": 1.0}, 10)
