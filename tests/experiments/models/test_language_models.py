"""What BERT and GPT have in common: factorized counts, attention products, dropout, precision."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jaxprs import equations
from language_model_cases import CASES, GPT, PLACES, TINY, TOKENS, count, shapes
from numpy_layers import dense_variables

import lowrank_jax as lrj
from experiments import models
from experiments.errors import RunError
from experiments.models.head_size import with_head_size
from experiments.models.language_model import FEED_FORWARD, SIZES
from experiments.multiply_adds import multiply_adds
from lowrank_jax.linen import lift

TASKS = {
    "bert": "masked_language_model",
    "bert_classifier": "text_classification",
    "gpt": "causal_language_model",
}


@functools.cache
def parameters(name: str) -> Any:
    model, inputs = CASES[name]
    return jax.tree.map(jnp.float32, dense_variables(model, *inputs, False)["params"])


def logits_of(model: Any, inputs: tuple[Any, ...]) -> Any:
    return jax.jit(lambda params: model.apply({"params": params}, *inputs, False))


def rules(name: str, kind: str, rank: Any) -> list[lrj.Rule]:
    return models.find(name).factorization(kind).rules(rank)


@pytest.mark.parametrize(("size", "head_scale"), [("tiny", 1.0), ("small", 0.5)])
@pytest.mark.parametrize("name", CASES)
def test_counts_in_closed_form(name: str, size: str, head_scale: float) -> None:
    """Dense and factorized, with attention heads of full and of half the size."""
    fields = {"name": name, **SIZES[size], "max_length": 128, "head_scale": None}
    of_data = {"vocabulary": 1000} | ({"classes": 3} if name == "bert_classifier" else {})
    model = models.build_for(
        TASKS[name],
        with_head_size(fields, head_scale),
        of_data,
        kind="projections",
        precision="float32",
        remat=False,
    )
    params = shapes(model, *CASES[name][1])
    d, inner, layers = (SIZES[size][key] for key in ("d_model", "d_ff", "layers"))
    heads = int(head_scale * d)  # The features of all of them.
    norm, segments = 2 * d, 2 * d
    outer = (1000 + 128) * d + {
        "bert": segments + norm + (d * d + d) + norm + 1000,
        "bert_classifier": segments + norm + (d * d + d) + 3 * (d + 1),
        "gpt": norm,
    }[name]
    biases_and_norms = (inner + d) + (3 * heads + d) + 2 * norm
    feed_forward, attention = 2 * d * inner, 4 * d * heads

    def expected(feed_forward: int, attention: int) -> int:
        return outer + layers * (biases_and_norms + feed_forward + attention)

    assert count(params) == expected(feed_forward, attention)
    for scale in (0.5, 0.25):
        low_rank = 2 * int(scale * d) * (d + inner), 4 * int(scale * heads) * (d + heads)
        for kind, counted in (
            ("linear", expected(low_rank[0], attention)),
            ("projections", expected(*low_rank)),
        ):
            factorized = lrj.factorize(params, rules(name, kind, lrj.RankScale(scale)))
            assert count(factorized) == counted
    logits = jax.eval_shape(
        lambda p: lift(model).apply({"params": p}, *CASES[name][1], False), factorized
    )
    outputs = {"bert": PLACES.shape, "bert_classifier": (2,), "gpt": TOKENS.shape}[name]
    assert logits.shape == (*outputs, 3 if name == "bert_classifier" else 1000)


@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_full_rank_and_balanced_products_change_nothing(name: str) -> None:
    """Products have biases; of kind "projections", their sides are factorized."""
    model, inputs = CASES[name]
    dense = parameters(name)
    expected = logits_of(model, inputs)(dense)
    for kind, number in (("linear", 2), ("projections", 6)):
        params = lrj.factorize(dense, rules(name, kind, lrj.RankScale(1.0)))
        weights = jax.tree.leaves(params, is_leaf=lrj.is_factorized)
        assert sum(map(lrj.is_factorized, weights)) == number * TINY["layers"]
        products = lrj.attention_products(params)
        assert len(products) == 2 * TINY["layers"]
        balanced = lrj.balance_products(params, products)
        # The Gram matrices of queries and keys, which were not equal, are.
        stack = "decoder" if name == "gpt" else "encoder"
        for tree, equal in ((params, False), (balanced, True)):
            layer = lrj.merge(tree[stack]["layer_0"]["attention"])
            query, key = (np.asarray(layer[side]["kernel"][:, 1]) for side in ("query", "key"))
            assert np.allclose(query.T @ query, key.T @ key, atol=1e-4) == equal
        apply = logits_of(lift(model), inputs)
        for found in (apply(params), apply(balanced)):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_regular_factors_start_as_layers_of_their_own(name: str) -> None:
    chosen = models.find(name).factorization("projections")
    shape = jax.ShapeDtypeStruct((64, 256), "float32")
    for kernels in chosen.kernels:
        assert kernels.regular.variances(shape, (64, 256), 10) == pytest.approx((4e-4, 4e-4))
    assert chosen.measured == FEED_FORWARD
    assert models.find(name).attention


@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_initialization(name: str) -> None:
    model, inputs = CASES[name]
    sizes = {**SIZES["tiny"], "layers": 1, "head_size": 32}
    larger = model.clone(**sizes, vocabulary=200, max_length=100)
    init = jax.jit(lambda key: larger.init(key, *inputs, False)["params"])
    # This kind of key takes least time to compile.
    params = init(jax.random.key(0, impl="unsafe_rbg"))
    for path, leaf in flatten_dict(params, sep="/").items():
        values = np.asarray(leaf, np.float64)
        if path.endswith(("bias", "scale")):
            np.testing.assert_array_equal(values, float(path.endswith("scale")))
            continue
        added = path.endswith(("out/kernel", "down/kernel"))
        variance = 4e-4 / 2 if name == "gpt" and added else 4e-4
        assert abs(values.var() / variance - 1) < 5 * np.sqrt(2 / values.size), path
        assert abs(values.mean()) < 5 * np.sqrt(variance / values.size), path


def training(name: str, **fields: Any) -> Any:
    """The sum of the squared logits in training, by the parameters."""
    model, inputs = CASES[name]

    def loss(params: Any) -> Any:
        rngs = {"dropout": jax.random.key(1)}
        logits = model.clone(**fields).apply({"params": params}, *inputs, True, rngs=rngs)
        return jnp.sum(logits**2)

    return loss


@pytest.mark.parametrize("name", CASES)
def test_dropout(name: str) -> None:
    """On embeddings; in each layer on attention weights, and what attention and feed-forward add;
    of a classifier, on what its output is computed from. Every entry is drawn by itself."""
    abstract = jax.eval_shape(lambda: parameters(name))

    def drawn(rate: float) -> list[tuple[int, ...]]:
        jaxpr = jax.make_jaxpr(training(name, dropout=rate))(abstract)
        found = [e.outvars[0].aval.shape for e in equations(jaxpr) if "bits" in e.primitive.name]
        return sorted(found)

    rows, length = TOKENS.shape
    features, weights = (rows, length, 12), (rows, TINY["heads"], length, length)
    expected = [features] + 2 * [features, features, weights]
    if name == "bert_classifier":
        expected.append((rows, 12))
    assert drawn(0.1) == sorted(expected)
    model, inputs = CASES[name]
    without = model.clone(dropout=0.0)
    jax.eval_shape(lambda p: without.apply({"params": p}, *inputs, True), abstract)  # No numbers.
    jax.eval_shape(lambda p: model.apply({"params": p}, *inputs, False), abstract)


def test_remat_gives_the_same_gradients_with_dropout() -> None:
    def gradients(params: Any) -> list[Any]:
        return [jax.grad(training("gpt", layers=1, remat=remat))(params) for remat in (True, False)]

    one, other = jax.jit(gradients)(parameters("gpt"))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one))
    for found, expected in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * largest)


@pytest.mark.parametrize("name", CASES)
def test_remat_computes_the_blocks_again(name: str) -> None:
    def work(**fields: Any) -> tuple[int, int]:
        loss = training(name, **fields)
        return multiply_adds(loss, abstract), multiply_adds(jax.grad(loss), abstract)

    abstract = jax.eval_shape(lambda: parameters(name))
    forward, backward = work()
    size, inner, heads, length = 12, 20, 10, TOKENS.shape[1]
    block = length * (4 * size * heads + 2 * size * inner) + 2 * length**2 * heads
    if name == "gpt":  # The last product of a block is not needed again, unless it goes to a norm.
        block -= length * size * inner
    again = TINY["layers"] * len(TOKENS) * block
    assert work(remat=True) == (forward, backward + again)


@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_bfloat16(name: str) -> None:
    model, inputs = CASES[name]

    def logits(params: Any) -> list[Any]:
        return [
            model.clone(layers=1, dtype=dtype).apply({"params": params}, *inputs, False)
            for dtype in (jnp.bfloat16, None)
        ]

    half, single = jax.jit(logits)(parameters(name))
    assert half.dtype == jnp.float32
    assert 1e-4 < np.abs(half - single).max() / np.abs(single).max() < 0.05


def test_too_long() -> None:
    with pytest.raises(ValueError, match=r"rows of 10 tokens.*positions for 9"):
        jax.eval_shape(
            lambda: GPT.apply({"params": parameters("gpt")}, np.ones((1, 10), int), False)
        )


@pytest.mark.parametrize(
    ("changes", "head_scale"), [({"heads": 3}, 1.0), ({}, 0.02), ({"d_model": 65}, 0.5)]
)
def test_heads_that_do_not_fit(changes: dict[str, int], head_scale: float) -> None:
    fields = {**SIZES["tiny"], "head_scale": 0.5, **changes}
    with pytest.raises(RunError, match="heads that divide d_model, and a head size of at least 1"):
        with_head_size(fields, head_scale)
