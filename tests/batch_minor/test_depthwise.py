"""Depthwise convolutions and both their gradients against ``lax``, and which are rewritten."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import assert_agrees, assert_same
from convolution_cases import CASES, Case
from jax import lax
from jaxprs import equations

from experiments.models.wide_resnet import WideResNet
from lowrank_jax.batch_minor import batch_minor


def operands(case, multiplier=1):
    """An image, a kernel of its own for every channel, and the output's gradient."""
    rng = np.random.default_rng(0)
    channels = case.channels[0]
    x = jnp.asarray(rng.standard_normal((case.batch, *case.image, channels)))
    kernel = jnp.asarray(rng.standard_normal((*case.window, 1, multiplier * channels)))
    y = rng.standard_normal(jax.eval_shape(case.plain, x, kernel).shape)
    return x, kernel, jnp.asarray(y)


def with_gradients(case):
    def function(x, kernel, y):
        out, pullback = jax.vjp(case.plain, x, kernel)
        return out, *pullback(y)

    return function


def convolutions_left(function, *args):
    jaxpr = jax.make_jaxpr(batch_minor(function))(*args)
    return sum(e.primitive.name == "conv_general_dilated" for e in equations(jaxpr))


# Half of the cases, which has every kind of stride, padding and dilation.
@pytest.mark.parametrize("case", CASES[::2], ids=str)
def test_agrees_with_lax(case, x64):
    args = operands(case)
    assert_agrees(with_gradients(case), *args)
    # Empty results are left to lax.
    assert convolutions_left(with_gradients(case), *args) == 0 or args[2].size == 0


@pytest.mark.parametrize("stride", [1, 2])
def test_inside_a_scan(stride, x64):
    case = Case((3, 3), (stride, stride), ((1, 1), (1, 1)))
    x, kernel, y = operands(case)

    def descend(x, kernel, y):
        def loss(kernel):
            return ((case.plain(x, kernel) - y) ** 2).mean()

        def step(kernel, _):
            value, gradient = jax.value_and_grad(loss)(kernel)
            return kernel - 0.1 * gradient, value

        return lax.scan(step, kernel, length=3)

    assert_agrees(descend, x, kernel, y)
    assert convolutions_left(descend, x, kernel, y) == 0


def test_kernels_of_other_layouts(x64):
    layout = ("NHWC", "OIHW", "NHWC")

    def function(x, kernel, y):
        def convolve(x, kernel):
            return lax.conv_general_dilated(
                x, kernel, (2, 1), "SAME", dimension_numbers=layout, feature_group_count=3
            )

        return jax.vjp(convolve, x, kernel)[1](y)

    x, kernel, y = operands(Case(strides=(2, 1)))
    args = x, kernel.transpose(3, 2, 0, 1), y
    assert_agrees(function, *args)
    assert convolutions_left(function, *args) == 0


def test_a_channel_multiplier_is_left_to_lax(x64):
    case = Case(strides=(2, 2))
    args = operands(case, multiplier=2)
    assert_agrees(with_gradients(case), *args)
    assert convolutions_left(with_gradients(case), *args) == 3


@pytest.mark.parametrize("accumulate", [None, jnp.float32])
def test_bfloat16_is_summed_in_float32(accumulate):
    def function(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=3,
            preferred_element_type=accumulate,
        )

    x, kernel = (value.astype(jnp.bfloat16) for value in operands(Case())[:2])
    exact = function(x.astype(jnp.float32), kernel.astype(jnp.float32))
    result = jax.jit(batch_minor(function))(x, kernel)
    assert result.dtype == (accumulate or jnp.bfloat16)
    # One rounding of the sum, and that of float32.
    bound = 1e-6 if accumulate else 2**-8
    np.testing.assert_allclose(
        result.astype(jnp.float32), exact, rtol=bound, atol=1e-6 * float(jnp.abs(exact).max())
    )


def test_integers_are_exact():
    case = Case()
    x, kernel, _ = (jnp.round(3 * value).astype(jnp.int32) for value in operands(case))
    assert_same(batch_minor(case.plain)(x, kernel), case.plain(x, kernel))


@pytest.mark.parametrize("remat", [True, False])
def test_no_convolution_is_left_of_a_separable_network(remat):
    model = WideResNet(num_classes=3, depth=10, width=0.025, separable=True, remat=remat)
    images = jnp.ones((2, 8, 8, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, False))

    def loss(params, statistics):
        given = {"params": params, "batch_stats": statistics}
        logits, new = model.apply(given, images, True, mutable=["batch_stats"])
        return (logits**2).sum(), new

    gradient = jax.value_and_grad(loss, has_aux=True)
    assert convolutions_left(gradient, variables["params"], variables["batch_stats"]) == 0
