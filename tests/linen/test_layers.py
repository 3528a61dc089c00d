"""Dense, DenseGeneral and Conv against flax's layers with the dense kernel, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from flax import linen as nn
from jax import lax
from jaxprs import largest_intermediate

from lowrank_jax import linen, weights
from lowrank_jax.weights import ChannelLowRank, LowRank, SpatialLowRank

KEY = jax.random.key(0)

COMPOSE = (None, True, False)


def variables(kernel, *bias):
    return {"params": {"kernel": kernel} | ({"bias": bias[0]} if bias else {})}


def check_forward(ours, flaxs, weight, dense, x, bias, compose=COMPOSE):
    expected = flaxs.apply(variables(dense, bias), x)
    for choice in compose:
        found = ours(compose=choice).apply(variables(weight, bias), x)
        assert found.dtype == expected.dtype == jnp.float64
        assert_close(found, expected)
    merged = ours(compose=None).apply(variables(dense, bias), x)
    np.testing.assert_array_equal(merged, expected)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("rank", [1, 3, 24])
def test_dense_forward(float64, draw, rank, deep):
    weight = draw.weight(LowRank, (6, 5), rank, deep)
    check_forward(
        functools.partial(linen.Dense, 5),
        nn.Dense(5),
        weight,
        draw.dense(weight),
        draw.array(2, 3, 6),
        draw.array(5),
    )


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(("axis", "features"), [((-2, -1), 5), (-1, (2, 3)), ((1, 3), (2, 3))])
def test_dense_general_forward(float64, draw, axis, features, deep):
    x = draw.array(2, 4, 3, 6)
    axes = np.atleast_1d(axis)
    shape = tuple(x.shape[a] for a in axes) + tuple(np.atleast_1d(features))
    weight = draw.weight(LowRank, shape, 2, deep, in_axes=len(axes))
    check_forward(
        functools.partial(linen.DenseGeneral, features, axis=axis),
        nn.DenseGeneral(features, axis=axis),
        weight,
        draw.dense(weight),
        x,
        draw.array(*np.atleast_1d(features)),
    )


@pytest.mark.parametrize("deep", [False, True])
def test_dense_general_batch_dims(float64, draw, deep):
    u, vt = draw.array(3, 6, 2), draw.array(3, 2, 5)
    m = draw.array(3, 2, 2) if deep else None
    dense = u @ (vt if m is None else m @ vt)
    check_forward(
        functools.partial(linen.DenseGeneral, 5, axis=-1, batch_dims=(0,)),
        nn.DenseGeneral(5, axis=-1, batch_dims=(0,)),
        LowRank(u=u, vt=vt, m=m),
        dense,
        draw.array(3, 4, 6),
        draw.array(3, 5),
    )


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", ((2, 1), (0, 1))])
@pytest.mark.parametrize("dilation", [1, (2, 1)])
@pytest.mark.parametrize("strides", [1, 2, (2, 1)])
@pytest.mark.parametrize("kind", [SpatialLowRank, ChannelLowRank])
def test_conv_forward(float64, draw, kind, strides, dilation, padding):
    options = {"strides": strides, "kernel_dilation": dilation, "padding": padding}
    x, bias = draw.array(2, 8, 7, 4), draw.array(5)
    for rank, deep in [(2, False), (3, True)]:
        weight = draw.weight(kind, (3, 2, 4, 5), rank, deep)
        check_forward(
            functools.partial(linen.Conv, 5, (3, 2), **options),
            nn.Conv(5, (3, 2), **options),
            weight,
            draw.dense(weight),
            x,
            bias,
            compose=(True, False) if deep else (False,),
        )


@pytest.mark.parametrize("rank", [1, 24])
@pytest.mark.parametrize("kind", [SpatialLowRank, ChannelLowRank])
def test_conv_rank_one_overcomplete_and_dilated_input(float64, draw, kind, rank):
    weight = draw.weight(kind, (3, 3, 4, 5), rank, True)
    for options in ({}, {"input_dilation": 2, "padding": 1}):
        check_forward(
            functools.partial(linen.Conv, 5, (3, 3), **options),
            nn.Conv(5, (3, 3), **options),
            weight,
            draw.dense(weight),
            draw.array(2, 6, 5, 4),
            draw.array(5),
        )


def test_conv_input_without_and_with_many_batch_axes(float64, draw):
    weight = draw.weight(SpatialLowRank, (3, 3, 4, 5), 2, False)
    for batch in ((), (2, 3)):
        check_forward(
            functools.partial(linen.Conv, 5, (3, 3)),
            nn.Conv(5, (3, 3)),
            weight,
            draw.dense(weight),
            draw.array(*batch, 6, 6, 4),
            draw.array(5),
        )


def test_causal_convolution_with_a_matrix_kind_composes(float64, draw):
    weight = draw.weight(LowRank, (3, 4, 5), 2, True, in_axes=2)
    options = {"kernel_size": (3,), "padding": "CAUSAL", "kernel_dilation": 2}
    check_forward(
        functools.partial(linen.Conv, 5, **options),
        nn.Conv(5, **options),
        weight,
        draw.dense(weight),
        draw.array(2, 9, 4),
        draw.array(5),
        compose=(None, True),
    )


@pytest.mark.parametrize("compose", [True, False])
@pytest.mark.parametrize("kind", [LowRank, SpatialLowRank, ChannelLowRank])
def test_gradients_are_those_through_the_dense_kernel(float64, draw, kind, compose):
    if kind is LowRank:
        ours, flaxs, shape = linen.Dense(5, compose=compose), nn.Dense(5), (4, 5)
    else:
        ours = linen.Conv(5, (3, 3), strides=2, compose=compose)
        flaxs, shape = nn.Conv(5, (3, 3), strides=2), (3, 3, 4, 5)
    weight = jax.tree.map(jnp.asarray, draw.weight(kind, shape, 2, True))
    x, bias = draw.array(2, 6, 6, 4), draw.array(5)

    def loss(layer, kernel):
        return jnp.sum(jnp.sin(layer.apply(variables(kernel, bias), x)))

    found = jax.jit(jax.grad(functools.partial(loss, ours)))(weight)
    expected = jax.grad(lambda w: loss(flaxs, draw.dense(w, jnp.einsum)))(weight)
    assert type(found) is kind
    for name, value in expected.children():
        assert_close(getattr(found, name), value)


@pytest.mark.parametrize(
    ("layer", "weight", "x_shape", "size"),
    [
        (
            linen.Dense(48, use_bias=False),
            LowRank(u=np.ones((64, 12)), vt=np.ones((12, 48)), m=np.eye(12)),
            (2, 64),
            64 * 48,
        ),
        (
            linen.DenseGeneral((4, 12), use_bias=False),
            LowRank(u=np.ones((64, 12)), vt=np.ones((12, 4, 12)), out_axes=2),
            (2, 64),
            64 * 48,
        ),
        (
            linen.Conv(32, (3, 3), use_bias=False),
            SpatialLowRank(u=np.ones((1, 3, 32, 8)), vt=np.ones((3, 1, 8, 32)), m=np.eye(8)),
            (1, 4, 4, 32),
            32 * 32,
        ),
        (
            linen.Conv(32, (3, 3), use_bias=False),
            ChannelLowRank(u=np.ones((3, 3, 32, 8)), vt=np.ones((1, 1, 8, 32))),
            (1, 4, 4, 32),
            9 * 32 * 32,
        ),
    ],
    ids=["dense", "dense_general", "spatial", "channel"],
)
def test_the_factored_path_never_forms_a_kernel(layer, weight, x_shape, size):
    x = np.ones(x_shape, np.float32)
    weight = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), weight)

    def largest(layer):
        def step(w, x):
            return jax.value_and_grad(lambda w: jnp.sum(layer.apply(variables(w), x)))(w)

        return largest_intermediate(jax.jit(step), weight, x)

    limit = max(size, int(np.prod(x_shape)) + 1)
    factors = max(int(np.prod(f.shape)) for _, f in weight.children())
    assert largest(layer) < max(limit, factors + 1)
    assert largest(layer.clone(compose=True)) >= int(np.prod(weight.shape))


def test_dense_kernels_behave_as_in_flax():
    """The same computation, also with functions of the user's, and the same initialization."""

    def doubled(x, w, *args, **kwargs):
        return 2 * lax.dot_general(x, w, *args, **kwargs)

    x = jnp.ones((2, 6, 6, 4))
    for ours, flaxs, options in (
        (linen.Dense, nn.Dense, {"features": 3, "dot_general": doubled}),
        (linen.Dense, nn.Dense, {"features": 3, "dot_general_cls": lambda: doubled}),
        (linen.Conv, nn.Conv, {"features": 8, "kernel_size": (3, 3), "feature_group_count": 2}),
        (linen.Conv, nn.Conv, {"features": 3, "kernel_size": 3, "mask": jnp.ones((3, 4, 3))}),
        (linen.DenseGeneral, nn.DenseGeneral, {"features": (3, 2), "axis": (-2, -1)}),
    ):
        found, expected = (
            jax.make_jaxpr(layer(**options).init_with_output, return_shape=True)(KEY, x)
            for layer in (ours, flaxs)
        )
        assert str(found) == str(expected)


def test_our_own_function_on_a_flax_layer_field(float64, draw):
    weight, x = draw.weight(LowRank, (4, 5), 2, False), draw.array(2, 4)
    function = functools.partial(weights.dot_general, compose=True)
    layer = linen.Dense(5, use_bias=False, dot_general=function)
    assert_close(layer.apply(variables(weight), x), x @ draw.dense(weight))
