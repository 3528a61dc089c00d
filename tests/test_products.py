"""Implicit products against explicit sums over heads, and what is refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jaxprs import largest_intermediate

from lowrank_jax import (
    Product,
    View,
    decay,
    frobenius_decay,
    frobenius_penalty,
    products_by_suffix,
)

MODEL, HEADS, SIZE, COEFFICIENT = 6, 3, 2, 0.37
QUERY_KEY = Product("q/kernel", "k/kernel", dimension_numbers=(((2,), (2,)), ((1,), (1,))))
OUTPUT_VALUE = Product("v/kernel", "o/kernel", dimension_numbers=(((-1,), (1,)), ((1,), (0,))))


def attention(dtype: Any = np.float64) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    shapes = dict.fromkeys("qkv", (MODEL, HEADS, SIZE)) | {"o": (HEADS, SIZE, MODEL)}
    return {
        name: {"kernel": jnp.asarray(generator.standard_normal(shape), dtype)}
        for name, shape in shapes.items()
    }


def added(tx: optax.GradientTransformation, params: Any) -> Any:
    zeros = jax.tree.map(jnp.zeros_like, params)
    return jax.jit(tx.update)(zeros, tx.init(params), params)[0]


def leaf(tree: Any, name: str) -> np.ndarray:
    return np.asarray(tree[name]["kernel"], np.float64)


def test_heads_are_batch_axes(x64: None) -> None:
    params = attention()
    found = added(frobenius_decay(COEFFICIENT, [QUERY_KEY, OUTPUT_VALUE]), params)
    q, k, v, o = (leaf(params, name) for name in "qkvo")
    penalty = 0.0
    for h in range(HEADS):
        scores, values = q[:, h] @ k[:, h].T, v[:, h] @ o[h]
        penalty += 0.5 * ((scores**2).sum() + (values**2).sum())
        for name, at, gradient in (
            ("q", np.s_[:, h], scores @ k[:, h]),
            ("k", np.s_[:, h], scores.T @ q[:, h]),
            ("v", np.s_[:, h], values @ o[h].T),
            ("o", np.s_[h], v[:, h].T @ values),
        ):
            np.testing.assert_allclose(
                leaf(found, name)[at], COEFFICIENT * gradient, rtol=1e-11, atol=1e-12
            )
    np.testing.assert_allclose(
        frobenius_penalty(params, [QUERY_KEY, OUTPUT_VALUE]), penalty, rtol=1e-12
    )


def test_the_product_of_a_pair_is_its_explicit_contraction() -> None:
    params = attention(np.float32)
    weight = OUTPUT_VALUE.weight(params["v"]["kernel"], params["o"]["kernel"])
    explicit = np.einsum("mhs,hsn->hmn", leaf(params, "v"), leaf(params, "o"))
    np.testing.assert_allclose(weight.dense(), explicit, rtol=1e-5, atol=1e-5)
    # Two contracted-with axes on either side: (2, 3, r) and (4, r, 5).
    u, vt = np.arange(12.0).reshape(2, 3, 2), np.arange(40.0).reshape(4, 2, 5)
    weight = Product("u", "vt", dimension_numbers=(((2,), (1,)), ((), ()))).weight(u, vt)
    np.testing.assert_allclose(weight.dense(), np.einsum("abr,crd->abcd", u, vt))


def test_a_key_shared_by_two_queries_gets_the_sum() -> None:
    params = attention(np.float32)
    second = Product("v/kernel", "k/kernel", dimension_numbers=QUERY_KEY.dimension_numbers)
    one, other, both = (
        added(frobenius_decay(1.0, products), params)
        for products in ([QUERY_KEY], [second], [QUERY_KEY, second])
    )
    for name in "qkvo":
        np.testing.assert_allclose(
            leaf(both, name), leaf(one, name) + leaf(other, name), rtol=1e-5, atol=1e-5
        )


def test_leaves_of_products_are_not_decayed_plainly() -> None:
    params = attention(np.float32)
    found = added(decay(0.5, 1.0, products=[QUERY_KEY]), params)
    alone = added(frobenius_decay(1.0, [QUERY_KEY]), params)
    for name in "qk":
        np.testing.assert_array_equal(leaf(found, name), leaf(alone, name))
    for name in "vo":
        np.testing.assert_array_equal(leaf(found, name), 0.5 * leaf(params, name))


def adapters() -> dict[str, Any]:
    ones = {"kernel_lora_a": jnp.ones((8, 2)), "kernel_lora_b": jnp.full((2, 4), 3.0)}
    return {"a": ones | {"bias": jnp.ones(4)}, "b": dict(ones)}


def test_adapters_are_found_by_suffix_and_scaled() -> None:
    params = adapters()
    products = products_by_suffix(params, "_lora_a", "_lora_b", scale=0.5)
    assert [(p.u, p.vt, p.scale) for p in products] == [
        (f"{name}/kernel_lora_a", f"{name}/kernel_lora_b", 0.5) for name in "ab"
    ]
    # Every entry of 0.5 * a @ b is 0.5 * 2 * 3 = 3, in two 8 x 4 matrices.
    assert frobenius_penalty(params, products) == 0.5 * 2 * 32 * 9
    found = added(frobenius_decay(1.0, products), params)["a"]
    np.testing.assert_allclose(found["kernel_lora_a"], np.full((8, 2), 0.5 * 3 * 3 * 4))
    np.testing.assert_allclose(found["kernel_lora_b"], np.full((2, 4), 0.5 * 8 * 3))
    assert not found["bias"].any()
    abstract = jax.eval_shape(lambda: params)
    assert products_by_suffix(abstract, "_lora_a", "_lora_b", scale=0.5) == products
    frobenius_decay(1.0, products).init(abstract)


@pytest.mark.parametrize("left_out", ["kernel_lora_a", "kernel_lora_b"])
def test_half_a_pair_is_an_error(left_out: str) -> None:
    params = adapters()
    del params["a"][left_out]
    kept = {"kernel_lora_a", "kernel_lora_b"} - {left_out}
    with pytest.raises(ValueError, match=f"a/{kept.pop()} has no partner a/{left_out}"):
        products_by_suffix(params, "_lora_a", "_lora_b")


def test_suffixes_that_match_nothing_list_near_misses() -> None:
    with pytest.raises(ValueError, match=r"no leaf ends in '_lora_A'.*kernel_lora_a"):
        products_by_suffix(adapters(), "_lora_A", "_lora_B")


@pytest.mark.parametrize("wrap", [frobenius_decay, decay])
def test_a_misspelled_path_lists_near_misses(wrap: Any) -> None:
    product = Product("q/kernal", "k/kernel", dimension_numbers=QUERY_KEY.dimension_numbers)
    with pytest.raises(ValueError, match=r"q/kernal, which is not in the param.*misses: q/kernel"):
        wrap(0.1, products=[product]).init(attention(np.float32))
    # A mask elsewhere does not hide the mistake.
    tx = optax.masked(wrap(0.1, products=[product]), {"q": True, "k": True, "v": False, "o": False})
    with pytest.raises(ValueError, match="q/kernal"):
        tx.init(attention(np.float32))


def test_keys_that_contain_slashes_are_found() -> None:
    """Haiku's module names, and trees flattened with a separator."""
    params = {"mlp/~/linear": {"w": jnp.ones((4, 2))}, "mlp/~/linear_1/w": jnp.ones((2, 3))}
    product = Product("mlp/~/linear/w", "mlp/~/linear_1/w")
    assert frobenius_penalty(params, [product]) == 0.5 * 4 * 3 * 2**2
    found = added(frobenius_decay(1.0, [product]), params)
    np.testing.assert_array_equal(found["mlp/~/linear"]["w"], np.full((4, 2), 6.0))


@pytest.mark.parametrize("outer", [False, True], ids=["mask=", "optax.masked"])
def test_a_product_is_hidden_whole_or_not_at_all(outer: bool) -> None:
    params = attention(np.float32)

    def masked(mask: Any) -> optax.GradientTransformation:
        if outer:
            return optax.masked(frobenius_decay(1.0, [QUERY_KEY]), mask)
        return frobenius_decay(1.0, [QUERY_KEY], mask)

    rest = {"v": True, "o": {"kernel": True}}
    whole = added(masked({"q": False, "k": {"kernel": False}} | rest), params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(whole))
    for q, k in ((True, False), (False, True)):
        with pytest.raises(ValueError, match=r"Product\('q/kernel', 'k/kernel'\): the mask covers"):
            masked({"q": q, "k": k} | rest).init(params)
    filtered = params | {"q": None, "k": {"kernel": None}}
    frobenius_decay(1.0, [QUERY_KEY]).init(filtered)


@pytest.mark.parametrize(
    "numbers",
    [
        ((0,), (0,)),
        (((0, 1), (0, 1)), ((), ())),
        (((0,), ()), ((), ())),
        (((0,), (0,)), ((1,), ())),
        None,
    ],
)
def test_malformed_dimension_numbers(numbers: Any) -> None:
    with pytest.raises(ValueError, match=r"Product\('u', 'vt'\): dimension_numbers=.*expected"):
        Product("u", "vt", dimension_numbers=numbers)


@pytest.mark.parametrize(
    ("numbers", "u", "vt", "message"),
    [
        ((((2,), (0,)), ((), ())), (4, 2), (2, 3), r"u has shape \(4, 2\).*its axes \(2,\)"),
        ((((1,), (-3,)), ((), ())), (4, 2), (2, 3), r"vt has shape \(2, 3\).*axes \(-3,\)"),
        ((((1,), (0,)), ((-1,), (1,))), (4, 2), (2, 3), r"u has shape \(4, 2\).*distinct"),
        ((((0,), (0,)), ((), ())), (2,), (2, 3), r"u has shape \(2,\); expected an axis beside"),
        ((((0,), (0,)), ((1,), (1,))), (2, 3), (2, 3), r"expected an axis beside"),
        ((((1,), (0,)), ((), ())), (4, 2), (3, 5), r"u \(4, 2\) and vt \(3, 5\) differ along the"),
        (
            (((1,), (1,)), ((2,), (2,))),
            (4, 2, 8),
            (4, 2, 2),
            r"differ along the shared axes \(2,\)",
        ),
        ((((0,), (0,)), ((), ())), (), (2, 3), r"u has shape \(\)"),
    ],
)
def test_leaves_that_do_not_fit_are_refused_at_init(
    numbers: Any, u: tuple[int, ...], vt: tuple[int, ...], message: str
) -> None:
    params = {"u": jnp.ones(u), "vt": jnp.ones(vt)}
    product = Product("u", "vt", dimension_numbers=numbers)
    for tree in (params, jax.eval_shape(lambda: params)):
        with pytest.raises(ValueError, match=message):
            frobenius_decay(1.0, [product]).init(tree)
    with pytest.raises(ValueError, match=message):
        product.weight(params["u"], params["vt"])


def test_a_product_listed_twice_is_an_error() -> None:
    params = attention(np.float32)
    turned = Product("k/kernel", "q/kernel", dimension_numbers=QUERY_KEY.dimension_numbers)
    for again in (QUERY_KEY, turned):
        with pytest.raises(ValueError, match=r"is listed twice"):
            frobenius_decay(1.0, [QUERY_KEY, again]).init(params)
        with pytest.raises(ValueError, match=r"is listed twice"):
            frobenius_penalty(params, [QUERY_KEY, again])


FLAT = View("flat").split(-1, (HEADS, SIZE))
SPELLINGS = {
    "an axis counted from the other end": (FLAT, View("flat").split(1, (HEADS, SIZE))),
    "a split in one": (FLAT, FLAT.split(0, (MODEL,))),
    "a split in two steps": (
        View("flat").split(-1, (3, 2)),
        View("flat").split(-1, (6, 1)).split(-2, (3, 2)).take(-1, 0),
    ),
    "an index counted from the end": (
        View("three").take(0, 2),
        View("three").take(0, -1),
    ),
    "all of an axis": ("q/kernel", View("q/kernel").take(0, (0, MODEL))),
}


@pytest.mark.parametrize(("left", "other"), SPELLINGS.values(), ids=SPELLINGS)
def test_the_same_product_said_in_another_way_is_a_duplicate(left: Any, other: Any) -> None:
    params = attention(np.float32)
    params["flat"] = params["q"]["kernel"].reshape(MODEL, -1)
    params["three"] = jnp.stack([params["q"]["kernel"]] * 3)
    one, again = (
        Product(view, "k/kernel", dimension_numbers=QUERY_KEY.dimension_numbers)
        for view in (left, other)
    )
    expected = frobenius_penalty(params, [QUERY_KEY])
    for product in (one, again):
        np.testing.assert_allclose(frobenius_penalty(params, [product]), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"is listed twice"):
        frobenius_penalty(params, [one, again])


def test_the_path_of_a_box_and_of_the_array_in_it_are_the_same_leaf() -> None:
    params = attention(np.float32)
    params["q"]["kernel"] = nn.Partitioned(params["q"]["kernel"], names=(None,) * 3)
    inside = Product("q/kernel/value", "k/kernel", dimension_numbers=QUERY_KEY.dimension_numbers)
    assert frobenius_penalty(params, [inside]) == frobenius_penalty(params, [QUERY_KEY])
    with pytest.raises(ValueError, match=r"is listed twice"):
        frobenius_penalty(params, [QUERY_KEY, inside])


def test_a_suffix_may_be_value() -> None:
    params = {"a": {"key": jnp.ones((3, 2)), "value": jnp.ones((2, 3))}}
    (product,) = products_by_suffix(params, "key", "value")
    assert product.paths == ("a/key", "a/value")
    assert frobenius_penalty(params, [product]) == 0.5 * 9 * 2**2


def test_no_product_of_heads_is_composed() -> None:
    params = {name: {"kernel": jnp.ones((32, 4, 4))} for name in "qk"}
    tx = frobenius_decay(1.0, [QUERY_KEY])
    update = lambda p: tx.update(p, tx.init(p), p)  # noqa: E731
    assert largest_intermediate(update, params) < 4 * 32 * 32
    pair = QUERY_KEY.weight(params["q"]["kernel"], params["k"]["kernel"])
    assert largest_intermediate(lambda w: w.dense(), pair) >= 4 * 32 * 32


def test_leaves_in_partition_boxes_are_found() -> None:
    params = attention(np.float32)
    boxed = jax.tree.map(lambda x: nn.Partitioned(x, names=(None,) * x.ndim), params)
    tx = frobenius_decay(COEFFICIENT, [QUERY_KEY])
    found = added(tx, boxed)
    assert isinstance(found["q"]["kernel"], nn.Partitioned)
    for a, b in zip(
        jax.tree.leaves(nn.unbox(found)), jax.tree.leaves(added(tx, params)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    adapters_boxed = jax.tree.map(lambda x: nn.Partitioned(x, names=(None,) * x.ndim), adapters())
    assert len(products_by_suffix(adapters_boxed, "_lora_a", "_lora_b")) == 2
