"""Translation with cached keys and values, in batches, against plain Python on whole prefixes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import plain_beam_search as plain
import pytest
from numpy_layers import dense_variables

import lowrank_jax as lrj
from experiments.decoding.translate import translate
from experiments.models.transformer import FACTORIZED, Transformer
from experiments.special_tokens import BOS, EOS, PAD
from lowrank_jax.linen import lift

POSITIONS = 12
LENGTHS = (9, 1, 4, 11, 8, 1, 12, 3, 6, 5)

model = lift(
    Transformer(
        vocab_source=10, vocab_target=11, d_model=12, d_ff=20, heads=2, head_size=5, layers=1,
        max_length=POSITIONS,
    )
)  # fmt: skip


@functools.cache
def variables():
    dense = dense_variables(model, np.ones((1, 2), int), np.ones((1, 2), int), False, seed=3)
    dense = jax.tree.map(jnp.float32, dense["params"])
    # Sharper than at random, so that hypotheses differ.
    dense["output"]["kernel"] *= 3
    return {"params": lrj.factorize(dense, [lrj.Rule(FACTORIZED, lrj.FixedRank(5))])}


@functools.cache
def source():
    rows = np.full((len(LENGTHS), POSITIONS), PAD, np.uint16)
    rng = np.random.default_rng(0)
    for row, length in zip(rows, LENGTHS, strict=True):
        row[:length] = [*rng.integers(4, 10, length - 1), EOS]
    return rows


@jax.jit
def whole(variables, source, target_in):
    return jax.nn.log_softmax(model.apply(variables, source[None], target_in[None], False)[0])


def scorer(row):
    @functools.cache
    def score(prefix):
        target_in = np.full(POSITIONS, PAD)
        target_in[: len(prefix) + 1] = [BOS, *prefix]
        return np.asarray(whole(variables(), row, target_in)[len(prefix)])

    return score


def test_against_plain_python():
    done = []
    found = translate(
        model,
        variables(),
        source(),
        beam=3,
        length_penalty=0.7,
        longest=6,
        batch_size=4,
        progress=done.append,
    )
    assert done == [4, 8, 10]
    expected = []
    for row in source():
        longest = min(6 + 1, POSITIONS)
        expected.append(plain.beam_search(scorer(row), 3, longest, 0.7)[0][1])
    width = max(map(len, expected))
    rows = [[*prefix] + [PAD] * (width - len(prefix)) for prefix in expected]
    np.testing.assert_array_equal(found, rows)
    assert found.dtype == np.int32


def test_no_rows():
    assert translate(model, variables(), source()[:0]).shape == (0, 0)


def test_refused():
    with pytest.raises(ValueError, match=r"row 2 has 14 tokens.*positions for 12"):
        translate(model, variables(), np.tril(np.full((14, 14), 5))[11:])
    for wrong in ({"batch_size": 0}, {"longest": 0}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(ValueError, match=f"{name}={value}"):
            translate(model, variables(), source(), **wrong)
