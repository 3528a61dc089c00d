"""GPT-2 against its published count, a computation in NumPy, and what may influence what."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from language_model_cases import GPT, TINY, TOKENS, count, gpt_in_numpy, shapes
from numpy_layers import dense_variables

from experiments.models.gpt import CausalLanguageModel
from experiments.models.language_model import SIZES
from experiments.multiply_adds import multiply_adds


@functools.cache
def variables():
    """In float64."""
    return dense_variables(GPT, TOKENS, False)


def test_published_count():
    fields = {"vocabulary": 50257, "head_size": 64, "max_length": 1024}
    params = shapes(CausalLanguageModel(**SIZES["base"], **fields), TOKENS)
    assert count(params) == 124_439_808
    assert set(params) == {"decoder"}


@pytest.mark.usefixtures("x64")
def test_against_numpy():
    logits = jax.jit(lambda v: GPT.apply(v, TOKENS, False))(variables())
    for row, found in zip(TOKENS, logits, strict=True):
        expected = gpt_in_numpy(variables()["params"], row)
        # The softmax of attention is float32.
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_later_tokens_and_padding_change_nothing():
    """Not a bit of what stands before them; each token changes what stands from it on."""
    params = jax.tree.map(jnp.float32, variables()["params"])
    apply = jax.jit(lambda tokens: GPT.apply({"params": params}, tokens, False))
    before = apply(TOKENS)
    for place in range(TOKENS.shape[1]):
        changed = TOKENS.copy()
        changed[:, place] = 10
        after = apply(changed)
        np.testing.assert_array_equal(after[:, :place], before[:, :place])
        assert np.all(np.abs(after[:, place:] - before[:, place:]).max(-1) > 1e-4)


def test_multiply_adds():
    """By hand, for two rows of seven tokens; scores that a mask hides are computed all the same."""
    size, inner, heads = 12, 20, 10  # heads: the features of all of them
    layer = 7 * (4 * size * heads + 2 * size * inner) + 2 * 7 * 7 * heads
    abstract = jax.eval_shape(variables)
    counted = multiply_adds(lambda v: GPT.apply(v, TOKENS, False), abstract)
    assert counted == 2 * (2 * layer + 7 * size * TINY["vocabulary"])
