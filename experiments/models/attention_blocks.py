"""The blocks that Transformers are stacks of: attention and feed-forward sublayers, each added to
its input (Vaswani et al., "Attention Is All You Need", NIPS 2017; arXiv 1706.03762, section 3).

    norm first:    x + dropout(f(norm(x)))        f: attention, or the feed-forward sublayer
    norm after:    norm(x + dropout(f(x)))
    feed-forward:  down(dropout(activation(up(x))))

Which of the two, the activation, biases and initialization are an architecture's `Style`; sizes and
dropout rates are fields of the blocks. Queries are scaled by `head_size ** -0.5`.

Parameter paths in a block, biases where the style has them:

    attention/{query,key,value,out}/{kernel,bias}  feed_forward/{up,down}/{kernel,bias}
    {attention_norm,feed_forward_norm}/{scale,bias}

`dtype` is that of products and activations; parameters and the softmax of attention are float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.special_tokens import PAD
from lowrank_jax.linen import Dense


@dataclasses.dataclass(frozen=True)
class Style:
    """What tells the blocks of one architecture from another's, sizes apart.

    Attributes:
      activation: between the two products of a feed-forward sublayer.
      kernel_init: of all kernels but those of `out_init`.
      out_init: of the kernels whose outcome is added to a sublayer's input.
      use_bias: whether attention and feed-forward have biases, which start at zero.
      norm_first: whether a sublayer gets the norm of its input, or the sum is normed.
      norm_epsilon: added to the variance.
    """

    activation: Callable[[jax.Array], jax.Array]
    kernel_init: nn.initializers.Initializer
    out_init: nn.initializers.Initializer
    use_bias: bool
    norm_first: bool
    norm_epsilon: float


class FeedForward(nn.Module):
    """Two products around an activation."""

    d_ff: int
    dropout: float
    style: Style
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def dense(features: int, init: Any, name: str) -> Dense:
            use_bias = self.style.use_bias
            return Dense(features, use_bias, self.dtype, kernel_init=init, name=name)

        y = self.style.activation(dense(self.d_ff, self.style.kernel_init, "up")(x))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return dense(x.shape[-1], self.style.out_init, "down")(y)


class Block(nn.Module):
    """What blocks are made of.

    Attributes:
      static_argnums: the arguments of a call that are no arrays; the block is argument 0.
      d_ff: features inside the feed-forward sublayer.
      heads: of each attention layer.
      head_size: features of one head's queries, keys and values.
      style: of the architecture.
      dropout: on what a sublayer adds.
      attention_dropout: on the weights of attention, each by itself.
      ffn_dropout: inside the feed-forward sublayer.
      dtype: see the module.
    """

    d_ff: int
    heads: int
    head_size: int
    style: Style
    dropout: float
    attention_dropout: float = 0.0
    ffn_dropout: float = 0.0
    dtype: Any = None

    static_argnums: ClassVar[tuple[int, ...]]

    def attention(self, name: str, features: int, **fields: Any) -> nn.MultiHeadDotProductAttention:
        """The attention layer of this name; `fields` are further ones of Flax's."""
        return nn.MultiHeadDotProductAttention(
            num_heads=self.heads,
            qkv_features=self.heads * self.head_size,
            out_features=features,
            use_bias=self.style.use_bias,
            kernel_init=self.style.kernel_init,
            out_kernel_init=self.style.out_init,
            dropout_rate=self.attention_dropout,
            broadcast_dropout=False,
            dtype=self.dtype,
            force_fp32_for_softmax=True,
            name=name,
            **fields,
        )

    def add(self, x: jax.Array, name: str, sublayer: Callable[..., Any], train: bool) -> jax.Array:
        """`x` with what the sublayer makes of it."""
        norm = nn.LayerNorm(self.style.norm_epsilon, self.dtype, name=f"{name}_norm")
        y = sublayer(norm(x) if self.style.norm_first else x)
        x = x + nn.Dropout(self.dropout, deterministic=not train)(y)
        return x if self.style.norm_first else norm(x)

    def add_feed_forward(self, x: jax.Array, train: bool) -> jax.Array:
        """`x` with the feed-forward sublayer."""
        layer = FeedForward(
            self.d_ff, self.ffn_dropout, self.style, self.dtype, name="feed_forward"
        )
        return self.add(x, "feed_forward", lambda y: layer(y, train), train)


class SelfAttentionBlock(Block):
    """Self-attention where `mask`, broadcast to `(batch, 1, query, key)`, is true; feed-forward."""

    static_argnums = (3,)  # `train`

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        attention = self.attention("attention", x.shape[-1])
        x = self.add(
            x, "attention", lambda y: attention(y, mask=mask, deterministic=not train), train
        )
        return self.add_feed_forward(x, train)


def stack(block: type[Block], layers: int, remat: bool, **fields: Any) -> list[Any]:
    """So many blocks of this class with these fields, for the `setup` of a model.

    With `remat`, the backward pass keeps the inputs of the blocks only and computes what is inside
    them again.
    """
    made: Any = nn.remat(block, static_argnums=block.static_argnums) if remat else block
    return [made(**fields) for _ in range(layers)]


def places_of(tokens: jax.Array, max_length: int) -> jax.Array:
    """The places of rows of tokens `(batch, length)`: 0, 1, … `(length,)`.

    Raises:
      ValueError: there are positions for fewer.
    """
    length = tokens.shape[1]
    if length > max_length:
        raise ValueError(
            f"rows of {length} tokens, but there are positions for {max_length} only: "
            "leave longer ones out, or raise max_length"
        )
    return jnp.arange(length)


def visible(tokens: jax.Array) -> jax.Array:
    """Which keys are no padding, `(batch, 1, 1, length)`."""
    return (tokens != PAD)[:, None, None, :]
