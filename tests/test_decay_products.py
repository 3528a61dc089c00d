"""Decay of products with views and factorized sides: against autodiff of the products written out,
each weight counted once, and nothing large on the way."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from attention_cases import CASES, HEADS, MODEL, SIZE, Draw
from closeness import assert_close
from flax import linen as nn
from jaxprs import equations, largest_intermediate

from lowrank_jax import (
    FixedRank,
    LowRank,
    Product,
    Rule,
    SpatialLowRank,
    TensorTrain,
    View,
    attention_products,
    decay,
    factorize,
    frobenius_decay,
    frobenius_penalty,
    is_factorized,
)

ALONG_HEADS = (((2,), (2,)), ((1,), (1,)))
COEFFICIENT = 0.3


def added(tx: optax.GradientTransformation, params: Any) -> Any:
    zeros = jax.tree.map(jnp.zeros_like, params)
    return jax.jit(tx.update)(zeros, tx.init(params), params)[0]


def doubled(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def kernel(leaf: Any) -> jax.Array:
    return leaf.dense() if is_factorized(leaf) else leaf


def sum_of_products(module: Any) -> jax.Array:
    """The penalty of the products of flax's projections, formed head by head."""
    query, key, value, out = (
        kernel(module[name]["kernel"]) for name in ("query", "key", "value", "out")
    )
    members = query.shape[1] // key.shape[1]
    total = jnp.zeros([])
    for head in range(query.shape[1]):
        scores = query[:, head] @ key[:, head // members].T
        values = value[:, head // members] @ out[head]
        total += 0.5 * (jnp.sum(scores**2) + jnp.sum(values**2))
    return total


@pytest.mark.parametrize(
    "name", ["grouped", "factorized", "factorized, deep", "factorized, grouped", "half factorized"]
)
def test_gradients_are_those_of_the_products_written_out(name: str, x64: None) -> None:
    params = doubled(CASES[name]().params)
    products = attention_products(params)

    def penalty(params: Any) -> jax.Array:
        return sum_of_products(params.get("attention", params))

    np.testing.assert_allclose(frobenius_penalty(params, products), penalty(params), rtol=1e-10)
    wanted = jax.tree.map(lambda g: COEFFICIENT * g, jax.grad(penalty)(params))
    assert_close(added(frobenius_decay(COEFFICIENT, products), params), wanted, 1e-9)


def test_gradients_of_a_fused_kernel_have_a_closed_form(x64: None) -> None:
    """Q_h (K_hᵀ K_h) and so on, each in its own part of the one kernel."""
    case = CASES["fused (D, 3 H d)"]()
    products = attention_products(case.params, layout=case.layout)
    found = added(frobenius_decay(1.0, products), doubled(case.params))
    heads = case.heads(case.params)
    for head, gradient in zip(heads, case.heads(found), strict=True):
        q, k, v, o = (head[name] for name in "qkvo")
        for name, wanted in (
            ("q", q @ (k.T @ k)),
            ("k", k @ (q.T @ q)),
            ("v", v @ (o @ o.T)),
            ("o", (v.T @ v) @ o),
        ):
            np.testing.assert_allclose(gradient[name], wanted, rtol=1e-10, atol=1e-10)
    assert not found["qkv"]["bias"].any()


def test_weights_and_products_together_count_nothing_twice(x64: None) -> None:
    draw = Draw()
    params = doubled(
        {
            "attention": CASES["factorized"]().params,
            "mlp": {"kernel": draw.low_rank(6, 8, rank=2), "bias": draw(8)},
            "head": {"kernel": draw(8, 5)},
        }
    )
    products = attention_products(params)

    def explicit(params: Any) -> jax.Array:
        return sum_of_products(params["attention"]) + 0.5 * jnp.sum(
            params["mlp"]["kernel"].dense() ** 2
        )

    np.testing.assert_allclose(frobenius_penalty(params, products), explicit(params), rtol=1e-10)
    wanted = jax.tree.map(lambda g: 2.0 * g, jax.grad(explicit)(params))
    for place in (("mlp", "bias"), ("head", "kernel")):
        wanted[place[0]][place[1]] = 0.5 * params[place[0]][place[1]]
    for name in ("query", "key", "value", "out"):
        wanted["attention"][name]["bias"] = 0.5 * params["attention"][name]["bias"]
    assert_close(added(decay(0.5, 2.0, products), params), wanted, 1e-9)
    # Without the products, the projections are kernels as any other.
    weights = [
        leaf for leaf in jax.tree.leaves(params, is_leaf=is_factorized) if is_factorized(leaf)
    ]
    assert len(weights) == 5
    np.testing.assert_allclose(
        frobenius_penalty(params), sum(0.5 * jnp.sum(w.dense() ** 2) for w in weights), rtol=1e-10
    )


@pytest.mark.parametrize("outer", [False, True], ids=["mask=", "optax.masked"])
def test_a_factorized_side_is_hidden_with_its_product(outer: bool) -> None:
    params = CASES["factorized"]().params
    products = attention_products(params, ("qk",))

    def masked(mask: Any) -> optax.GradientTransformation:
        if outer:
            return optax.masked(decay(1.0, products=products), mask)
        return decay(1.0, products=products, mask=mask)

    rest = {"value": True, "out": True}
    found = added(masked({"query": False, "key": False} | rest), params)
    for name in ("query", "key"):
        assert not any(leaf.any() for leaf in jax.tree.leaves(found[name]))
    assert all(leaf.any() for leaf in jax.tree.leaves(found["value"]))
    with pytest.raises(ValueError, match=r"Product\('query/kernel', 'key/kernel'\): the mask"):
        masked({"query": True, "key": False} | rest).init(params)
    part = {"kernel": params["query"]["kernel"].replace(u=True, vt=False), "bias": True}
    with pytest.raises(ValueError, match="query/kernel: the mask covers some of its factors"):
        masked({"query": part, "key": True} | rest).init(params)


def test_only_the_same_parts_are_the_same_product() -> None:
    kernel = View("qkv").split(-1, (3, HEADS, SIZE))
    q, k, v = (kernel.take(-3, part) for part in range(3))
    products = [Product(q, other, dimension_numbers=ALONG_HEADS) for other in (k, v)]
    params = {"qkv": jnp.ones((MODEL, 3 * HEADS * SIZE))}
    assert frobenius_penalty(params, products) == 2 * 0.5 * HEADS * (MODEL * SIZE) ** 2
    again = Product(k, q, dimension_numbers=ALONG_HEADS)
    with pytest.raises(ValueError, match=r"View\('qkv'\).split.*is listed twice"):
        frobenius_penalty(params, [*products, again])


QKV = View("qkv").split(-1, (3, HEADS, SIZE))
READ_IN_PART = {
    "one pair of three parts": [(QKV.take(-3, 0), QKV.take(-3, 1))],
    "ranges that overlap": [
        (View("qkv").take(-1, (0, 8)).split(-1, (4, 2)), "two"),
        (View("qkv").take(-1, (4, 12)).split(-1, (4, 2)).take(0, (2, 9)), "two"),
    ],
}


@pytest.mark.parametrize("pairs", READ_IN_PART.values(), ids=READ_IN_PART)
def test_what_products_do_not_read_is_decayed_plainly(pairs: Any, x64: None) -> None:
    draw = Draw()
    params = doubled({"qkv": draw(MODEL, 3 * HEADS * SIZE), "two": draw(MODEL, 4, 2)})
    products = [Product(u, vt, dimension_numbers=ALONG_HEADS) for u, vt in pairs]
    # What is read, found by taking it: a part that is read has no gradient where it is zero.
    ones = np.ones(params["qkv"].shape)
    for view in (view for pair in pairs for view in pair if view != "two"):
        view.read(ones).operands[0].array[...] = 0
    assert 0 < ones.sum() < ones.size
    wanted = jax.grad(lambda p: 2.0 * frobenius_penalty(p, products))(params)["qkv"]
    found = added(decay(0.5, 2.0, products), params)["qkv"]
    assert_close(found, wanted + 0.5 * ones * params["qkv"], 1e-9)
    alone = added(frobenius_decay(2.0, products), params)["qkv"]
    assert_close(alone, wanted, 1e-9)
    frobenius_decay(2.0, products).init(jax.eval_shape(lambda: params))
    masked = added(decay(0.5, 2.0, products, mask={"qkv": False, "two": False}), params)
    assert not masked["qkv"].any()


def test_a_factorized_kernel_must_be_read_whole() -> None:
    case = CASES["fused (D, 3 H d), factorized"]()
    products = attention_products(case.params, ("ov",), layout=case.layout)
    for attempt in (
        lambda: frobenius_penalty(case.params, products),
        lambda: decay(1.0, products=products).init(case.params),
    ):
        with pytest.raises(ValueError, match="qkv/kernel: products read only a part of this LowR"):
            attempt()
    mask = {"qkv": {"kernel": False, "bias": True}, "out": {"kernel": False, "bias": True}}
    decay(1.0, products=products, mask=mask).init(case.params)


def of_kind(name: str, draw: Draw) -> Any:
    """A kernel (16, 12), or that of a 1 x 1 convolution, in another kind than LowRank."""
    if name == "SpatialLowRank":
        return SpatialLowRank(u=draw(1, 1, 16, 4), vt=draw(1, 1, 4, 12))
    return factorize({"k": draw(16, 12)}, [Rule("k", FixedRank(2), TensorTrain)])["k"]


@pytest.mark.parametrize("name", ["SpatialLowRank", "TensorTrain"])
def test_other_kinds_of_weights(name: str) -> None:
    draw = Draw()
    params = {"k": of_kind(name, draw), "out": draw(12, 7)}
    view = View("k").take(0, 0).take(0, 0) if name == "SpatialLowRank" else "k"
    product = Product(view, "out")
    dense = np.asarray(params["k"].dense(), np.float64).reshape(16, 12)
    wanted = 0.5 * np.sum((dense @ params["out"]) ** 2)
    np.testing.assert_allclose(frobenius_penalty(params, [product]), wanted, rtol=1e-5)
    assert product.weight(params["k"], params["out"]).shape == (16, 7)


def test_batch_axes_that_are_not_shared_are_summed() -> None:
    """Stacked factors: one Gram matrix is the sum of those of the stack, factor by factor."""
    draw = Draw()
    weight = draw.low_rank(3, 8, 5, rank=4, batch=1, deep=True)
    dense = np.asarray(weight.dense(), np.float64)
    product = Product("q", "k", dimension_numbers=(((2,), (0,)), ((), ())))
    other = draw(5, 6)
    np.testing.assert_allclose(
        product.squared_norm(weight, other), np.sum((dense @ other) ** 2), rtol=1e-5
    )


def test_neither_products_nor_kernels_are_formed() -> None:
    model, heads, size, rank = 64, 4, 8, 6
    draw = Draw()
    params = {
        name: {"kernel": draw.low_rank(model, heads, size, rank=rank, deep=True)}
        for name in ("query", "key", "value")
    } | {"out": {"kernel": draw.low_rank(heads, size, model, rank=rank, in_axes=2)}}
    tx = frobenius_decay(1.0, attention_products(params))
    update = lambda p: tx.update(p, tx.init(p), p)  # noqa: E731
    # A kernel has model * heads * size entries, a product model² for each head.
    largest = max(model * rank, heads * size * max(rank, size))
    assert largest_intermediate(update, params) <= largest < model * heads * size
    dense = jax.tree.map(kernel, params, is_leaf=is_factorized)
    assert largest_intermediate(update, dense) == model * heads * size < heads * model**2
    shapes = {
        variable.aval.shape
        for equation in equations(jax.make_jaxpr(update)(dense))
        for variable in equation.outvars
    }
    assert not any(shape.count(model) > 1 for shape in shapes)


def test_boxes_and_narrow_leaves() -> None:
    case = CASES["factorized"]()
    products = attention_products(case.params)
    tx = frobenius_decay(COEFFICIENT, products)
    plain = added(tx, case.params)
    boxed = jax.tree.map(lambda x: nn.Partitioned(x, names=(None,) * x.ndim), case.params)
    found = added(tx, boxed)
    assert isinstance(found["query"]["kernel"].u, nn.Partitioned)
    narrow = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), case.params)
    rounded = added(tx, narrow)
    reference = added(tx, jax.tree.map(lambda x: x.astype(jnp.float32), narrow))
    for a, b in zip(jax.tree.leaves(nn.unbox(found)), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(jax.tree.leaves(rounded), jax.tree.leaves(reference), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(a, "f"), b, rtol=2**-8)


def test_a_product_that_names_a_factor_is_an_error() -> None:
    params = {"a": LowRank(jnp.ones((4, 1)), jnp.ones((1, 4))), "b": jnp.ones((1, 2))}
    with pytest.raises(ValueError, match=r"names a/u, but a is a factorized weight: name the wei"):
        frobenius_decay(1.0, [Product("a/u", "b")]).init(params)
