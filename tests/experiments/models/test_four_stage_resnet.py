"""ResNet-18 and ResNet-50: moments, what they cost, and a computation in NumPy."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from numpy_layers import convolve, max_pool, norm, random_variables, relu

import lowrank_jax as lrj
from experiments import models
from experiments.models.four_stage_resnet import (
    WITH_PROJECTIONS,
    ResNet18,
    ResNet50,
    WideResNet50,
)
from experiments.multiply_adds import multiply_adds
from lowrank_jax.linen import add_factor_norms


# Of one stage or two, so that they compile quickly.
class One18(ResNet18):
    blocks = (1,)


class One50(ResNet50):
    blocks = (1,)


class Short18(ResNet18):
    blocks = (1, 2)


class Short50(ResNet50):
    blocks = (2, 1)


class ShortWide50(WideResNet50):
    blocks = (2, 1)


# Sixteen pixels for a stem that leaves four of them; seven pixels have a middle one.
SHORT = [(Short18, 7), (Short50, 16), (ShortWide50, 16)]


def images(size):
    return np.random.default_rng(1).normal(size=(2, size, size, 3))


def shapes_of(model, x):
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), x)


def factorized(shapes):
    """Shortcuts, too, and norms between the factors of the other convolutions."""
    rule = lrj.Rule(WITH_PROJECTIONS, lrj.RankScale(0.5), lrj.ChannelLowRank)
    params = lrj.factorize(shapes["params"], [rule])
    rows = tuple(row for row in lrj.describe(params).rows if "conv" in row.path)
    params, statistics = add_factor_norms(params, shapes["batch_stats"], lrj.Table(rows))
    return {"params": params, "batch_stats": statistics}


def conv(x, params, statistics, stride):
    """One with its norm between the factors, where it has them."""
    kernel = params["kernel"]
    if not lrj.is_factorized(kernel):
        return convolve(x, kernel, stride)
    hidden = convolve(x, kernel.u, stride)
    if "factor_norm" in params:
        hidden = norm(hidden, params["factor_norm"], statistics["factor_norm"])
    return convolve(hidden, kernel.vt)


def in_numpy(model, variables, x):
    p, s = variables["params"], variables["batch_stats"]
    small = isinstance(model, ResNet18)
    x = convolve(x, p["stem"]["kernel"], 1 if small else 2)
    x = relu(norm(x, p["stem_norm"], s["stem_norm"]))
    x = x if small else max_pool(x)
    strides = {2: (2, 1), 3: (1, 2, 1)}
    for stage, blocks in enumerate(model.blocks, start=1):
        for number in range(1, blocks + 1):
            name = f"stage_{stage}_block_{number}"
            block, running = p[name], s[name]
            layers = [key for key in block if re.fullmatch(r"conv\d", key)]
            shrinks, y = stage > 1 and number == 1, x
            for layer, stride in enumerate(strides[len(layers)], start=1):
                conv_name, norm_name = f"conv{layer}", f"norm{layer}"
                stride = stride if shrinks else 1
                y = conv(y, block[conv_name], running.get(conv_name), stride)
                y = norm(y, block[norm_name], running[norm_name])
                y = relu(y) if layer < len(layers) else y
            if "projection" in block:
                x = conv(x, block["projection"], None, 2 if shrinks else 1)
                x = norm(x, block["projection_norm"], running["projection_norm"])
            x = relu(x + y)
    return x.mean((1, 2)) @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize(("cls", "size"), SHORT)
@pytest.mark.usefixtures("x64")
def test_forward_against_numpy(cls, size, low_rank):
    model = cls(num_classes=5, width=1 / 16, factor_norm=True)
    x = images(size)
    shapes = shapes_of(model, x)
    shapes = factorized(shapes) if low_rank else shapes
    variables = random_variables(shapes)
    found = jax.jit(lambda v: model.apply(v, x, False))(variables)
    np.testing.assert_allclose(found, in_numpy(model, variables, x), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_rematerialized_it_trains_alike():
    x, results = images(6), []
    for remat in (False, True):
        model = One18(num_classes=5, width=1 / 32, factor_norm=True, remat=remat)
        variables = random_variables(factorized(shapes_of(model, x)))

        def loss(params, model=model, variables=variables):
            given = {**variables, "params": params}
            logits, new = model.apply(given, x, True, mutable=["batch_stats"])
            return jnp.sum(logits**2), new

        results.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"]))
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * np.abs(one).max())


@pytest.mark.parametrize("cls", [One18, One50])
def test_initialization_moments(cls):
    model = cls(num_classes=50, width=1 / 2)
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 16, 16, 3)), False)["params"])
    params = flatten_dict(init(jax.random.key(0)))
    for path, leaf in params.items():
        values = np.asarray(leaf, np.float64)
        if cls is One50 and path[-1] == "kernel" and path[0] != "head":
            variance, kurtosis = 2 / (np.prod(leaf.shape[:2]) * leaf.shape[-1]), 3
        elif path[-1] == "kernel" or path[0] == "head":
            # As PyTorch's layers are by default: uniform within 1 / sqrt(inputs).
            kernel = params[*path[:-1], "kernel"]
            bound = np.prod(kernel.shape[:-1]) ** -0.5
            assert np.abs(values).max() <= bound, path
            variance, kurtosis = bound**2 / 3, 1.8
        else:
            np.testing.assert_array_equal(values, float(path[-1] == "scale"))
            continue
        error = 5 * np.sqrt((kurtosis - 1) / values.size)
        assert abs(np.mean(values**2) / variance - 1) < error, path


def cost(name, size, classes, kept=None):
    """Multiply-adds of an image, in thousand millions; at a quarter of the ranks but for `kept`."""
    model = models.build({"name": name}, classes)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = shapes_of(model, image)
    if kept is not None:
        candidates = models.find(name).rank_selection.candidates
        quarter = lrj.Rule(candidates, lrj.RankScale(0.25), lrj.ChannelLowRank)
        params = lrj.factorize(shapes["params"], [lrj.Rule(kept, None), quarter])
        shapes = {**shapes, "params": params}
    return multiply_adds(lambda v, x: model.apply(v, x, False), shapes, image) / 1e9


def test_published_costs():
    """torchvision's table of models, and Pufferfish's notebook for its ResNet-18."""
    assert round(cost("resnet50", 224, 1000), 2) == 4.09
    assert round(cost("wide_resnet50", 224, 1000), 2) == 11.40
    kept = models.find("resnet18").rank_selection.kept_by_pufferfish
    assert round(cost("resnet18", 32, 10, kept), 2) == 0.22


def test_only_the_computation_is_bfloat16():
    model = Short50(10, width=1 / 16, factor_norm=True, dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = factorized(shapes_of(model, image))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    options = {"mutable": ["intermediates"], "capture_intermediates": True}
    apply = functools.partial(model.apply, train=False, **options)
    logits, found = jax.eval_shape(apply, variables, image)
    assert logits.dtype == jnp.float32
    inside = flatten_dict(found["intermediates"])
    dtypes = {values[0].dtype for path, values in inside.items() if len(path) > 2}
    assert dtypes == {jnp.dtype("bfloat16")}
    assert any("factor_norm" in path for path in inside)
