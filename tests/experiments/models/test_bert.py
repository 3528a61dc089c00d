"""BERT against published counts, a computation in NumPy, and what may influence what."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from language_model_cases import (
    BERT,
    CLASSIFIER,
    PLACES,
    TINY,
    TOKENS,
    count,
    dense,
    encoder_in_numpy,
    gelu,
    norm,
    shapes,
)
from numpy_layers import dense_variables

from experiments.models.bert import MaskedLanguageModel, TextClassifier
from experiments.models.language_model import SIZES
from experiments.multiply_adds import multiply_adds
from experiments.special_tokens import PAD

LARGE = {"d_model": 1024, "d_ff": 4096, "heads": 16, "layers": 24}
PUBLISHED = {"vocabulary": 30522, "head_size": 64, "max_length": 512}


@functools.cache
def variables(model):
    """In float64."""
    inputs = (TOKENS, PLACES) if model is BERT else (TOKENS,)
    return dense_variables(model, *inputs, False)


@pytest.mark.parametrize(
    ("sizes", "published"), [(SIZES["base"], 109_482_240), (LARGE, 335_141_888)]
)
def test_published_counts_of_the_encoder_with_its_pooler(sizes, published):
    params = shapes(TextClassifier(**sizes, **PUBLISHED, classes=3), TOKENS)
    assert count(params) - 3 * (sizes["d_model"] + 1) == published
    assert set(params) == {"encoder", "pooler", "output"}


def test_published_count_with_the_output_for_masked_tokens():
    params = shapes(MaskedLanguageModel(**SIZES["base"], **PUBLISHED), TOKENS, PLACES)
    assert count(params) == 109_514_298


def test_both_have_the_same_encoder():
    encoder, other = (shapes(BERT, TOKENS, PLACES), shapes(CLASSIFIER, TOKENS))
    assert jax.tree.structure(encoder["encoder"]) == jax.tree.structure(other["encoder"])
    assert jax.tree.leaves(encoder["encoder"]) == jax.tree.leaves(other["encoder"])


@pytest.mark.usefixtures("x64")
def test_masked_tokens_against_numpy_whatever_the_padding():
    logits = jax.jit(lambda v: BERT.apply(v, TOKENS, PLACES, False))(variables(BERT))
    p = variables(BERT)["params"]
    for row, places, found in zip(TOKENS, PLACES, logits, strict=True):
        x = encoder_in_numpy(p["encoder"], row[row != PAD])[places]
        x = norm(gelu(dense(x, p["transform"])), p["transform_norm"], 1e-12)
        expected = x @ p["encoder"]["tokens"]["embedding"].T + p["output_bias"]
        # The softmax of attention is float32.
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_classes_against_numpy_whatever_the_padding():
    logits = jax.jit(lambda v: CLASSIFIER.apply(v, TOKENS, False))(variables(CLASSIFIER))
    p = variables(CLASSIFIER)["params"]
    for row, found in zip(TOKENS, logits, strict=True):
        first = encoder_in_numpy(p["encoder"], row[row != PAD])[0]
        expected = dense(np.tanh(dense(first, p["pooler"])), p["output"])
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_every_token_sees_every_other_but_padding():
    """Not a bit changes with what stands at the place of padding."""
    single = jax.tree.map(jnp.float32, variables(BERT)["params"])
    tokens, places = TOKENS[:1], np.arange(7)[None]

    @jax.jit
    def of_positions(table):
        encoder = {**single["encoder"], "positions": {"embedding": table}}
        return BERT.apply({"params": {**single, "encoder": encoder}}, tokens, places, False)

    table = np.asarray(single["encoder"]["positions"]["embedding"])
    before = of_positions(table)
    for place in range(7):
        changed = table.copy()
        changed[place, 0] += 1
        difference = np.abs(of_positions(changed) - before)[0, :6].max(-1)
        assert np.all(difference > 1e-4) if place < 6 else np.all(difference == 0)


def test_multiply_adds():
    """By hand: the output is computed at three places of each of two rows of seven tokens."""
    size, inner, heads = 12, 20, 10  # heads: the features of all of them
    layer = 7 * (4 * size * heads + 2 * size * inner) + 2 * 7 * 7 * heads
    output = 3 * (size * size + size * TINY["vocabulary"])
    abstract = jax.eval_shape(lambda: variables(BERT))
    counted = multiply_adds(lambda v: BERT.apply(v, TOKENS, PLACES, False), abstract)
    assert counted == 2 * (2 * layer + output)
