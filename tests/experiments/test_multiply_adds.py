"""Counted multiply-adds against closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from experiments import models
from experiments.multiply_adds import multiply_adds


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


MATRIX = (lambda x, y: x @ y, (spec(3, 5), spec(5, 7)), 3 * 5 * 7)
CASES = {
    "matrix": MATRIX,
    "jit": (jax.jit(MATRIX[0]), *MATRIX[1:]),
    "remat": (jax.checkpoint(MATRIX[0]), *MATRIX[1:]),
    "vector": (lambda x, y: x @ y, (spec(5), spec(5)), 5),
    "batched": (
        lambda x, y: jnp.einsum("bij,bjk->bik", x, y),
        (spec(2, 3, 5), spec(2, 5, 7)),
        2 * 3 * 5 * 7,
    ),
    "two contracted axes": (
        lambda x, y: jnp.einsum("aij,ijk->ak", x, y),
        (spec(2, 3, 5), spec(3, 5, 7)),
        2 * 3 * 5 * 7,
    ),
    "vmap": (jax.vmap(MATRIX[0]), (spec(4, 3, 5), spec(4, 5, 7)), 4 * 3 * 5 * 7),
    "scan": (
        lambda x, ys: lax.scan(lambda c, y: (c @ y, None), x, ys)[0],
        (spec(3, 5), spec(6, 5, 5)),
        6 * 3 * 5 * 5,
    ),
    "loop of known length": (
        lambda x, y: lax.fori_loop(0, 6, lambda _, c: c @ y, x),
        (spec(3, 5), spec(5, 5)),
        6 * 3 * 5 * 5,
    ),
    "the dearer branch": (
        lambda x, y: lax.cond(x[0, 0] > 0, lambda: x @ y @ y, lambda: x @ y),
        (spec(3, 5), spec(5, 5)),
        2 * 3 * 5 * 5,
    ),
    "elementwise": (lambda x: jnp.exp(x) * x + x.sum(), (spec(9, 9),), 0),
    "gradient": (jax.grad(lambda x, y: (x @ y).sum()), MATRIX[1], 2 * 3 * 5 * 7),
}


@pytest.mark.parametrize("name", CASES)
def test_closed_forms(name):
    function, args, expected = CASES[name]
    assert multiply_adds(function, *args) == expected


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("padding", "size"), [("SAME", 8), ("VALID", 6)])
def test_convolution(stride, groups, padding, size):
    def function(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    expected = 2 * (size // stride) ** 2 * 3 * 3 * (4 // groups) * 12
    assert multiply_adds(function, spec(2, 8, 8, 4), spec(3, 3, 4 // groups, 12)) == expected


def test_custom_derivatives_are_looked_into():
    @jax.custom_vjp
    def product(x, y):
        return x @ y

    product.defvjp(lambda x, y: (x @ y, (x, y)), lambda r, g: (g @ r[1].T, r[0].T @ g))
    assert multiply_adds(product, *MATRIX[1]) == MATRIX[2]


def test_a_loop_of_unknown_length_is_refused_only_where_it_multiplies():
    def loop(body):
        return lambda x, y: lax.while_loop(lambda c: c.sum() < 9, lambda c: body(c, y), x)

    with pytest.raises(ValueError, match="number of rounds is unknown"):
        multiply_adds(loop(lambda c, y: c @ y), spec(5, 5), spec(5, 5))
    assert multiply_adds(loop(lambda c, y: c + y), spec(5, 5), spec(5, 5)) == 0


@pytest.mark.parametrize("depth", [20, 32, 110])
def test_resnet(depth):
    n = (depth - 2) // 6
    # A channel doubling halves both sides, so that every 3 x 3 convolution between equal widths
    # costs the same; the first of stages 2 and 3 has half the input channels.
    full = 32 * 32 * 9 * 16 * 16
    expected = 32 * 32 * 27 * 16 + 2 * n * full + 2 * (2 * n * full - full // 2) + 64 * 10
    model = models.build({"name": "resnet", "depth": depth, "width": 1}, 10)
    image = spec(1, 32, 32, 3)
    variables = jax.eval_shape(lambda key: model.init(key, jnp.zeros(image.shape), False),
                               jax.random.key(0))  # fmt: skip
    assert multiply_adds(lambda v, x: model.apply(v, x, False), variables, image) == expected
    if depth == 20:
        assert expected == 40_551_040
