"""The ResNets against the published counts, moments, and a computation in NumPy."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from numpy_layers import convolve

import lowrank_jax as lrj
from configs import cifar_resnet
from experiments import models, recipe
from experiments.errors import RunError
from experiments.models import projection_resnet, resnet


def shapes(depth, classes=10, width=1, channels=3, name="resnet"):
    model = models.build({"name": name, "depth": depth, "width": width}, classes)
    images = jnp.zeros((1, 32, 32, channels))
    return jax.eval_shape(lambda key: model.init(key, images, False), jax.random.key(0))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("depth", "published"), [(20, 269722), (32, 464154), (56, 853018)])
def test_published_parameter_counts(depth, published):
    assert count(shapes(depth)["params"]) == published
    assert count(shapes(depth, classes=100)["params"]) == published + 5850


@pytest.mark.parametrize(("depth", "width"), [(44, 1), (110, 1), (20, 2), (32, 4)])
def test_parameter_count_in_closed_form(depth, width):
    n, w = (depth - 2) // 6, 16 * width
    stem = 27 * w + 2 * w
    convolutions = sum(
        9 * c * c * (2 * n) - (9 * c * c // 2 if stage else 0)
        for stage, c in enumerate((w, 2 * w, 4 * w))
    )
    norms = sum(2 * c * 2 * n for c in (w, 2 * w, 4 * w))
    head = 4 * w * 10 + 10
    assert count(shapes(depth, width=width)["params"]) == stem + convolutions + norms + head


@pytest.mark.parametrize(("depth", "modules"), [(20, 18), (32, 30), (44, 42), (56, 54), (110, 108)])
def test_the_factorized_kernels_are_the_block_convolutions(depth, modules):
    paths = ["/".join(path) for path in flatten_dict(shapes(depth)["params"])]
    pattern = resnet.FACTORIZED
    assert sum(bool(re.fullmatch(pattern, path)) for path in paths) == modules
    assert {"stem/kernel", "block_1/conv1/kernel", "head/kernel", "head/bias"} <= set(paths)
    assert f"block_{modules // 2}/norm2/scale" in paths


@pytest.mark.parametrize(
    ("rank_scale", "published"),
    [
        (0.0087890625, 150090),
        (0.02392578125, 373194),
        (0.0478515625, 743370),
        (0.07177734375, 1109898),
    ],
)
def test_published_counts_of_the_wide_network(rank_scale, published):
    params = shapes(32, name="projection_resnet")["params"]
    assert count(params) == 7427914
    config = cifar_resnet.get_config(f"model=projection_resnet,rank_scale={rank_scale}")
    table = lrj.resolve(params, recipe.rules(config, params))
    assert (table.parameters, table.dense_parameters) == (published, 7427914)
    # Five blocks a stage; the first block of the second and of the third has a projection.
    assert len(table.rows) == 32
    projections = {row.path for row in table.rows if "conv" not in row.path}
    assert projections == {"block_6/projection/kernel", "block_11/projection/kernel"}


def test_the_wide_network_is_wider_by_width():
    params = shapes(8, classes=7, width=2, name="projection_resnet")["params"]
    assert params["stem"]["kernel"].shape == (3, 3, 3, 128)
    assert params["head"]["kernel"].shape == (512, 7)
    assert params["block_2"]["projection"]["kernel"].shape == (1, 1, 128, 256)
    assert set(params["block_1"]) == {"conv1", "conv2", "norm1", "norm2"}


def test_initialization_of_the_wide_network():
    model = models.build({"name": "projection_resnet", "depth": 8, "width": 1}, 100)
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 8, 8, 3)), False))
    for path, leaf in flatten_dict(init(jax.random.key(0))["params"]).items():
        values = np.asarray(leaf, np.float64)
        if path[-1] == "kernel":
            error = 5 * np.sqrt(2 / values.size)
            assert abs(values.var() * np.prod(leaf.shape[:-1]) / 2 - 1) < error, path
        else:
            np.testing.assert_array_equal(values, float(path[-1] == "scale"))


def test_initialization_moments():
    model = models.build({"name": "resnet", "depth": 20, "width": 4}, 100)
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False)["params"]
    for path, leaf in flatten_dict(params).items():
        values = np.asarray(leaf, np.float64)
        if path[-1] == "kernel":
            variance = 2 / np.prod(leaf.shape[:-1])
            # A normal sample's variance has a relative standard error of sqrt(2 / size).
            error = 5 * np.sqrt(2 / values.size)
            assert abs(values.var() / variance - 1) < error, path
            if values.size > 50_000:  # a truncated normal would end at 2.3 standard deviations
                assert np.abs(values).max() > 3.5 * np.sqrt(variance), path
        elif path[0] == "head":
            bound = 256**-0.5
            assert np.abs(values).max() <= bound
            assert abs(values.std() / (bound / np.sqrt(3)) - 1) < 0.15
        else:
            np.testing.assert_array_equal(values, float(path[-1] == "scale"))


@pytest.mark.parametrize(("features", "stride"), [(4, 1), (8, 2)])
def test_shortcut_against_numpy(features, stride):
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    expected = np.zeros((2, 8 // stride, 8 // stride, features), np.float32)
    before = features // 4 if features > 4 else 0  # a quarter of the new width on each side
    expected[..., before : before + 4] = x[:, ::stride, ::stride]
    np.testing.assert_array_equal(resnet.shortcut(jnp.array(x), features, stride), expected)


@pytest.mark.parametrize(("channels", "stride"), [(4, 2), (4, 1), (6, 1), (6, 2)])
@pytest.mark.usefixtures("x64")
def test_projection_block_against_numpy(channels, stride):
    """Six features: a projection unless the shape stays; in evaluation, with statistics."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 8, 8, channels))
    block = projection_resnet.ProjectionBlock(features=6, stride=stride)
    shapes = jax.eval_shape(lambda x: block.init(jax.random.key(0), x, False), x)
    variables = jax.tree.map(lambda leaf: 0.5 + np.abs(rng.normal(size=leaf.shape)), shapes)
    variables["params"] = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes["params"])
    p, statistics = variables["params"], variables["batch_stats"]
    assert ("projection" in p) == (channels != 6 or stride != 1)

    def norm(x, name):
        scale = p[name]["scale"] / np.sqrt(statistics[name]["var"] + 1e-5)
        return (x - statistics[name]["mean"]) * scale + p[name]["bias"]

    y = np.maximum(norm(convolve(x, p["conv1"]["kernel"], stride), "norm1"), 0)
    y = norm(convolve(y, p["conv2"]["kernel"], 1), "norm2")
    if "projection" in p:
        x_there = norm(
            x[:, ::stride, ::stride] @ p["projection"]["kernel"][0, 0], "projection_norm"
        )
    else:
        x_there = x
    found = block.apply(variables, x, False)
    np.testing.assert_allclose(found, np.maximum(x_there + y, 0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("train", [True, False])
def test_forward_against_numpy(train):
    model = models.build({"name": "resnet", "depth": 8, "width": 1}, 10)
    rng = np.random.default_rng(1)
    images = rng.normal(size=(4, 8, 8, 3)).astype(np.float32)
    variables = model.init(jax.random.key(3), jnp.array(images), False)
    # Scales, shifts and running statistics of their own, so that none can be mistaken for another.
    variables = jax.tree.map(lambda v: v + 0.1 * np.abs(rng.normal(size=v.shape)), variables)
    p = jax.tree.map(lambda v: np.asarray(v, np.float64), variables["params"])
    statistics = jax.tree.map(lambda v: np.asarray(v, np.float64), variables["batch_stats"])
    updated = {}

    def norm(x, path, weights, running):
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        updated[path] = {
            "mean": 0.9 * running["mean"] + 0.1 * mean,
            "var": 0.9 * running["var"] + 0.1 * var,
        }
        if not train:
            mean, var = running["mean"], running["var"]
        return (x - mean) / np.sqrt(var + 1e-5) * weights["scale"] + weights["bias"]

    x = convolve(images.astype(np.float64), p["stem"]["kernel"], 1)
    x = np.maximum(norm(x, "stem_norm", p["stem_norm"], statistics["stem_norm"]), 0)
    for index, (features, stride) in enumerate([(16, 1), (32, 2), (64, 2)], start=1):
        block, running = p[f"block_{index}"], statistics[f"block_{index}"]
        y = convolve(x, block["conv1"]["kernel"], stride)
        y = np.maximum(norm(y, f"{index}/1", block["norm1"], running["norm1"]), 0)
        y = convolve(y, block["conv2"]["kernel"], 1)
        y = norm(y, f"{index}/2", block["norm2"], running["norm2"])
        added = (features - x.shape[-1]) // 2
        skipped = np.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (added, added)))
        x = np.maximum(skipped + y, 0)
    expected = x.mean((1, 2)) @ p["head"]["kernel"] + p["head"]["bias"]

    with jax.default_matmul_precision("highest"):
        logits, new = model.apply(variables, jnp.array(images), train, mutable=["batch_stats"])
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    if train:
        found = new["batch_stats"]["block_2"]["norm1"]
        for name in ("mean", "var"):
            np.testing.assert_allclose(found[name], updated["2/1"][name], rtol=1e-4, atol=1e-5)
    else:
        for name in ("mean", "var"):
            found = new["batch_stats"]["block_2"]["norm1"][name]
            np.testing.assert_array_equal(found, variables["batch_stats"]["block_2"]["norm1"][name])


def test_what_does_not_exist_is_refused():
    with pytest.raises(RunError, match=r"unknown model 'resent' \(did you mean 'resnet'\?\)"):
        models.build({"name": "resent", "depth": 20, "width": 1}, 10)
    with pytest.raises(RunError, match="depth 21 does not exist: depth is 6n \\+ 2"):
        models.build({"name": "resnet", "depth": 21, "width": 1}, 10)
