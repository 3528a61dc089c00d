"""Factored, composed and dense convolutions agree, wherever a factored form exists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from jax import lax
from jaxprs import largest_intermediate

from lowrank_jax import (
    ChannelLowRank,
    LowRank,
    SpatialLowRank,
    conv_general_dilated,
    dot_general,
)

NHWC = ("NHWC", "HWIO", "NHWC")

CONVOLUTIONS = [SpatialLowRank, ChannelLowRank]


def convolution_weight(kind, shape, rank, deep, dtype=np.float64, seed=0):
    generator = np.random.default_rng(seed)
    template = kind.template(shape, dtype, rank, 3 if deep else 2)
    return jax.tree.map(
        lambda leaf: jnp.asarray(generator.standard_normal(leaf.shape), dtype), template
    )


SETTINGS = [
    {"window_strides": (1, 1), "padding": "SAME"},
    {"window_strides": (2, 2), "padding": "SAME"},
    {"window_strides": (1, 2), "padding": "VALID"},
    {"window_strides": (2, 1), "padding": "SAME_LOWER"},
    {"window_strides": (2, 2), "padding": ((1, 0), (2, 1))},
    {"window_strides": (1, 1), "padding": ((0, 2), (1, 0)), "rhs_dilation": (2, 1)},
    {"window_strides": (2, 1), "padding": "SAME", "rhs_dilation": (1, 2)},
    {"window_strides": (1, 2), "padding": ((2, 1), (1, 2)), "lhs_dilation": (2, 1)},
    {
        "window_strides": (2, 1),
        "padding": ((1, 2), (0, 3)),
        "lhs_dilation": (2, 3),
        "rhs_dilation": (1, 2),
    },
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_factored_composed_and_dense_convolutions_agree(kind, setting, x64):
    x = jnp.asarray(np.random.default_rng(3).standard_normal((2, 7, 9, 4)))
    call = {"dimension_numbers": NHWC, "precision": "highest", **setting}
    weights = [
        convolution_weight(kind, (3, 3, 4, 5), kind.rank_from_scale(scale, (3, 3, 4, 5)), deep)
        for scale in (0.01, 0.5, 1.0, 4.0)
        for deep in (False, True)
    ]

    @jax.jit
    def outputs(x, weights):
        return [
            (
                lax.conv_general_dilated(x, weight.dense(), **call),
                conv_general_dilated(x, weight, compose=False, **call),
                conv_general_dilated(x, weight, compose=True, **call),
            )
            for weight in weights
        ]

    for expected, *found in outputs(x, weights):
        for each in found:
            assert_close(each, expected, 1e-12)


@pytest.mark.parametrize("deep", [False, True], ids=["flat", "deep"])
@pytest.mark.parametrize("scale", [0.01, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_agree_in_float32(kind, scale, deep):
    rank = kind.rank_from_scale(scale, (3, 3, 8, 16))
    weight = convolution_weight(kind, (3, 3, 8, 16), rank, deep, np.float32)
    x = jnp.asarray(np.random.default_rng(3).standard_normal((2, 8, 8, 8)), jnp.float32)
    call = ((2, 2), "SAME", None, None, NHWC)
    highest = {"precision": lax.Precision.HIGHEST}
    expected = lax.conv_general_dilated(x, weight.dense(), *call, **highest)
    for compose in (False, True, None):
        found = conv_general_dilated(x, weight, *call, compose=compose, **highest)
        assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("kernel", [(1, 1, 4, 5), (1, 3, 4, 5), (2, 5, 1, 1)])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_odd_kernels_and_gradients(kind, kernel, x64):
    weight = convolution_weight(kind, kernel, 3, True)
    x = jnp.asarray(np.random.default_rng(4).standard_normal((2, 7, 5, kernel[2])))

    def loss(x, weight, compose):
        y = conv_general_dilated(
            x, weight, (2, 1), "SAME", dimension_numbers=NHWC, precision="highest", compose=compose
        )
        return jnp.sum(jnp.sin(y))

    def dense_loss(x, weight):
        y = lax.conv_general_dilated(
            x, weight.dense(), (2, 1), "SAME", dimension_numbers=NHWC, precision="highest"
        )
        return jnp.sum(jnp.sin(y))

    @jax.jit
    def gradients(x, weight):
        return (
            jax.grad(dense_loss, (0, 1))(x, weight),
            *(jax.grad(loss, (0, 1))(x, weight, compose) for compose in (False, True)),
        )

    expected, *found = gradients(x, weight)
    for each in found:
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-12), each, expected)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_channels_first_inputs(kind, x64):
    weight = convolution_weight(kind, (3, 3, 4, 5), 3, True)
    x = jnp.asarray(np.random.default_rng(4).standard_normal((2, 4, 7, 6)))
    call = ((2, 1), ((1, 0), (0, 1)), None, (1, 2), ("NCHW", "HWIO", "NCHW"))
    expected = lax.conv_general_dilated(x, weight.dense(), *call, precision="highest")
    for compose in (False, True, None):
        found = conv_general_dilated(x, weight, *call, compose=compose, precision="highest")
        assert_close(found, expected, 1e-12)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_mixed_layouts(kind, x64):
    weight = convolution_weight(kind, (3, 2, 4, 5), 3, False)
    x = jnp.asarray(np.random.default_rng(4).standard_normal((7, 2, 6, 4)))
    call = ((1, 2), "SAME", None, None, ("HNWC", "HWIO", "NCWH"))
    expected = lax.conv_general_dilated(x, weight.dense(), *call, precision="highest")
    for compose in (False, None):
        found = conv_general_dilated(x, weight, *call, compose=compose, precision="highest")
        assert_close(found, expected, 1e-12)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_another_kernel_layout_composes(kind, x64):
    # Read as OIHW, the dense shape (5, 4, 3, 3) is a 3 x 3 kernel from 4 to 5 channels.
    weight = convolution_weight(kind, (5, 4, 3, 3), 3, False)
    x = jnp.asarray(np.random.default_rng(4).standard_normal((2, 4, 7, 6)))
    call = ((1, 1), "SAME", None, None, ("NCHW", "OIHW", "NCHW"))
    expected = lax.conv_general_dilated(x, weight.dense(), *call, precision="highest")
    found = conv_general_dilated(x, weight, *call, precision="highest")
    assert_close(found, expected, 1e-12)
    with pytest.raises(ValueError, match="layout is not HWIO"):
        conv_general_dilated(x, weight, *call, compose=False)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_groups_and_stacks_say_so(kind):
    weight = convolution_weight(kind, (3, 3, 2, 4), 2, False, np.float32)
    x = jnp.ones((2, 5, 5, 4))
    for group in ({"feature_group_count": 2}, {"batch_group_count": 2}):
        with pytest.raises(ValueError, match="grouped convolution"):
            conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=NHWC, **group)
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), weight)
    with pytest.raises(ValueError, match="stack of kernels"):
        conv_general_dilated(x[..., :2], stack, (1, 1), "SAME", dimension_numbers=NHWC)
    found = jax.vmap(
        lambda w: conv_general_dilated(x[..., :2], w, (1, 1), "SAME", dimension_numbers=NHWC)
    )(stack)
    assert found.shape == (2, 2, 5, 5, 4)


def test_a_matrix_kind_composes_in_a_convolution(x64):
    generator = np.random.default_rng(0)
    weight = LowRank(
        u=jnp.asarray(generator.standard_normal((3, 3, 4, 2))),
        vt=jnp.asarray(generator.standard_normal((2, 5))),
        in_axes=3,
    )
    x = jnp.asarray(generator.standard_normal((2, 6, 6, 4)))
    found = conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=NHWC)
    expected = lax.conv_general_dilated(x, weight.dense(), (1, 1), "SAME", dimension_numbers=NHWC)
    assert_close(found, expected, 1e-12)
    with pytest.raises(ValueError, match="no factored form"):
        conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=NHWC, compose=False)


def test_a_convolution_kind_composes_in_a_contraction(x64):
    weight = convolution_weight(SpatialLowRank, (1, 1, 4, 5), 2, False)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4)))
    numbers = (((1,), (2,)), ((), ()))
    found = dot_general(x, weight, numbers)
    assert_close(found, lax.dot_general(x, weight.dense(), numbers), 1e-12)


@pytest.mark.parametrize("deep", [False, True], ids=["flat", "deep"])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_the_factored_convolution_never_forms_the_kernel(kind, deep):
    weight = convolution_weight(kind, (3, 3, 32, 32), 8, deep, np.float32)
    x = jnp.ones((1, 4, 4, 32))

    def loss(x, w, compose=None):
        y = conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC, compose=compose)
        return jnp.sum(y**2)

    for function in (loss, jax.grad(loss, (0, 1)), jax.jit(jax.grad(loss, (0, 1)))):
        assert largest_intermediate(function, x, weight) < 9 * 32 * 32
    assert largest_intermediate(lambda x, w: loss(x, w, True), x, weight) >= 9 * 32 * 32


@pytest.mark.parametrize("size", [4, 16])
@pytest.mark.parametrize("rank", [4, 12, 24, 60])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_the_cheaper_convolution_is_chosen(kind, rank, size):
    n_in, n_out = 8, 16
    weight = convolution_weight(kind, (3, 3, n_in, n_out), rank, False, np.float32)
    x = jnp.ones((1, size, size, n_in))

    def apply(x, w, compose=None):
        return conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=NHWC, compose=compose)

    half = size // 2
    if kind is SpatialLowRank:
        factored = size * half * 3 * n_in * rank + half * half * 3 * rank * n_out
    else:
        factored = half * half * (9 * n_in * rank + rank * n_out)
    composed = 9 * n_in * n_out * (rank + half * half)
    chosen = str(jax.make_jaxpr(apply)(x, weight))
    forced = str(jax.make_jaxpr(lambda x, w: apply(x, w, composed < factored))(x, weight))
    assert chosen == forced
