"""Gradients of whole networks: the values, and what is left of the batch-first layout."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from agreement import assert_agrees
from flax import linen as nn
from jaxprs import equations

import lowrank_jax as lrj
from experiments import models
from lowrank_jax.batch_minor import batch_minor


def network(name="resnet", kind=None, scale=0.25, seed=0):
    """Loss of a small model with auxiliary output, and its arguments."""
    model = models.build({"name": name, "depth": 8, "width": 1}, 10, precision="float64")
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.standard_normal((2, 8, 8, 3)))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, False))
    params = shapes["params"]
    if kind is not None:
        rules = [
            lrj.Rule(models.find(name).factorization("conv").pattern, lrj.RankScale(scale), kind)
        ]
        params = lrj.factorize(params, rules)

    def values(leaf):
        if len(leaf.shape) == 1:
            return jnp.asarray(0.5 + rng.random(leaf.shape))
        fan_in = math.prod(leaf.shape[:-1])
        return jnp.asarray(rng.standard_normal(leaf.shape) * math.sqrt(2 / fan_in))

    variables = jax.tree.map(values, {**shapes, "params": params})
    labels = jnp.array([1, 7])

    def loss(params, statistics, images):
        given = {"params": params, "batch_stats": statistics}
        logits, new = model.apply(given, images, True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (new["batch_stats"], logits)

    return loss, (variables["params"], variables["batch_stats"], images)


NETWORKS = [
    ("resnet", None, 1.0),
    ("resnet", lrj.ChannelLowRank, 0.04),
    ("projection_resnet", lrj.SpatialLowRank, 0.03),
]


@pytest.mark.parametrize(("name", "kind", "scale"), NETWORKS)
def test_gradients_of_the_residual_networks(name, kind, scale, x64):
    loss, args = network(name, kind, scale)
    # Images are an argument to differentiate by too: the first layer's input gradient.
    assert_agrees(jax.value_and_grad(loss, argnums=(0, 2), has_aux=True), *args)


def images_in(jaxpr: Any, primitive: str) -> list[tuple[int, ...]]:
    """Shapes of what all equations of a primitive make, where that has four axes."""
    shapes = [e.outvars[0].aval.shape for e in equations(jaxpr) if e.primitive.name == primitive]
    return [shape for shape in shapes if len(shape) == 4]


@pytest.mark.parametrize(("name", "kind", "scale"), NETWORKS)
def test_no_convolution_is_left(name, kind, scale, x64):
    loss, args = network(name, kind, scale)
    gradient = jax.value_and_grad(loss, has_aux=True)
    plain = jax.make_jaxpr(gradient)(*args)
    rewritten = jax.make_jaxpr(batch_minor(gradient))(*args)
    assert images_in(plain, "conv_general_dilated")
    assert not images_in(rewritten, "conv_general_dilated")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("kind", [lrj.SpatialLowRank, lrj.ChannelLowRank])
def test_traffic_scales_with_the_rank(kind, rank, stride):
    """No array has more rows over (padded) pixels than channels, or taps times the rank."""
    channels, batch = 48, 7
    weight = kind.template((3, 3, channels, channels), jnp.float32, rank, 2)
    x = jax.ShapeDtypeStruct((batch, 8, 8, channels), jnp.float32)
    numbers = ("NHWC", "HWIO", "NHWC")

    def loss(weight, x):
        padding, strides = ((1, 1), (1, 1)), (stride, stride)
        y = lrj.conv_general_dilated(
            x, weight, strides, padding, dimension_numbers=numbers, compose=False
        )
        return (y**2).sum()

    def largest(weight):
        jaxpr = jax.make_jaxpr(batch_minor(jax.grad(loss, argnums=(0, 1))))(weight, x)
        return max(math.prod(v.aval.shape) for e in equations(jaxpr) for v in e.outvars)

    taps = 3 if kind is lrj.SpatialLowRank else 9
    padded = 10 * 10 * batch
    assert largest(weight) <= max(taps * rank, channels) * padded
    full = kind.template((3, 3, channels, channels), jnp.float32, channels, 2)
    assert largest(weight) < largest(full)


class Small(nn.Module):
    """Two convolutions around a part that networks are made of."""

    part: str

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3))(x)
        match self.part:
            case "batch_norm":
                x = nn.BatchNorm(use_running_average=False)(x)
            case "layer_norm":
                x = nn.LayerNorm()(x)
            case "relu" | "gelu" | "swish" | "elu" | "leaky_relu" | "hard_swish" | "softplus":
                x = getattr(nn, self.part)(x)
            case "exact_gelu":
                x = nn.gelu(x, approximate=False)
            case "dropout":
                x = nn.Dropout(0.5, deterministic=False)(x)
            case "max_pool":
                x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            case "avg_pool":
                x = nn.avg_pool(x, (2, 2), (2, 2))
            case "dense_net":
                x = jnp.concatenate([x, nn.Conv(4, (3, 3))(x)], -1)
            case "split":
                one, other = jnp.split(x, 2, -1)
                x = one * other
            case "squeeze_and_excite":
                gate = nn.sigmoid(nn.Dense(4)(nn.relu(nn.Dense(2)(x.mean((1, 2))))))
                x = x * gate[:, None, None, :]
            case "residual":
                x = x + nn.Conv(4, (3, 3))(nn.relu(x))
            case "transposed":
                x = nn.ConvTranspose(4, (3, 3), (2, 2))(x)
        x = nn.Conv(4, (3, 3))(x)
        return nn.Dense(3)(x.mean((1, 2)))


PARTS = (
    "batch_norm layer_norm relu gelu exact_gelu swish elu leaky_relu hard_swish softplus dropout "
    "max_pool avg_pool dense_net split squeeze_and_excite residual transposed"
)


@pytest.mark.parametrize("part", PARTS.split())
def test_no_image_leaves_the_layout_inside_a_network(part):
    """What is not an image yet may enter it: the input, constants, a dropout mask."""
    batch, key = 5, jax.random.key(0)  # No other axis is 5 long.
    x = jnp.ones((batch, 8, 8, 3))
    model = Small(part)
    variables = jax.eval_shape(lambda: model.init({"params": key, "dropout": key}, x))

    def loss(variables, x):
        out, _ = model.apply(variables, x, rngs={"dropout": key}, mutable=["batch_stats"])
        return (out**2).sum()

    jaxpr = jax.make_jaxpr(batch_minor(jax.value_and_grad(loss)))(variables, x)
    assert not images_in(jaxpr, "conv_general_dilated")
    transposed = images_in(jaxpr, "transpose")
    assert (3, 8, 8, batch) in transposed
    assert [shape for shape in transposed if shape[0] == batch] == []
