"""Drop-in ``Embed``: flax's embedding layer on a table that is an array or a factorized weight.

With an array, flax's own code runs. A factorized table is looked up by its rows,

    table[i] = u[i] vt,    query tableᵀ = (query vtᵀ) uᵀ,

so the full table is made only where that costs fewer multiply-adds: a lookup of more rows than the
table has. Source: Khodak et al., ICLR 2021 (arXiv 2105.01029), section 5 (Transformer).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lowrank_jax.linen.kernels import KernelView, flax_code, path_of, promote_dtype
from lowrank_jax.weights import dot_general, is_factorized


class Embed(nn.Embed):
    """``flax.linen.Embed`` whose ``embedding`` ``(vocabulary, features)`` is an array or a weight.

    Attributes:
      compose: ``True`` forms the full table first, ``False`` applies the factors one after the
        other, ``None`` does what costs fewer multiply-adds. The other attributes are flax's; an
        ``embedding_init`` made by ``lowrank_jax.initializers.factorized`` gives a table that is
        born factorized.

    Raises:
      ValueError: when called, if the weight stands for a table of another shape, if it is
        factorized and ``promote_dtype`` is not flax's, or if the inputs are not integers.

    >>> from lowrank_jax.weights import LowRank
    >>> table = LowRank(u=jnp.array([[1.0], [2.0], [3.0]]), vt=jnp.ones((1, 2)))
    >>> layer, variables = Embed(3, 2), {"params": {"embedding": table}}
    >>> layer.apply(variables, jnp.array([2, 0])).tolist()
    [[3.0, 3.0], [1.0, 1.0]]
    >>> layer.apply(variables, jnp.ones(2), method="attend").tolist()
    [2.0, 4.0, 6.0]
    """

    compose: bool | None = None

    def setup(self) -> None:
        flax_code(nn.Embed.setup)(KernelView(self))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Rows of the table: integers of any shape, to ``(*shape, features)``."""
        return lookup(self, self.compose, inputs)

    def attend(self, query: jax.Array) -> jax.Array:
        """Products with every row: ``(..., features)`` to ``(..., vocabulary)``."""
        return attend(self, self.compose, query)


def lookup(layer: nn.Embed, compose: bool | None, inputs: jax.Array) -> jax.Array:
    """``layer(inputs)`` for a bound layer; ``compose`` as in :func:`lowrank_jax.dot_general`."""
    if not is_factorized(layer.embedding):
        return flax_code(nn.Embed.__call__)(layer, inputs)
    if not jnp.issubdtype(inputs.dtype, jnp.integer):
        raise ValueError(
            f"{path_of(layer, 'embedding')}: found inputs of type {inputs.dtype}, expected integers"
        )
    (table,) = promote_dtype(layer.embedding, dtype=layer.dtype, inexact=False)
    # As in flax, the one row of a table is its answer to every number.
    rows = jnp.zeros_like(inputs) if layer.num_embeddings == 1 else inputs
    return table.take(rows, compose=compose)


def attend(layer: nn.Embed, compose: bool | None, query: Any) -> jax.Array:
    """``layer.attend(query)`` for a bound layer."""
    if not is_factorized(layer.embedding):
        return flax_code(nn.Embed.attend)(layer, query)
    query, table = promote_dtype(query, layer.embedding, dtype=layer.dtype)
    return dot_general(query, table, (((query.ndim - 1,), (1,)), ((), ())), compose=compose)
