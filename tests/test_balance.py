"""Balanced products: the same products and logits, equal and diagonal Gram matrices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from attention_cases import CASES, HEADS, MODEL, SIZE, Draw, dense
from closeness import assert_close
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lowrank_jax import (
    FixedRank,
    Product,
    Rule,
    TensorTrain,
    View,
    attention_products,
    balance_products,
    factorize,
    restructure,
)
from lowrank_jax.balance import change_of_basis

ALONG_HEADS = (((2,), (2,)), ((1,), (1,)))


@pytest.mark.parametrize("name", CASES)
def test_products_and_biased_scores_stay_and_factors_are_balanced(name: str) -> None:
    case = CASES[name]()
    products = attention_products(case.params, layout=case.layout)
    balanced = balance_products(case.params, products)
    assert jax.tree.structure(balanced) == jax.tree.structure(case.params)
    generator = np.random.default_rng(5)
    x, y = generator.standard_normal((2, 7, MODEL))
    before, after = case.heads(case.params), case.heads(balanced)
    shared = len(before) // len({head["k"].tobytes() for head in before})
    for old, new in zip(before, after, strict=True):
        assert_close(new["q"] @ new["k"].T, old["q"] @ old["k"].T, 1e-5)
        assert_close(new["v"] @ new["o"], old["v"] @ old["o"], 1e-5)
        scores, values = (
            [
                (x @ head["q"] + head["b_q"]) @ (y @ head["k"] + head["b_k"]).T,
                (y @ head["v"] + head["b_v"]) @ head["o"],
            ]
            for head in (new, old)
        )
        for found, wanted in zip(scores, values, strict=True):
            assert_close(found, wanted, 1e-5)
    for first in range(0, len(before), shared):  # The heads that share keys and values.
        group, old = after[first : first + shared], before[first : first + shared]
        for u, vt, product in (
            (np.concatenate([h["q"] for h in group]), group[0]["k"].T, "qk"),
            (group[0]["v"], np.concatenate([h["o"] for h in group], axis=1), "vo"),
        ):
            if product == "qk":
                whole = np.concatenate([h["q"] @ h["k"].T for h in old])
            else:
                whole = np.concatenate([h["v"] @ h["o"] for h in old], axis=1)
            s = np.diag(np.linalg.svd(whole, compute_uv=False)[:SIZE])
            assert_close(u.T @ u, s, 1e-5)
            assert_close(vt @ vt.T, s, 1e-5)


def test_only_the_factor_with_the_head_size_changes() -> None:
    params = CASES["factorized, deep"]().params
    balanced = balance_products(params, attention_products(params))
    for name, kept, changed in (("query", "u", "vt"), ("out", "vt", "u")):
        old, new = params[name]["kernel"], balanced[name]["kernel"]
        assert getattr(new, kept) is getattr(old, kept) and new.m is old.m
        assert np.abs(getattr(new, changed) - getattr(old, changed)).max() > 0.1
    assert balanced["out"]["bias"] is params["out"]["bias"]


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_logits_of_flax_attention_are_unchanged(cross: bool) -> None:
    model = nn.MultiHeadDotProductAttention(
        HEADS, qkv_features=HEADS * SIZE, precision="highest", bias_init=nn.initializers.normal(1.0)
    )
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 5, MODEL))
    y = jax.random.normal(keys[1], (2, 7, MODEL)) if cross else x
    params = jax.jit(model.init)(keys[2], x, y)
    balanced = balance_products(params, attention_products(params))
    biases = [variables["params"]["query"]["bias"] for variables in (params, balanced)]
    assert np.abs(biases[0] - biases[1]).max() > 0.1
    apply = jax.jit(model.apply)
    assert_close(np.asarray(apply(balanced, x, y)), np.asarray(apply(params, x, y)), 1e-5)


def test_moments_of_the_old_basis_are_forgotten_with_those_of_the_biases() -> None:
    params = CASES["flax"]().params
    products = attention_products(params)
    balanced = balance_products(params, products)
    changed = {path for product in products for path in product.paths_with_biases}
    assert changed == {
        "/".join(("attention", name, leaf))
        for name, projection in params["attention"].items()
        for leaf, array in projection.items()
        if balanced["attention"][name][leaf] is not array
    }
    tx = optax.adam(1e-3)
    _, state = tx.update(params, tx.init(params), params)
    moments = restructure.carry(tx, state, params, balanced, changed)[0].mu["attention"]
    kept = {
        f"attention/{name}/{leaf}"
        for name, projection in moments.items()
        for leaf, moment in projection.items()
        if moment.any()
    }
    assert kept == {"attention/out/bias"}


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


DEFICIENT = {
    "fewer rows than columns": (random(3, 5), random(4, 5)),
    "low rank on the left": (random(8, 2) @ random(2, 5), random(7, 5)),
    "low rank on the right": (random(8, 5), random(7, 3) @ random(3, 5)),
    "low rank on both": (random(8, 3) @ random(3, 5), random(7, 2) @ random(2, 5)),
    "the same low rank": (random(8, 2) @ random(2, 5), random(7, 2) @ random(2, 5)),
    "orthogonal in part": (random(8, 5) * [1, 1, 1, 1, 0], random(7, 5) * [0, 1, 1, 0, 0]),
    "one row": (random(1, 5), random(9, 5)),
}


@pytest.mark.parametrize("name", DEFICIENT)
def test_deficient_products_are_balanced_on_their_range_and_alive(name: str) -> None:
    a, b = DEFICIENT[name]
    t, inverse = change_of_basis(a, b)
    np.testing.assert_allclose(inverse @ t, np.eye(5), atol=1e-9)
    assert np.linalg.cond(t) < 1e3
    u, v = a @ t, b @ inverse.T
    np.testing.assert_allclose(u @ v.T, a @ b.T, atol=1e-10)
    s = np.linalg.svd(a @ b.T, compute_uv=False)
    rank = np.linalg.matrix_rank(a @ b.T)
    assert rank < 5
    for side in (u, v):
        np.testing.assert_allclose(
            side[:, :rank].T @ side[:, :rank], np.diag(s[:rank]), atol=1e-9 * s[0]
        )
    # A direction has a gradient where one of its two columns is there; the gradient of the
    # product with respect to u and v is G v and Gᵀ u.
    norms = np.maximum(np.linalg.norm(u, axis=0), np.linalg.norm(v, axis=0))
    np.testing.assert_allclose(norms[rank:], np.sqrt(s[rank - 1]))
    alone = u[:, np.linalg.norm(u, axis=0) > 1e-8]
    gram = alone.T @ alone
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-9 * s[0])


def test_stored_kernels_of_low_rank_are_balanced_too() -> None:
    """In float32, where the rank of merged kernels is full but for rounding."""
    u = np.asarray(random(8, 2) @ random(2, 5), np.float32)
    vt = np.asarray(random(5, 3) @ random(3, 7), np.float32)
    balanced = balance_products({"u": u, "vt": vt}, [Product("u", "vt")])
    assert_close(dense(balanced["u"]) @ dense(balanced["vt"]), dense(u) @ dense(vt), 1e-5)
    norms = np.linalg.norm(balanced["u"], axis=0), np.linalg.norm(balanced["vt"], axis=1)
    assert np.maximum(*norms).min() > 0.1


def test_a_head_that_is_zero_is_left_alone() -> None:
    draw = Draw()
    query, key = draw(MODEL, HEADS, SIZE), draw(MODEL, HEADS, SIZE)
    key[:, 1] = 0
    product = Product("q", "k", dimension_numbers=ALONG_HEADS)
    balanced = balance_products({"q": query, "k": key}, [product])
    np.testing.assert_array_equal(balanced["q"][:, 1], query[:, 1])
    assert np.abs(balanced["q"][:, 0] - query[:, 0]).max() > 0.1


def pair(**changes: Any) -> tuple[dict[str, Any], Product]:
    draw = Draw()
    params = {"q": draw(MODEL, HEADS, SIZE), "k": draw(MODEL, HEADS, SIZE)} | changes
    return params, Product("q", "k", dimension_numbers=ALONG_HEADS)


def test_dtypes_boxes_shardings_and_shapes_are_kept() -> None:
    params, product = pair()
    mesh = Mesh(np.array(jax.devices()[:1]), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec(None, "x"))
    q = jax.device_put(jnp.asarray(params["q"], jnp.bfloat16), sharding)
    boxed = nn.Partitioned(params["k"], names=("model", "heads", None))
    balanced = balance_products({"q": q, "k": boxed}, [product])
    assert balanced["q"].dtype == jnp.bfloat16 and balanced["q"].sharding == sharding
    assert balanced["k"].names == ("model", "heads", None)
    plain = balance_products({"q": np.asarray(q, np.float32), "k": params["k"]}, [product])
    np.testing.assert_array_equal(plain["q"].astype(jnp.bfloat16), balanced["q"])
    abstract = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, params))
    assert balance_products(abstract, [product]) == abstract


def test_what_cannot_be_balanced_is_refused() -> None:
    params, product = pair()
    with pytest.raises(TypeError, match="q: its values are being traced"):
        jax.jit(lambda p: balance_products(p, [product]))(params)
    bad = params["k"].copy()
    bad[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="k: 1 of 120 entries are not finite"):
        balance_products(params | {"k": bad}, [product])
    other = Product("other", "k", dimension_numbers=ALONG_HEADS)
    with pytest.raises(ValueError, match="k is in two products"):
        balance_products(params | {"other": params["q"]}, [product, other])
    with pytest.raises(ValueError, match="listed twice"):
        balance_products(params, [product, product])
    with pytest.raises(ValueError, match=r"q: its dtype is int32, .*expected floating"):
        balance_products(params | {"q": np.ones((MODEL, HEADS, SIZE), np.int32)}, [product])
    with pytest.raises(ValueError, match=r"'k', 'k'\): both sides are the same entries of k"):
        balance_products(params, [Product("k", "k", dimension_numbers=ALONG_HEADS)])
    with pytest.raises(ValueError, match="names q, which is not in the parameters; near"):
        balance_products({"k": params["k"], "qq": params["q"]}, [product])
    with pytest.raises(ValueError, match=r"differ along the shared axes"):
        balance_products(params | {"q": params["q"][:, :3]}, [product])


def test_factors_that_serve_several_heads_are_refused() -> None:
    low_rank = Draw().low_rank(MODEL, HEADS, SIZE, in_axes=2)
    params, product = pair(q=low_rank)
    with pytest.raises(ValueError, match=r"q: the factor that has the contracted axis, of shape"):
        balance_products(params, [product])
    stacked = Draw().low_rank(3, MODEL, HEADS * SIZE, in_axes=2)
    view = View("q").take(0, 0).split(-1, (HEADS, SIZE))
    product = Product(view, "k", dimension_numbers=ALONG_HEADS)
    with pytest.raises(ValueError, match=r"View\('q'\).*serves several"):
        balance_products(params | {"q": stacked}, [product])
    train = factorize(
        {"q": random(16, 12).astype("f")},
        [Rule("q", FixedRank(2), TensorTrain)],
    )["q"]
    with pytest.raises(ValueError, match="q: no single factor of a TensorTrain"):
        balance_products({"q": train, "vt": random(12, 16)}, [Product("q", "vt")])


def test_a_bias_must_fit() -> None:
    params, _ = pair(bias=np.ones((SIZE, HEADS)))
    product = Product("q", "k", dimension_numbers=ALONG_HEADS, vt_bias="bias")
    with pytest.raises(ValueError, match=r"bias has shared axes and head size \(3, 4\).*k, \(4, 3"):
        balance_products(params, [product])
