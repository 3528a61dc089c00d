"""Masking for masked language models, as in BERT (Devlin et al., NAACL 2019; arXiv 1810.04805,
section 3.1 and appendix A.1).

Of the `n` subwords of a row, control pieces left out, 15 % are asked for: `round(0.15 n)` places,
at least one where there are any, drawn without replacement. In the row that the network gets, each
of them is replaced by MASK (with probability 80 %), by a subword drawn uniformly from the whole
vocabulary (10 %), or left as it is (10 %). In the published code the number of places is likewise
fixed for a row, so that what the network computes has one shape.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.special_tokens import MASK

SHARE = 0.15
_REPLACED_BY_MASK, _REPLACED_BY_ANY = 0.8, 0.1


class Masked(NamedTuple):
    """A row and what is asked about it.

    Attributes:
      tokens: int32 `(L,)`, what the network gets.
      places: int32 `(K,)`, where it is asked; `K` is `number_of_places(L)`.
      targets: int32 `(K,)`, what was there.
      counted: bool `(K,)`: False on places that are asked in vain, in rows that are not full.
    """

    tokens: jax.Array
    places: jax.Array
    targets: jax.Array
    counted: jax.Array


def number_of_places(length: int) -> int:
    """The number of places of a full row of this length, its BOS included.

    >>> number_of_places(128)
    19
    """
    return max(1, round(SHARE * (length - 1)))


def is_subword(tokens: jax.Array) -> jax.Array:
    """Which ids are pieces of text, and no control pieces."""
    return tokens > MASK


def mask(key: jax.Array, row: jax.Array, vocabulary: int) -> Masked:
    """Masks one row.

    Args:
      key: that it is a function of.
      row: int32 `(L,)`.
      vocabulary: number of pieces.
    """
    place_key, kind_key, any_key = jax.random.split(key, 3)
    size = number_of_places(len(row))
    maskable = is_subword(row)
    score = jnp.where(maskable, jax.random.uniform(place_key, row.shape), -1.0)
    _, places = jax.lax.top_k(score, size)
    present = jnp.sum(maskable)
    asked = jnp.clip(jnp.round(SHARE * present).astype(jnp.int32), jnp.minimum(present, 1), size)
    counted = jnp.arange(size) < asked
    targets = row[places]
    kind = jax.random.uniform(kind_key, (size,))
    any_piece = jax.random.randint(any_key, (size,), MASK + 1, vocabulary, row.dtype)
    replaced = jnp.where(kind < _REPLACED_BY_MASK + _REPLACED_BY_ANY, any_piece, targets)
    replaced = jnp.where(kind < _REPLACED_BY_MASK, MASK, replaced)
    tokens = row.at[places].set(jnp.where(counted, replaced, targets))
    return Masked(tokens, places, targets, counted)
