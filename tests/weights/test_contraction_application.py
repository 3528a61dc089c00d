"""Factored, composed and dense contractions agree, wherever a factored form exists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from jax import lax
from jaxprs import largest_intermediate

from lowrank_jax import (
    LowRank,
    conv_general_dilated,
    dot_general,
)


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


def test_arrays_pass_through_with_all_of_lax_arguments(x64):
    generator = np.random.default_rng(0)
    x, w = jnp.asarray(generator.standard_normal((3, 5))), jnp.ones((5, 4))
    numbers = (((1,), (0,)), ((), ()))
    found = dot_general(x, w, numbers, None, jnp.float32, compose=False, out_sharding=None)
    assert found.dtype == jnp.float32
    image, kernel = jnp.ones((1, 5, 5, 4)), jnp.ones((3, 3, 2, 4))
    assert conv_general_dilated(
        image,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
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
