"""Which products are found in a tree, as the sum over heads written out; and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import (
    CASES,
    GROUPS,
    HEADS,
    MODEL,
    SIZE,
    Case,
    Draw,
    flax_heads,
    grouped,
    module,
    penalty,
)
from flax import linen as nn
from flax import nnx

from lowrank_jax import (
    AttentionLayout,
    Projection,
    View,
    attention_products,
    frobenius_decay,
    frobenius_penalty,
)


def of_products(case: Case, which: tuple[str, ...]) -> jax.Array:
    products = attention_products(case.params, which, layout=case.layout)
    return sum(
        0.5 * product.squared_norm(*(at(case.params, path) for path in product.paths))
        for product in products
    )


@pytest.mark.parametrize("name", CASES)
def test_the_penalty_is_the_sum_over_heads(name: str) -> None:
    case = CASES[name]()
    products = attention_products(case.params, layout=case.layout)
    found = frobenius_penalty(case.params, products)
    np.testing.assert_allclose(found, penalty(case.heads(case.params)), rtol=1e-5)
    abstract = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, case.params))
    assert attention_products(abstract, layout=case.layout) == products
    frobenius_decay(1.0, products).init(abstract)


@pytest.mark.parametrize("pair", ["qk", "ov"])
def test_one_kind_of_products_alone(pair: str) -> None:
    case = CASES["grouped"]()
    np.testing.assert_allclose(
        of_products(case, (pair,)), penalty(case.heads(case.params), (pair,)), rtol=1e-5
    )


def at(params: Any, path: str) -> Any:
    for key in path.split("/"):
        params = params[key]
    return params


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        x = nn.MultiHeadDotProductAttention(HEADS, qkv_features=HEADS * SIZE)(x)
        return nn.MultiHeadDotProductAttention(HEADS, name="cross")(nn.Dense(8)(x), x), None


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layers = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return layers(name="layers")(x, None)[0]


def test_flax_modules_are_found_at_any_depth() -> None:
    params = jax.eval_shape(Stack().init, jax.random.key(0), jnp.ones((1, 5, 8)))
    products = attention_products(params, ("ov",))
    name = "params/layers/MultiHeadDotProductAttention_0"
    assert [product.paths for product in products] == [
        (f"{name}/value/kernel", f"{name}/out/kernel"),
        ("params/layers/cross/value/kernel", "params/layers/cross/out/kernel"),
    ]
    assert [product.u_bias for product in products] == [
        f"{name}/value/bias",
        "params/layers/cross/value/bias",
    ]
    # The layers' axis is shared, beside that of the heads.
    assert products[0].dimension_numbers == (((3,), (2,)), ((0, 2), (0, 1)))


def test_nnx_modules_and_boxes_are_found() -> None:
    attention = nnx.MultiHeadAttention(HEADS, MODEL, HEADS * SIZE, rngs=nnx.Rngs(0), decode=False)
    state = nnx.state(attention, nnx.Param)
    found = frobenius_penalty(state, attention_products(state))
    heads = flax_heads(
        {
            name: {"kernel": state[name]["kernel"][...], "bias": state[name]["bias"][...]}
            for name in ("query", "key", "value", "out")
        }
    )
    np.testing.assert_allclose(found, penalty(heads), rtol=1e-5)
    case = CASES["factorized"]()
    boxed = jax.tree.map(lambda x: nn.Partitioned(x, names=(None,) * x.ndim), case.params)
    assert attention_products(boxed) == attention_products(case.params)
    np.testing.assert_allclose(
        frobenius_penalty(boxed, attention_products(boxed)),
        penalty(case.heads(case.params)),
        rtol=1e-5,
    )


def test_normalized_queries_and_keys_have_no_product() -> None:
    model = nn.MultiHeadDotProductAttention(2, normalize_qk=True)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 3, 4)))
    with pytest.raises(ValueError, match=r'params/query_ln normalizes.*which=\("ov",\)'):
        attention_products(params)
    assert len(attention_products(params, ("ov",))) == 1
    layout = AttentionLayout(normalizations=("q_norm",))
    assert len(attention_products(params, layout=layout)) == 2


def changed(path: str, leaf: Any) -> Any:
    """The grouped case with one leaf replaced, or removed."""
    params = grouped().params
    *modules, name = path.split("/")
    parent = at(params, "/".join(modules))
    if leaf is None:
        del parent[name]
    else:
        parent[name] = leaf
    return params


def test_a_module_of_two_dimensional_kernels_says_what_it_needs() -> None:
    draw = Draw()
    params = changed("attention/query/kernel", draw(MODEL, HEADS * SIZE))
    with pytest.raises(ValueError, match=r"attention/query/kernel has shape \(10, 12\).*a View"):
        attention_products(params)


@pytest.mark.parametrize(
    ("path", "leaf", "message"),
    [
        ("attention/query/kernel", None, r"no attention module: no leaf ends in query/kernel; nea"),
        ("attention/key/kernel", None, r"module attention has a query but no key: attention/key/k"),
        ("attention/out/kernel", None, r"has a query but no out: attention/out/kernel"),
        (
            "attention/key/kernel",
            np.ones((MODEL, 3, SIZE)),
            r"attention/query/kernel has 4 heads and attention/key/kernel has 3, of shapes",
        ),
        (
            "attention/key/kernel",
            np.ones((MODEL, GROUPS, 5)),
            r"attention/query/kernel \(10, 2, 2, 3\) and attention/key/kernel \(10, 2, 5\) differ",
        ),
    ],
)
def test_what_does_not_fit_is_an_error(path: str, leaf: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_products(changed(path, leaf))


def stacked_along_one(size: int, *, bias: bool) -> dict[str, Any]:
    """Modules stacked by nn.scan with params on axis 1: (D, L, H, d), (H, L, d), (H, L, d, D)."""
    draw = Draw()
    shapes = dict.fromkeys(("query", "key", "value"), (MODEL, size, HEADS, SIZE))
    params = {name: {"kernel": draw(*shape)} for name, shape in shapes.items()}
    if bias:
        for projection in params.values():
            projection["bias"] = draw(HEADS, size, SIZE)
    return params | {"out": {"kernel": draw(HEADS, size, SIZE, MODEL)}}


@pytest.mark.parametrize("which", [("qk",), ("ov",), ("qk", "ov")])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layers", [2, HEADS])
def test_modules_stacked_along_another_axis_are_refused(
    layers: int, bias: bool, which: tuple[str, ...]
) -> None:
    params = stacked_along_one(layers, bias=bias)
    with pytest.raises(ValueError, match="modules are stacked must be in front"):
        attention_products(params, which)
    del params["out"]
    if bias:  # Without outputs, the biases tell.
        with pytest.raises(ValueError, match=r"query/bias has shape \(4, .*modules are stacked"):
            attention_products(params, ("qk",))


def test_outputs_of_another_form_do_not_hinder_queries_and_keys() -> None:
    params = grouped().params
    (expected,) = attention_products(params, ("qk",))
    params["attention"]["out"]["kernel"] = Draw()(HEADS * SIZE, MODEL)
    assert attention_products(params, ("qk",)) == (expected,)
    del params["attention"]["out"]
    assert attention_products(params, ("qk",)) == (expected,)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Leaves:
    """Parameters as attributes, as in Equinox."""

    query: Any
    key: Any
    value: Any
    out: Any


@pytest.mark.parametrize("collect", [dict, Leaves])
def test_a_leaf_may_be_called_value(collect: Any) -> None:
    kernels = {name: leaf["kernel"] for name, leaf in CASES["flax"]().params["attention"].items()}
    layout = AttentionLayout(
        *(Projection(name) for name in ("query", "key", "value")),
        out=Projection("out", heads=-3, size=-2, model=-1),
    )
    params = {"attn": collect(**kernels)}
    products = attention_products(params, layout=layout)
    assert [product.paths for product in products] == [
        ("attn/query", "attn/key"),
        ("attn/value", "attn/out"),
    ]
    case = CASES["flax"]()
    np.testing.assert_allclose(
        frobenius_penalty(params, products), penalty(case.heads(case.params)), rtol=1e-5
    )


def test_a_bias_that_the_layout_does_not_name_is_an_error() -> None:
    draw = Draw()
    params = module(draw, draw)
    layout = AttentionLayout(query=Projection("query/kernel"))
    with pytest.raises(ValueError, match="query/bias is beside query/kernel, but the layout"):
        attention_products(params, layout=layout)
    del params["query"]["bias"]
    assert [p.u_bias for p in attention_products(params, layout=layout)] == [None, "value/bias"]


def test_arguments_are_checked() -> None:
    params = CASES["flax"]().params
    for which in ("qk", (), ("qk", "qk"), ("qk", "vo")):
        with pytest.raises(ValueError, match="which="):
            attention_products(params, which)
    with pytest.raises(ValueError, match="counted from the end"):
        Projection("query/kernel", heads=1)
    with pytest.raises(ValueError, match="three different"):
        Projection("query/kernel", heads=-1)
    with pytest.raises(ValueError, match="no part of a product"):
        AttentionLayout(out=Projection("out/kernel", bias="out/bias"))


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (View("x").split(-1, (3, 5)), r"View\('x'\).split\(-1, \(3, 5\)\): split.*\(6, 24\)"),
        (View("x").split(2, (3, 8)), r"split\(2, \(3, 8\)\) does not fit the shape \(6, 24\)"),
        (View("x").split(1, (-2, -12)), "does not fit"),
        (View("x").split(1, ()), "does not fit"),
        (View("x").take(0, 6), r"take\(0, 6\) does not fit"),
        (View("x").take(0, (2, 2)), r"take\(0, \(2, 2\)\) does not fit"),
        (View("x").split(1, (4, 6)).take(-1, (0, 7)), r"the shape \(6, 4, 6\) that it meets; x is"),
    ],
)
def test_a_view_that_does_not_fit_says_which_step(view: View, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        view.shape((6, 24))
    with pytest.raises(ValueError, match=message):
        view.read(np.ones((6, 24)))
