"""Factored, composed and merged forward passes agree, wherever a factored form exists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jaxprs import largest_intermediate

from lowrank_jax import (
    ChannelLowRank,
    LowRank,
    SpatialLowRank,
    conv_general_dilated,
    dot_general,
)

pytestmark = pytest.mark.usefixtures("quick_compile")


NHWC = ("NHWC", "HWIO", "NHWC")
CONVOLUTIONS = [SpatialLowRank, ChannelLowRank]


def convolution_weight(kind, shape, rank, deep, dtype=np.float64, seed=0):
    generator = np.random.default_rng(seed)
    template = kind.template(shape, dtype, rank, 3 if deep else 2)
    return jax.tree.map(
        lambda leaf: jnp.asarray(generator.standard_normal(leaf.shape), dtype), template
    )


def assert_close(found, expected, tolerance):
    assert found.shape == expected.shape
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert np.abs(found - expected).max(initial=0) <= tolerance * np.abs(expected).max(initial=0)


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


def matrix_weight(shape, rank, batch=0, n_in=1, deep=False, dtype=np.float64, seed=0):
    generator = np.random.default_rng(seed)
    lead, kernel = shape[:batch], shape[batch:]
    n_out = len(kernel) - n_in
    draw = lambda *s: jnp.asarray(generator.standard_normal(s), dtype)  # noqa: E731
    return LowRank(
        u=draw(*lead, *kernel[:n_in], rank),
        vt=draw(*lead, rank, *kernel[n_in:]),
        m=draw(*lead, rank, rank) if deep else None,
        in_axes=n_in,
        out_axes=n_out,
    )


# Name, x's shape, the weight, dimension numbers: all have a factored form.
CONTRACTIONS = {
    "plain": ((3, 5), {"shape": (5, 4)}, (((1,), (0,)), ((), ()))),
    "vector": ((5,), {"shape": (5, 4)}, (((0,), (0,)), ((), ()))),
    "x_first": ((5, 3), {"shape": (5, 4)}, (((0,), (0,)), ((), ()))),
    "rows": ((2, 3, 5), {"shape": (5, 4)}, (((2,), (0,)), ((), ()))),
    "transposed": ((3, 4), {"shape": (5, 4)}, (((1,), (1,)), ((), ()))),
    "two_inputs": ((3, 5, 2), {"shape": (5, 2, 4), "n_in": 2}, (((1, 2), (0, 1)), ((), ()))),
    "two_swapped": ((3, 2, 5), {"shape": (5, 2, 4), "n_in": 2}, (((2, 1), (0, 1)), ((), ()))),
    "order_in_w": ((3, 2, 5), {"shape": (5, 2, 4), "n_in": 2}, (((1, 2), (1, 0)), ((), ()))),
    "two_outputs": ((3, 5), {"shape": (5, 2, 4)}, (((1,), (0,)), ((), ()))),
    "transposed_outputs": ((4, 3, 2), {"shape": (5, 2, 4)}, (((2, 0), (1, 2)), ((), ()))),
    "batch": ((6, 3, 5), {"shape": (6, 5, 4), "batch": 1}, (((2,), (1,)), ((0,), (0,)))),
    "batch_last": ((3, 5, 6), {"shape": (6, 5, 4), "batch": 1}, (((1,), (1,)), ((2,), (0,)))),
    "batch_transposed": ((6, 3, 4), {"shape": (6, 5, 4), "batch": 1}, (((2,), (2,)), ((0,), (0,)))),
    "batches_swapped": (
        (7, 6, 3, 5, 2),
        {"shape": (6, 7, 5, 2, 4), "batch": 2, "n_in": 2},
        (((3, 4), (2, 3)), ((0, 1), (1, 0))),
    ),
    "no_rows": ((0, 5), {"shape": (5, 4)}, (((1,), (0,)), ((), ()))),
}


@pytest.mark.parametrize("deep", [False, True], ids=["flat", "deep"])
@pytest.mark.parametrize("name", CONTRACTIONS)
def test_factored_composed_and_dense_contractions_agree(name, deep, x64):
    shape, how, numbers = CONTRACTIONS[name]
    x = jnp.asarray(np.random.default_rng(5).standard_normal(shape))
    weights = [matrix_weight(**how, rank=rank, deep=deep) for rank in (1, 2, 4, 16)]

    @jax.jit
    def outputs(x, weights):
        call = {"precision": "highest"}
        return [
            (
                lax.dot_general(x, weight.dense(), numbers, **call),
                dot_general(x, weight, numbers, compose=False, **call),
                dot_general(x, weight, numbers, compose=True, **call),
                dot_general(x, weight, numbers, **call),
            )
            for weight in weights
        ]

    for expected, *found in outputs(x, weights):
        for each in found:
            assert_close(each, expected, 1e-12)


@pytest.mark.parametrize("name", ["plain", "transposed", "batches_swapped", "two_swapped"])
def test_contraction_gradients_agree(name, x64):
    shape, how, numbers = CONTRACTIONS[name]
    x = jnp.asarray(np.random.default_rng(5).standard_normal(shape))
    weight = matrix_weight(**how, rank=3, deep=True)

    def loss(x, weight, apply):
        return jnp.sum(jnp.sin(apply(x, weight)))

    def dense(x, w):
        return lax.dot_general(x, w.dense(), numbers, precision="highest")

    gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    expected = gradient(x, weight, dense)
    for compose in (False, True):

        def apply(x, w, compose=compose):
            return dot_general(x, w, numbers, precision="highest", compose=compose)

        found = gradient(x, weight, apply)
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-12), found, expected)


@pytest.mark.parametrize("name", ["plain", "two_inputs", "batch"])
def test_contractions_agree_in_float32(name):
    shape, how, numbers = CONTRACTIONS[name]
    x = jnp.asarray(np.random.default_rng(5).standard_normal(shape), jnp.float32)
    weight = matrix_weight(**how, rank=3, dtype=np.float32)
    expected = lax.dot_general(x, weight.dense(), numbers, precision="highest")
    for compose in (False, True):
        found = dot_general(x, weight, numbers, precision="highest", compose=compose)
        assert_close(found, expected, 1e-5)


@pytest.mark.parametrize(
    ("shape", "how", "numbers"),
    [
        # Half of the inputs; outputs of a stack without its batch axis; inputs and outputs mixed.
        ((3, 5), {"shape": (5, 2, 4), "n_in": 2}, (((1,), (0,)), ((), ()))),
        ((3, 5), {"shape": (6, 5, 4), "batch": 1}, (((1,), (1,)), ((), ()))),
        ((5, 4), {"shape": (5, 2, 4), "n_in": 2}, (((0, 1), (0, 2)), ((), ()))),
        ((5, 4), {"shape": (5, 4)}, (((0, 1), (0, 1)), ((), ()))),
    ],
)
def test_partial_contractions_compose(shape, how, numbers, x64):
    x = jnp.asarray(np.random.default_rng(5).standard_normal(shape))
    weight = matrix_weight(**how, rank=2)
    expected = lax.dot_general(x, weight.dense(), numbers, precision="highest")
    assert_close(dot_general(x, weight, numbers, precision="highest"), expected, 1e-12)
    with pytest.raises(ValueError, match="no factored form for this contraction"):
        dot_general(x, weight, numbers, compose=False)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_factored_contraction_never_forms_the_kernel(transposed):
    weight = matrix_weight((64, 48), 12, deep=True, dtype=np.float32)
    x = jnp.ones((4, 48 if transposed else 64))
    numbers = (((1,), (1 if transposed else 0,)), ((), ()))

    def loss(x, w):
        return jnp.sum(dot_general(x, w, numbers) ** 2)

    for function in (loss, jax.grad(loss, (0, 1)), jax.jit(jax.grad(loss, (0, 1)))):
        assert largest_intermediate(function, x, weight) < 64 * 48


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


@pytest.mark.parametrize("rows", [1, 8, 64, 512])
@pytest.mark.parametrize("rank", [2, 16, 24, 64])
def test_the_cheaper_contraction_is_chosen(rows, rank):
    weight = matrix_weight((64, 32), rank, dtype=np.float32)
    x = jnp.ones((rows, 64))
    numbers = (((1,), (0,)), ((), ()))
    factored = rows * rank * (64 + 32)
    composed = 64 * rank * 32 + rows * 64 * 32
    chosen = str(jax.make_jaxpr(lambda x, w: dot_general(x, w, numbers))(x, weight))
    forced = str(
        jax.make_jaxpr(lambda x, w: dot_general(x, w, numbers, compose=composed < factored))(
            x, weight
        )
    )
    assert chosen == forced


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


def test_arrays_pass_through_with_all_of_lax_arguments(x64):
    generator = np.random.default_rng(0)
    x, w = jnp.asarray(generator.standard_normal((3, 5))), jnp.ones((5, 4))
    numbers = (((1,), (0,)), ((), ()))
    found = dot_general(x, w, numbers, None, jnp.float32, compose=False, out_sharding=None)
    assert found.dtype == jnp.float32
    image, kernel = jnp.ones((1, 5, 5, 4)), jnp.ones((3, 3, 2, 4))
    assert conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=2
    ).shape == (1, 5, 5, 4)


@pytest.mark.parametrize("compose", [False, True])
def test_preferred_element_type(compose):
    weight = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16), matrix_weight((8, 6), 2, dtype=np.float32)
    )
    x = jnp.ones((3, 8), jnp.bfloat16)
    numbers = (((1,), (0,)), ((), ()))
    assert dot_general(x, weight, numbers, compose=compose).dtype == jnp.bfloat16
    found = dot_general(x, weight, numbers, preferred_element_type=jnp.float32, compose=compose)
    assert found.dtype == jnp.float32
    with pytest.raises(ValueError, match="takes no out_sharding"):
        dot_general(x, weight, numbers, out_sharding="x")


def test_the_choice_is_static_under_jit():
    weight = matrix_weight((16, 12), 3, dtype=np.float32)
    traces = []

    @jax.jit
    def apply(x, w):
        traces.append(1)
        return dot_general(x, w, (((1,), (0,)), ((), ())))

    apply(jnp.ones((4, 16)), weight)
    apply(jnp.zeros((4, 16)), jax.tree.map(lambda leaf: leaf + 1, weight))
    assert len(traces) == 1
