"""What models of running text have in common, BERT (`bert.py`) and GPT (`gpt.py`): their sizes, a
stack of self-attention blocks on learned embeddings of tokens and positions, and logits of tokens
by the table they are looked up in.

Parameter paths of a stack, with layers counted from 0; `bert.py` and `gpt.py` have more:

    {tokens,positions}/embedding
    layer_0/attention/{query,key,value,out}/{kernel,bias}
    layer_0/feed_forward/{up,down}/{kernel,bias}
    layer_0/{attention_norm,feed_forward_norm}/{scale,bias}

`dtype` is that of products and activations; parameters, the softmax of attention, the last norm
and logits are float32.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models.attention_blocks import SelfAttentionBlock, Style, places_of, stack

# What can be factorized: the kernels of feed-forward sublayers, and the projections of attention.
# Those that split features into heads are (features, heads, head size), `out` is the other way.
_LAYER = r"(encoder|decoder)/layer_\d+"
FEED_FORWARD = rf"{_LAYER}/feed_forward/(up|down)/kernel"
HEADS_IN = rf"{_LAYER}/attention/(query|key|value)/kernel"
HEADS_OUT = rf"{_LAYER}/attention/out/kernel"

# "base" is BERT-base and GPT-2 small; a head has d_model / heads features.
SIZES = {
    "tiny": {"d_model": 64, "d_ff": 256, "heads": 2, "layers": 2},
    "small": {"d_model": 128, "d_ff": 512, "heads": 4, "layers": 4},
    "base": {"d_model": 768, "d_ff": 3072, "heads": 12, "layers": 12},
}

# As published, of all kernels and tables but where said otherwise.
normal = nn.initializers.normal(0.02)


class LanguageModel(nn.Module):
    """The sizes of a model and of its stack, which are the same.

    Attributes:
      vocabulary: number of token ids.
      d_model: features of a token between blocks.
      d_ff: features inside the feed-forward sublayer.
      heads: of each attention layer.
      head_size: features of one head's queries, keys and values.
      layers: blocks.
      max_length: learned positions; rows may not be longer.
      dropout: on embeddings, on attention weights and on what is added to the residual stream.
      dtype: of products and activations; None: of the parameters.
      remat: whether the backward pass computes the inside of the blocks again.
    """

    vocabulary: int
    d_model: int
    d_ff: int
    heads: int
    head_size: int
    layers: int
    max_length: int
    dropout: float = 0.1
    dtype: Any = None
    remat: bool = False

    def sizes(self) -> dict[str, Any]:
        """The fields, for another of the same sizes."""
        flax = ("parent", "name")
        names = [field.name for field in dataclasses.fields(LanguageModel)]
        return {name: getattr(self, name) for name in names if name not in flax}


class Stack(LanguageModel):
    """The tables and the blocks."""

    def setup(self) -> None:
        # No dtype: what is looked up is changed afterwards, and logits are of the table's.
        self.tokens = nn.Embed(self.vocabulary, self.d_model, embedding_init=normal)
        self.positions = nn.Embed(self.max_length, self.d_model, embedding_init=normal)
        self.drop = nn.Dropout(self.dropout)

    def blocks(self, style: Style) -> list[Any]:
        """The blocks, for `setup`."""
        return stack(
            SelfAttentionBlock,
            self.layers,
            self.remat,
            d_ff=self.d_ff,
            heads=self.heads,
            head_size=self.head_size,
            style=style,
            dropout=self.dropout,
            attention_dropout=self.dropout,
            dtype=self.dtype,
        )

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Rows of tokens `(batch, length)` to features `(batch, length, d_model)`."""
        return self.tokens(tokens) + self.positions(places_of(tokens, self.max_length))

    def attend(self, x: jax.Array) -> jax.Array:
        """Features `(..., d_model)` to logits of the tokens `(..., vocabulary)`."""
        return self.tokens.attend(x)


def single(x: jax.Array) -> jax.Array:
    """In float32 or better."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
