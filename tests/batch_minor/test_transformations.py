"""``batch_minor`` inside and around JAX's transformations, and what it takes and gives back."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import assert_agrees, assert_same
from jax import lax
from jaxprs import equations

import lowrank_jax as lrj
from lowrank_jax.batch_minor import batch_minor


def convolve(x, kernel):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def loss(x, kernel):
    return (jnp.tanh(convolve(x, kernel)) ** 2).sum()


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((2, 4, 4, 3))


@pytest.fixture
def kernel():
    return np.random.default_rng(1).standard_normal((3, 3, 3, 3))


def test_differentiating_it_is_refused(x, kernel):
    advice = r"batch_minor\(jax.grad\(loss\)\), not jax.grad\(batch_minor\(loss\)\)"
    for differentiate in (
        lambda: jax.grad(batch_minor(loss))(x, kernel),
        lambda: jax.grad(jax.jit(batch_minor(loss)), argnums=1)(x, kernel),
        lambda: jax.jvp(batch_minor(convolve), (x, kernel), (x, kernel)),
        lambda: jax.vjp(lambda x: batch_minor(convolve)(2 * x, kernel), x),
        lambda: jax.linearize(batch_minor(convolve), x, kernel),
    ):
        with pytest.raises(TypeError, match=advice):
            differentiate()


def test_what_it_does_not_depend_on_may_be_differentiated(x, kernel):
    def scaled(scale):
        return scale * batch_minor(loss)(x, kernel)

    gradient = jax.jit(jax.grad(scaled))(2.0)
    np.testing.assert_allclose(gradient, jax.jit(loss)(x, kernel), rtol=1e-5)


def test_a_second_call_does_not_trace_again(x, kernel):
    traces = []

    def counted(x, kernel):
        traces.append(None)
        return loss(x, kernel)

    step = jax.jit(batch_minor(jax.grad(counted)))
    step(x, kernel)
    first = len(traces)
    step(2 * x, kernel)
    assert len(traces) == first >= 1


def test_without_jit(x, kernel, x64):
    assert_same(batch_minor(loss)(x, kernel), loss(x, kernel))


def test_under_vmap(x, kernel, x64):
    kernels = jnp.stack([kernel, 2 * kernel, -kernel])
    images = jnp.stack([x, -x, x + 1], 2)
    gradient = jax.grad(loss, argnums=1)

    @jax.jit
    def compute(kernels, images):
        mapped = (
            jax.vmap(batch_minor(gradient), (None, 0))(x, kernels),
            jax.vmap(batch_minor(convolve), (2, None), 1)(images, kernel),
        )
        one_by_one = (
            jnp.stack([gradient(x, kernel) for kernel in kernels]),
            jnp.stack([convolve(images[:, :, at], kernel) for at in range(3)], 1),
        )
        return mapped, one_by_one

    assert_same(*compute(kernels, images))


def test_inside_scan_and_itself(x, kernel, x64):
    def steps(step):
        return lax.scan(lambda c, _: (step(c, kernel), c.sum()), jnp.asarray(x), length=3)

    @jax.jit
    def compute():
        outside = batch_minor(lambda: steps(batch_minor(convolve)))
        return steps(batch_minor(convolve)), outside(), steps(convolve)

    inside, around, expected = compute()
    assert_same(inside, expected)
    assert_same(around, expected)


def test_arguments_and_results_of_any_structure(x, kernel, x64):
    def function(x, *, kernels, nothing, key, flag, number):
        y = convolve(x, kernels["first"])
        masked = jnp.where(jax.random.bernoulli(key, shape=y.shape), y, number)
        return {
            "image": y,
            "unchanged": x,
            "nothing": nothing,
            "nested": (masked, [flag, {"inside": y > 0}]),
            "number": number * 2,
            "constant": jnp.arange(3),
        }, key

    kwargs = {
        "kernels": {"first": jnp.asarray(kernel)},
        "nothing": None,
        "key": jax.random.key(1),
        "flag": jnp.array([True, False]),
        "number": 0.5,
    }
    results, key = jax.jit(batch_minor(function))(x, **kwargs)
    assert_same(results, jax.jit(function)(x, **kwargs)[0])
    assert key == kwargs["key"]
    assert results["nothing"] is None


def test_weak_types_stay_weak(x, kernel):
    def function(x, number):
        return convolve(x, kernel.astype(jnp.float32)) * number, number + 1

    x = jnp.asarray(x, jnp.float32)
    image, number = jax.jit(batch_minor(function))(x, 2)
    assert number.weak_type and image.dtype == jnp.float32


def test_factorized_weights_pass_through(x, x64):
    template = lrj.SpatialLowRank.template((3, 3, 3, 5), jnp.float64, 2, 3)
    rng = np.random.default_rng(0)
    weight = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape)), template)

    def loss(weight):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = lrj.conv_general_dilated(x, weight, (2, 1), "SAME", dimension_numbers=numbers)
        return (y**2).sum(), (weight, y)

    gradient = jax.value_and_grad(loss, has_aux=True)
    (_, (same, _)), grads = jax.eval_shape(batch_minor(gradient), weight)
    assert isinstance(same, lrj.SpatialLowRank) and isinstance(grads, lrj.SpatialLowRank)
    assert_agrees(gradient, weight)


def test_donated_arguments(x, kernel):
    def step(x, kernel):
        return kernel - 0.1 * jax.grad(loss, argnums=1)(x, kernel)

    x, donated = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    expected = step(x, jnp.asarray(kernel, jnp.float32))
    result = jax.jit(batch_minor(step), donate_argnums=1)(x, donated)
    assert donated.is_deleted()
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("accumulate", [None, jnp.float32])
def test_bfloat16(x, kernel, accumulate):
    """Dtypes are kept; a wider ``preferred_element_type`` is that of the sums."""

    def convolve(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            preferred_element_type=accumulate,
        )

    narrow = [jnp.asarray(value, jnp.bfloat16) for value in (x, kernel)]
    exact = convolve(*(value.astype(jnp.float32) for value in narrow))
    result = jax.jit(batch_minor(convolve))(*narrow)
    assert result.dtype == (accumulate or jnp.bfloat16)
    # One rounding has a relative error of 2**-9; the sum of the taps takes a few.
    bound = 1e-6 if accumulate else 2**-7
    np.testing.assert_allclose(
        result.astype(jnp.float32), exact, rtol=0, atol=bound * float(jnp.abs(exact).max())
    )


def test_integer_images_are_exact():
    rng = np.random.default_rng(0)
    x, kernel = rng.integers(-9, 9, (2, 5, 5, 3)), rng.integers(-9, 9, (3, 3, 3, 4))
    x, kernel = jnp.asarray(x, jnp.int32), jnp.asarray(kernel, jnp.int32)
    assert_same(batch_minor(convolve)(x, kernel), convolve(x, kernel))


@pytest.mark.optimized
@pytest.mark.parametrize("prevent_cse", [True, False])
def test_a_checkpoint_is_computed_again(x, kernel, prevent_cse):
    """In the compiled program, where the compiler could have shared it with the forward pass."""

    def block(x, kernel):
        return jnp.sin(jnp.exp(jnp.sin(convolve(x, kernel))))

    def loss(x, kernel):
        inside = jax.checkpoint(block, prevent_cse=prevent_cse)
        return inside(inside(x, kernel), kernel).sum()

    gradient = batch_minor(jax.value_and_grad(loss))
    names = [e.primitive.name for e in equations(jax.make_jaxpr(gradient)(x, kernel))]
    # One for each block in the backward pass, none in the forward pass.
    assert names.count("optimization_barrier") == 2 * prevent_cse
    program = jax.jit(gradient).lower(x, kernel).compile().as_text()
    # Of the last block the output is not needed: exp and the convolution are.
    exponentials = program.count(" exponential(")
    assert exponentials == (4 if prevent_cse else 2)


def test_no_warnings(x, kernel):
    def function(x, kernel):
        y = convolve(x, kernel)
        return jnp.sort(y).sum() + lax.cond(y.sum() > 0, jnp.sum, jnp.max, y)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.jit(batch_minor(jax.grad(function)))(x, kernel)
