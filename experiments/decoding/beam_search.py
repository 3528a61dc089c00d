"""Beam search inside jit, for any model that scores the next token.

In each round every live hypothesis of a sentence is continued by every token, and of the 2k best
continuations

* those that end (in `EOS`) and are among the first k are finished, with the score
  `log p / length ** length_penalty`, where the length counts `EOS`;
* the k best that do not end live on.

A sentence is done when k hypotheses are finished, or at its greatest length, where only `EOS` is
allowed. This is the rule of fairseq's `--beam k --lenpen`, with which the translations of arXiv
2105.01029 were made. So a beam of 1 is greedy decoding; and in a beam as wide as there are
continuations of live hypotheses, endings included, nothing is dropped before the end, which makes
it an exhaustive search.

`EOS` is not allowed as the first token, `PAD` and `BOS` never. Of equal continuations the one of
the earlier hypothesis comes first, then the one with the lower token id. A sentence's result does
not depend on the others of its batch. Scores are summed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from experiments.special_tokens import BOS, EOS, PAD

# (tokens (rows,), state) -> (log p of the next token (rows, vocabulary), state)
Step = Callable[[jax.Array, Any], tuple[jax.Array, Any]]


class Hypotheses(NamedTuple):
    """Hypotheses of each sentence of a batch.

    Attributes:
      tokens: `(batch, beam, max_length)`, without `BOS`, `PAD` behind the last.
      scores: `(batch, beam)`. Those of finished hypotheses are finite and fall along the beam;
        where there are fewer than the beam is wide, the rest are -inf, with rows of `PAD`.
    """

    tokens: jax.Array
    scores: jax.Array


class _Search(NamedTuple):
    length: jax.Array  # of the live hypotheses, ()
    live: Hypotheses  # scores are log p; those of places that are not taken -inf
    finished: Hypotheses
    last: jax.Array  # tokens of the live hypotheses, (batch, beam)
    state: Any


def beam_search(
    step: Step,
    state: Any,
    longest: jax.Array,
    *,
    beam: int,
    max_length: int,
    length_penalty: float = 1.0,
) -> Hypotheses:
    """The best hypotheses of each sentence.

    Args:
      step: called with the last token of each row, first `BOS`, and its own state. Row
        `sentence * beam + place` belongs to one live hypothesis.
      state: of the step before its first call: a pytree whose leaves have the rows as their leading
        axis, and follow the hypotheses. Scalars are the same for all rows.
      longest: tokens that a hypothesis may have, `EOS` included, `(batch,)`: 2 to `max_length`.
      beam: hypotheses per sentence, k.
      max_length: of the rows that are returned.
      length_penalty: 0 prefers short hypotheses, 1 scores the mean log p of a token.

    Raises:
      ValueError: beam < 1 or max_length < 2.

    >>> def step(tokens, state):  # 4 follows BOS, and EOS the 4
    ...     return jnp.log(jax.nn.one_hot(jnp.where(tokens == BOS, 4, EOS), 5)), state
    >>> found = beam_search(step, (), jnp.array([3]), beam=1, max_length=3)
    >>> found.tokens.tolist(), found.scores.tolist()
    ([[[4, 3, 0]]], [[0.0]])
    """
    if beam < 1 or max_length < 2:
        raise ValueError(
            f"beam={beam}, max_length={max_length}: expected a beam of 1 or more, and a greatest "
            "length of 2 or more, since a hypothesis is a token and EOS at least"
        )
    batch = longest.shape[0]
    nothing = Hypotheses(
        tokens=jnp.full((batch, beam, max_length), PAD, jnp.int32),
        scores=jnp.full((batch, beam), -jnp.inf, jnp.float32),
    )
    start = _Search(
        length=jnp.zeros((), jnp.int32),
        live=nothing._replace(scores=nothing.scores.at[:, 0].set(0.0)),
        finished=nothing,
        last=jnp.full((batch, beam), BOS, jnp.int32),
        state=state,
    )

    def going_on(search: _Search) -> jax.Array:
        return ~_done(search, longest)

    def advance(search: _Search) -> _Search:
        log_p, state = step(search.last.reshape(-1), search.state)
        vocabulary = log_p.shape[-1]
        log_p = log_p.astype(jnp.float32).reshape(batch, beam, vocabulary)
        allowed = _allowed(vocabulary, search.length, longest)
        total = jnp.where(allowed[:, None], search.live.scores[..., None] + log_p, -jnp.inf)

        scores, index = lax.top_k(total.reshape(batch, -1), 2 * beam)
        parent, token = index // vocabulary, (index % vocabulary).astype(jnp.int32)
        tokens = _pick(search.live.tokens, parent).at[:, :, search.length].set(token)
        ends = token == EOS

        length = search.length + 1
        finishing = ends & (jnp.arange(2 * beam) < beam) & going_on(search)[:, None]
        normalised = scores / length.astype(jnp.float32) ** length_penalty
        finished = _best(
            jnp.concatenate([search.finished.tokens, tokens], axis=1),
            jnp.concatenate(
                [search.finished.scores, jnp.where(finishing, normalised, -jnp.inf)], 1
            ),
            beam,
        )
        live_scores, kept = lax.top_k(jnp.where(ends, -jnp.inf, scores), beam)
        parent = jnp.take_along_axis(parent, kept, axis=1)
        rows = (jnp.arange(batch)[:, None] * beam + parent).reshape(-1)
        return _Search(
            length=length,
            live=Hypotheses(_pick(tokens, kept), live_scores),
            finished=finished,
            last=jnp.take_along_axis(token, kept, axis=1),
            state=jax.tree.map(lambda leaf: leaf[rows] if jnp.ndim(leaf) else leaf, state),
        )

    search = lax.while_loop(lambda search: jnp.any(going_on(search)), advance, start)
    found = search.finished
    there = jnp.isfinite(found.scores)[..., None]
    return found._replace(tokens=jnp.where(there, found.tokens, PAD))


def _done(search: _Search, longest: jax.Array) -> jax.Array:
    """Which sentences have all their hypotheses, `(batch,)`."""
    full = jnp.all(jnp.isfinite(search.finished.scores), axis=1)
    return full | (search.length >= longest)


def _allowed(vocabulary: int, length: jax.Array, longest: jax.Array) -> jax.Array:
    """Which tokens may follow live hypotheses of a length, `(batch, vocabulary)`."""
    token = jnp.arange(vocabulary)
    goes_on = (token != EOS) & (token != PAD) & (token != BOS)
    ends = (token == EOS) & (length > 0)
    return jnp.where((length + 1 < longest)[:, None], goes_on | ends, ends)


def _pick(tokens: jax.Array, places: jax.Array) -> jax.Array:
    """The rows of tokens at places of the beam, `(batch, n)`."""
    return jnp.take_along_axis(tokens, places[..., None], axis=1)


def _best(tokens: jax.Array, scores: jax.Array, count: int) -> Hypotheses:
    scores, places = lax.top_k(scores, count)
    return Hypotheses(_pick(tokens, places), scores)
