"""Drop-in ``MultiHeadDotProductAttention``: flax's attention on projections that take weights.

The attention is flax's own code. The four projections inside it are ``nn.DenseGeneral`` layers,
which run on a :class:`~lowrank_jax.linen.kernels.KernelView`. Per head, queries and keys only meet
as a product, and so do values and the output projection:

    logits_h = x (Q_h K_hᵀ) yᵀ / sqrt(d),    out = sum_h softmax(logits_h) y (V_h O_h),

which makes each pair a factorized layer (Khodak et al., ICLR 2021, arXiv 2105.01029, section 5). It
is no longer so where something is done to queries and keys in between: ``positions`` declares it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.module import InterceptorContext
from jax import lax

from lowrank_jax.linen.kernels import KernelView, flax_code

Positions = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class MultiHeadDotProductAttention(nn.MultiHeadDotProductAttention):
    """``flax.linen.MultiHeadDotProductAttention`` whose kernels are arrays or factorized weights.

    The kernels of ``query``, ``key`` and ``value`` have shape ``(model, heads, head size)``: a
    ``LowRank`` for them has ``out_axes=2``; that of ``out``, ``(heads, head size, model)``, has
    ``in_axes=2``. A ``kernel_init`` made by ``lowrank_jax.initializers.factorized`` without axes
    gives all four the right ones.

    Attributes:
      compose: for all four projections, as in :class:`Dense`.
      positions: what is done to queries ``(..., queries, heads, head size)`` and keys
        ``(..., keys, heads, head size)``, projected and normalized, before their product: rotary
        positions and the like. Row i of both stands at position i, and each row is to be treated by
        itself. With ``decode=True``, keys are cached as they were before and the query is put at
        its place among them first. With ``positions``, queries and keys no longer meet as a plain
        product. The other attributes are flax's.

    Raises:
      ValueError: when called, if a weight stands for a kernel of another shape; or if a kernel is
        factorized and ``qkv_dot_general`` or ``out_dot_general`` is not flax's.

    >>> from lowrank_jax.initializers import factorized
    >>> from lowrank_jax.ranks import FixedRank
    >>> from lowrank_jax.weights import LowRank
    >>> layer = MultiHeadDotProductAttention(2, kernel_init=factorized(LowRank, FixedRank(3)))
    >>> params = layer.init(jax.random.key(0), jnp.ones((5, 8)))["params"]
    >>> kernels = params["query"]["kernel"], params["out"]["kernel"]
    >>> [(kernel.u.shape, kernel.vt.shape) for kernel in kernels]
    [((8, 3), (3, 2, 4)), ((2, 4, 3), (3, 8))]
    """

    compose: bool | None = None
    positions: Positions | None = None

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
        with nn.intercept_methods(functools.partial(_accept_weights, self)):
            attention = flax_code(nn.MultiHeadDotProductAttention.__call__)
            view = self if self.positions is None else PositionsView(self, self.positions)
            return attention(view, *args, **kwargs)


def _accept_weights(
    attention: MultiHeadDotProductAttention,
    next_fun: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: InterceptorContext,
) -> Any:
    """The interceptor under which flax's attention runs: its projections take weights."""
    module = context.module
    if isinstance(module, nn.DenseGeneral) and module.parent is attention:
        projection = flax_code(nn.DenseGeneral.__call__)
        return projection(KernelView(module, attention.compose), *args, **kwargs)
    return next_fun(*args, **kwargs)


class PositionsView:
    """An attention layer as flax's code is to see it, with ``positions`` in its ``attention_fn``.

    Attributes:
      layer: the bound layer.
      positions: what it does to queries and keys.
      step: the position of the one query when decoding with a cache, otherwise ``None``.
    """

    def __init__(self, layer: MultiHeadDotProductAttention, positions: Positions) -> None:
        self.layer, self.positions = layer, positions
        decoding = layer.decode and layer.has_variable("cache", "cached_key")
        # Read before flax's code counts it up.
        self.step = layer.get_variable("cache", "cache_index") if decoding else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)

    @property
    def attention_fn(self) -> Callable[..., jax.Array]:
        attention_fn = self.layer.attention_fn

        @functools.wraps(attention_fn)  # flax looks at its signature.
        def with_positions(query: Any, key: Any, *args: Any, **kwargs: Any) -> jax.Array:
            if "module" in kwargs:  # To sow into: flax's code gives itself, which is this view.
                kwargs["module"] = self.layer
            return attention_fn(*self._place(query, key), *args, **kwargs)

        return with_positions

    def _place(self, query: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        if self.step is None:
            return self.positions(query, key)
        axis = key.ndim - 3
        rows = jnp.zeros(key.shape, query.dtype)
        rows = lax.dynamic_update_slice_in_dim(rows, query, self.step, axis)
        rows, key = self.positions(rows, key)
        return lax.dynamic_slice_in_dim(rows, self.step, 1, axis), key
