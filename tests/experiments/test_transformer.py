"""The Transformer against published counts, a computation in NumPy, and what may influence what."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from numpy_layers import dense_variables, relu

import lowrank_jax as lrj
from experiments.models.transformer import FACTORIZED, SIZES, Transformer
from experiments.multiply_adds import multiply_adds
from experiments.special_tokens import BOS, EOS, PAD
from lowrank_jax.linen import lift

TINY = {"d_model": 12, "d_ff": 20, "heads": 2, "head_size": 5, "layers": 2, "max_length": 9}
SOURCE = np.array([[5, 6, 7, 8, EOS, PAD], [9, 4, EOS, PAD, PAD, PAD]])
TARGET_IN = np.array([[BOS, 4, 5, 6], [BOS, 9, PAD, PAD]])

model = Transformer(vocab_source=10, vocab_target=11, **TINY)
flat = model.clone(layers=1)


@functools.cache
def variables():
    """Of the model in float64; those of `flat` are among them."""
    return dense_variables(model, SOURCE, TARGET_IN, False)


def single_precision():
    return jax.tree.map(jnp.float32, variables()["params"])


def shapes(vocab_source, vocab_target, **fields):
    model = Transformer(vocab_source, vocab_target, **fields)
    inputs = np.ones((1, 3), int)
    key = jax.random.key(0)
    return jax.eval_shape(lambda: model.init(key, inputs, inputs, False)["params"])


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("source", "target"), [(10000, 10000), (1000, 2000), (257, 300)])
def test_published_counts(source, target):
    fields = SIZES["published"]
    assert count(shapes(source, target, **fields)) == 256 * source + 513 * target + 4200448
    published = {0.5: (128, 257, 2529280), 0.25: (64, 129, 1267712)}
    for scale, (of_source, of_target, rest) in published.items():
        smaller = {**fields, "head_size": int(scale * 256 / 4)}
        rules = [lrj.Rule(FACTORIZED, lrj.RankScale(scale))]
        factorized = lrj.factorize(shapes(source, target, **smaller), rules)
        assert count(factorized) == of_source * source + of_target * target + rest


@pytest.mark.parametrize("size", SIZES)
def test_heads_fill_the_model(size):
    fields = SIZES[size]
    assert fields["heads"] * fields["head_size"] == fields["d_model"]
    stored = flatten_dict(shapes(300, 300, **fields), sep="/")
    assert stored["encoder_0/feed_forward/up/kernel"].shape == (fields["d_model"], fields["d_ff"])
    factorized = [path for path in stored if re.fullmatch(FACTORIZED, path)]
    assert len(factorized) == 4 * fields["layers"] + 5


def test_initialization():
    larger = Transformer(200, 300, **SIZES["tiny"], max_length=100)
    init = jax.jit(lambda key: larger.init(key, SOURCE, TARGET_IN, False)["params"])
    # This kind of key takes least time to compile.
    params = init(jax.random.key(0, impl="unsafe_rbg"))
    for path, leaf in flatten_dict(params, sep="/").items():
        values = np.asarray(leaf, np.float64)
        if "norm" in path:
            np.testing.assert_array_equal(values, float(path.endswith("scale")))
            continue
        variance = 0.01 if path.endswith("embedding") else 0.01 / 3
        assert abs(values.var() / variance - 1) < 5 * np.sqrt(2 / values.size), path
        assert abs(values.mean()) < 5 * np.sqrt(variance / values.size), path
        assert path.endswith("embedding") == (np.abs(values).max() > 0.1), path


def norm(x, weights):
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return centred / deviation * weights["scale"] + weights["bias"]


def attention(x, memory, weights, seen):
    """Of one sentence, head by head: `seen[i]` are the places that place i attends to."""
    out = np.zeros_like(x)
    for head in range(TINY["heads"]):
        query, key, value = (
            rows @ weights[name]["kernel"][:, head]
            for name, rows in [("query", x), ("key", memory), ("value", memory)]
        )
        for place in range(len(x)):
            scores = key[seen[place]] @ query[place] / np.sqrt(TINY["head_size"])
            share = np.exp(scores) / np.exp(scores).sum()
            out[place] += share @ value[seen[place]] @ weights["out"]["kernel"][head]
    return out


def feed_forward(x, weights):
    layer = weights["feed_forward"]
    y = norm(x, weights["feed_forward_norm"]) @ layer["up"]["kernel"]
    return x + relu(y) @ layer["down"]["kernel"]


def embed(tokens, tables):
    positions = tables["positions"]["embedding"][: len(tokens)]
    return tables["tokens"]["embedding"][tokens] + positions


def in_numpy(params, source, target_in):
    """Logits of one sentence without padding."""
    x = embed(source, params["source_embedding"])
    everywhere = [np.arange(len(source))] * max(len(source), len(target_in))
    for index in range(TINY["layers"]):
        p = params[f"encoder_{index}"]
        y = norm(x, p["attention_norm"])
        x = feed_forward(x + attention(y, y, p["attention"], everywhere), p)
    memory = norm(x, params["encoder_norm"])
    x = embed(target_in, params["target_embedding"])
    before = [np.arange(place + 1) for place in range(len(target_in))]
    for index in range(TINY["layers"]):
        p = params[f"decoder_{index}"]
        y = norm(x, p["attention_norm"])
        x = x + attention(y, y, p["attention"], before)
        y = norm(x, p["cross_attention_norm"])
        x = feed_forward(x + attention(y, memory, p["cross_attention"], everywhere), p)
    output = params["output"]
    return norm(x, params["decoder_norm"]) @ output["kernel"] + output["bias"]


@pytest.mark.usefixtures("x64")
def test_against_numpy_whatever_the_padding():
    logits = jax.jit(lambda v: model.apply(v, SOURCE, TARGET_IN, False))(variables())
    for row in range(2):
        source, target_in = (rows[row][rows[row] != PAD] for rows in (SOURCE, TARGET_IN))
        # The softmax of attention is float32.
        expected = in_numpy(variables()["params"], source, target_in)
        np.testing.assert_allclose(logits[row, : len(target_in)], expected, rtol=1e-6, atol=1e-6)


def test_influence():
    """Gradients are zero, exactly, where nothing may have an influence, and nowhere else."""
    params = single_precision()

    def of_tables(source_table, target_table):
        changed = {
            **params,
            "source_embedding": {**params["source_embedding"], "tokens": source_table},
            "target_embedding": {**params["target_embedding"], "tokens": target_table},
        }
        # Each place has a token of its own: the gradient of its row is its influence.
        source = np.array([[4, 5, 6, EOS, PAD]])
        return flat.apply({"params": changed}, source, np.array([[BOS, 7, 8, 9]]), False)

    tables = [params[f"{side}_embedding"]["tokens"] for side in ("source", "target")]
    jacobians = jax.jit(jax.jacrev(lambda *args: of_tables(*args)[0, :, 5], argnums=(0, 1)))(
        *tables
    )
    of_source, of_target = (np.abs(j["embedding"]).max(-1) > 0 for j in jacobians)
    np.testing.assert_array_equal(of_source[:, [4, 5, 6, EOS, PAD]], [[1, 1, 1, 1, 0]] * 4)
    np.testing.assert_array_equal(of_target[:, [BOS, 7, 8, 9]], np.tri(4))


def test_one_target_at_a_time():
    """With factorized kernels; of the memory, nothing is computed again."""
    lifted = lift(model)
    params = lrj.factorize(single_precision(), [lrj.Rule(FACTORIZED, lrj.FixedRank(3))])
    target_in = np.array([[BOS, 4, 5, 6, 7], [BOS, 9, 8, 4, 4]])

    @jax.jit
    def begin(params):
        memory = lifted.apply({"params": params}, SOURCE, False, method="encode")
        expected = lifted.apply(
            {"params": params}, target_in, memory, SOURCE, False, method="decode"
        )
        room = np.zeros((2, 7), int)
        return expected, decode(params, {}, room, memory, ["cache", "memory"])[1]

    def decode(params, kept, tokens, memory, mutable):
        return lifted.apply(
            {"params": params, **kept}, tokens, memory, SOURCE, False,
            cached=True, method="decode", mutable=mutable,
        )  # fmt: skip

    @jax.jit
    def advance(params, kept, tokens):
        logits, changed = decode(params, kept, tokens, None, ["cache"])
        return logits[:, 0], {**kept, **changed}

    expected, kept = begin(params)
    for block in ("decoder_0", "decoder_1"):
        for name in ("key", "value"):
            kernel = params[block]["cross_attention"][name]["kernel"]
            params[block]["cross_attention"][name]["kernel"] = jnp.full_like(kernel, jnp.nan)
    for place in range(5):
        logits, kept = advance(params, kept, target_in[:, place : place + 1])
        np.testing.assert_allclose(logits, expected[:, place], rtol=1e-5, atol=1e-5)


def test_multiply_adds():
    """Per layer, by hand, for 2 sentences of 6 source and 4 target tokens."""
    size, inner, heads = 12, 20, 10  # heads: the features of all of them
    projections = 2 * heads * size  # queries and outputs, or keys and values
    feed_forward = 2 * size * inner
    encoder = 6 * (2 * projections + feed_forward) + 2 * 6 * 6 * heads
    decoder = 4 * (3 * projections + feed_forward) + 6 * projections
    decoder += 2 * 4 * (4 + 6) * heads
    abstract = jax.eval_shape(variables)
    counted = multiply_adds(lambda v: model.apply(v, SOURCE, TARGET_IN, False), abstract)
    assert counted == 2 * (2 * (encoder + decoder) + 4 * size * 11)


def test_dropout_of_everything_that_is_added():
    params = single_precision()
    nothing = flat.clone(dropout=1.0, ffn_dropout=0.0)
    found = jax.jit(lambda v: nothing.apply(v, SOURCE, TARGET_IN, True))({"params": params})
    expected = params["decoder_norm"]["bias"] @ params["output"]["kernel"]
    expected = np.broadcast_to(expected + params["output"]["bias"], found.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_dropout_inside_feed_forward():
    def logits(params, ffn_dropout, train):
        some = flat.clone(dropout=0.0, ffn_dropout=ffn_dropout)
        return some.apply({"params": params}, SOURCE, TARGET_IN, train)

    params = single_precision()
    found = jax.jit(lambda params: logits(params, 1.0, True))(params)
    for block in ("encoder_0", "decoder_0"):
        down = params[block]["feed_forward"]["down"]
        down["kernel"] = jnp.zeros_like(down["kernel"])
    expected = jax.jit(lambda params: logits(params, 0.5, False))(params)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_bfloat16():
    params = single_precision()
    half, single = (
        jax.jit(lambda p, of=of: of.apply({"params": p}, SOURCE, TARGET_IN, False))(params)
        for of in (flat.clone(dtype=jnp.bfloat16), flat)
    )
    assert half.dtype == jnp.float32
    difference = np.abs(half - single)[TARGET_IN != PAD].max()
    assert 1e-4 < difference / np.abs(single).max() < 0.05


def test_remat_computes_the_blocks_again():
    def work(of):
        def loss(variables):
            return jnp.sum(of.apply(variables, SOURCE, TARGET_IN, False))

        return multiply_adds(loss, abstract), multiply_adds(jax.grad(loss), abstract)

    abstract = {"params": jax.eval_shape(single_precision)}
    forward, backward = work(flat)
    output = 2 * 4 * 12 * 11
    # The last product of a block, a feed-forward one, is not needed again.
    last = 2 * (6 + 4) * 20 * 12
    assert work(flat.clone(remat=True)) == (forward, backward + forward - output - last)


def test_too_long():
    with pytest.raises(ValueError, match=r"rows of 10 tokens.*positions for 9"):
        jax.eval_shape(lambda: model.apply(variables(), np.ones((1, 10), int), TARGET_IN, False))
