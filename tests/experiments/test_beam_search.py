"""Beam search inside jit against plain Python: on tables whose every prefix has its own row."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import plain_beam_search as plain
import pytest

from experiments.decoding.beam_search import beam_search
from experiments.special_tokens import BOS, EOS, PAD

VOCABULARY = 7
PREFIXES = 5003  # a prime: prefixes fall on rows of the table as by a hash


def advanced(state, token):
    """The row of the table for a prefix that is one token longer."""
    return (state * 31 + token + 1) % PREFIXES


def table(seed, spread=1.5):
    """log p of the next token for every prefix, (PREFIXES, VOCABULARY)."""
    logits = np.random.default_rng(seed).normal(size=(PREFIXES, VOCABULARY)) * spread
    return np.asarray(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32)))


@functools.partial(jax.jit, static_argnames=("beam", "max_length"))
def search(table, starts, longest, beam, max_length, length_penalty):
    """The search for sentences that begin at rows of the table, with a state that tells prefixes
    apart, and a scalar that counts calls."""

    def step(tokens, state):
        row, calls = state
        row = jnp.where(calls == 0, row, advanced(row, tokens))
        return table[row], (row, calls + 1)

    state = (jnp.repeat(starts, beam), jnp.zeros((), jnp.int32))
    return beam_search(
        step, state, longest, beam=beam, max_length=max_length, length_penalty=length_penalty
    )


def scorer(table, start):
    return lambda prefix: table[functools.reduce(advanced, prefix, start)]


def compare(found, sentence, expected):
    """The hypotheses of one sentence with plain Python's."""
    tokens, scores = found.tokens[sentence], found.scores[sentence]
    padded = np.full(tokens.shape, PAD)
    for place, (_, prefix) in enumerate(expected):
        padded[place, : len(prefix)] = prefix
    np.testing.assert_array_equal(tokens, padded)
    missing = [-np.inf] * (len(tokens) - len(expected))
    np.testing.assert_allclose(scores, [s for s, _ in expected] + missing, rtol=2e-6)


STARTS = np.array([0, 17, 400, 3999])


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("beam", [80, 88])
def test_exhaustive_where_the_beam_holds_every_continuation(beam, penalty):
    # Of 4 tokens, EOS included: 64 live hypotheses and the 16 that end beside them; in all 84.
    probabilities = table(seed=1)
    longest = np.array([4, 4, 3, 2])
    found = search(probabilities, STARTS, longest, beam, 4, penalty)
    for sentence, start in enumerate(STARTS):
        expected = plain.exhaustive(scorer(probabilities, start), longest[sentence], penalty)
        assert len(expected) == {4: 84, 3: 20, 2: 4}[longest[sentence]]
        compare(found, sentence, expected[:beam])


@pytest.mark.parametrize(("beam", "penalty"), [(2, 1.0), (5, 0.6)])
def test_against_plain_python(beam, penalty):
    probabilities = table(seed=2)
    starts = np.arange(0, 4000, 100)
    longest = 2 + np.arange(40) % 9
    found = search(probabilities, starts, longest, beam, 10, penalty)
    lengths = []
    for sentence, start in enumerate(starts):
        score = scorer(probabilities, start)
        expected = plain.beam_search(score, beam, longest[sentence], penalty)
        compare(found, sentence, expected)
        lengths += [len(prefix) for _, prefix in expected]
    assert len(set(lengths)) > 5  # sentences of a batch end at different times


def test_beam_of_one_is_greedy():
    probabilities = table(seed=3)
    starts = np.arange(0, 4000, 100)
    found = search(probabilities, starts, np.full(40, 12), 1, 12, 1.0)
    greedy = [plain.greedy(scorer(probabilities, start), 12) for start in starts]
    assert len({len(prefix) for prefix in greedy}) > 5
    rows = [[*prefix] + [PAD] * (12 - len(prefix)) for prefix in greedy]
    np.testing.assert_array_equal(found.tokens[:, 0], rows)


def test_equal_continuations_in_order():
    uniform = np.full((PREFIXES, VOCABULARY), -np.log(VOCABULARY), np.float32)
    found = search(uniform, STARTS, np.full(4, 6), 2, 6, 0.0)
    compare(found, 0, plain.beam_search(scorer(uniform, 0), 2, 6, 0.0))
    # Behind the first tokens 1 and 4: 1 1 before 1 EOS, and both before what follows 4; and so on.
    assert found.tokens[0].tolist() == [[1, EOS, 0, 0, 0, 0], [1, 1, EOS, 0, 0, 0]]


def test_scores_are_summed_in_float32():
    coarse = table(seed=4).astype(jnp.bfloat16)
    found = search(coarse, STARTS, np.full(4, 6), 2, 6, 0.0)
    assert found.scores.dtype == jnp.float32
    for sentence, start in enumerate(STARTS):
        score = scorer(coarse.astype(np.float32), start)
        compare(found, sentence, plain.beam_search(score, 2, 6, 0.0))


def test_what_may_never_be_chosen():
    # However probable they are: PAD and BOS anywhere, EOS at the beginning.
    tempting = np.full((PREFIXES, VOCABULARY), -9.0, np.float32)
    tempting[:, [PAD, BOS, EOS]] = -0.1
    found = search(tempting, STARTS, np.full(4, 6), 2, 6, 1.0)
    assert set(np.unique(found.tokens)) == {PAD, EOS, 1, 4}
    assert (found.tokens[:, :, 0] != EOS).all()
    ends = np.argmax(found.tokens == EOS, axis=-1)
    behind = np.arange(6) > ends[..., None]
    np.testing.assert_array_equal(found.tokens == PAD, behind)


@pytest.mark.parametrize(("beam", "max_length"), [(0, 4), (2, 1)])
def test_refused(beam, max_length):
    with pytest.raises(ValueError, match=f"beam={beam}, max_length={max_length}"):
        search(table(0), STARTS, np.full(4, 2), beam, max_length, 1.0)
