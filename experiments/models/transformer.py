"""The encoder-decoder Transformer for translation (Vaswani et al., "Attention Is All You Need",
NIPS 2017; arXiv 1706.03762), at its published size that of arXiv 2105.01029, section 6.

    embeddings:     dropout(tokens[id] + positions[place])
    encoder block:  self-attention, feed-forward
    decoder block:  causal self-attention, attention to the encoder's output, feed-forward
    logits:         output(norm(x))

The blocks are those of `attention_blocks.py` with the norm first and a ReLU; both stacks end in a
norm. Attention and feed-forward have no biases, the output has one; the three tables of a
vocabulary are separate, positions are learned, and embeddings are not multiplied by the square root
of their size. As published, dropout does not act on attention weights; linear kernels and the
output's bias start uniformly within 0.1, embeddings at normal numbers of deviation 0.1.

Not copied: norms there divide by the unbiased deviation plus 1e-6, here (as Flax's) by the square
root of the biased variance plus 1e-6; attention to the source there sees its padding, here it does
not; positions there begin at the third row, here at the first.

Parameter paths, with blocks counted from 0:

    source_embedding/{tokens,positions}/embedding  target_embedding/{tokens,positions}/embedding
    encoder_0/attention/{query,key,value,out}/kernel  encoder_0/feed_forward/{up,down}/kernel
    encoder_0/{attention_norm,feed_forward_norm}/{scale,bias}
    decoder_0: the same, and cross_attention, cross_attention_norm
    encoder_norm/{scale,bias}  decoder_norm/{scale,bias}  output/{kernel,bias}

Rows of tokens are `(batch, length)` integers with `PAD` behind their last token; what stands before
the padding does not depend on it. `dtype` is that of products and activations; parameters, the
softmax of attention, the last norm and the output are float32.
"""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models.attention_blocks import (
    Block,
    SelfAttentionBlock,
    Style,
    places_of,
    stack,
    visible,
)

# The published system factorizes the feed-forward kernels, all four embeddings and the output. Of
# attention it reduces the head size instead, to a share of d_model / heads.
FEED_FORWARD = r"(encoder|decoder)_\d+/feed_forward/(up|down)/kernel"
LINEAR = rf"{FEED_FORWARD}|output/kernel"
EMBEDDINGS = r"(source|target)_embedding/(tokens|positions)/embedding"
FACTORIZED = f"{LINEAR}|{EMBEDDINGS}"

SIZES = {
    "tiny": {"d_model": 64, "d_ff": 256, "heads": 2, "head_size": 32, "layers": 1},
    "small": {"d_model": 128, "d_ff": 512, "heads": 4, "head_size": 32, "layers": 2},
    "published": {"d_model": 256, "d_ff": 1024, "heads": 4, "head_size": 64, "layers": 2},
}


def _linear_init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.uniform(key, shape, dtype, -0.1, 0.1)


STYLE = Style(
    activation=nn.relu,
    kernel_init=_linear_init,
    out_init=_linear_init,
    use_bias=False,
    norm_first=True,
    norm_epsilon=1e-6,
)


class Embeddings(nn.Module):
    """Rows of tokens `(batch, length)` to features `(batch, length, d_model)`.

    With `cached`, after a first call that makes the cache, the tokens stand behind those of the
    calls before.
    """

    vocabulary: int
    d_model: int
    max_length: int
    dropout: float
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool, cached: bool = False) -> jax.Array:
        places = places_of(tokens, self.max_length)
        if cached:
            begun = self.has_variable("cache", "place")
            place = self.variable("cache", "place", jnp.zeros, (), jnp.int32)
            if begun:
                places = places + place.value
                place.value = place.value + tokens.shape[1]
        embed = partial(
            nn.Embed,
            features=self.d_model,
            embedding_init=nn.initializers.normal(0.1),
            dtype=self.dtype,
        )
        x = embed(self.vocabulary, name="tokens")(tokens)
        x = x + embed(self.max_length, name="positions")(places)
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class DecoderBlock(Block):
    """Self-attention, attention to `memory` `(batch, source length, d_model)`, feed-forward.

    With `cached`, the first call makes room for the keys and values of as many targets as it is
    given (collection `cache`, by Flax) and keeps those of the memory (collection `memory`). Later
    calls take one target each, and no memory.
    """

    static_argnums = (5, 6)  # `train` and `cached`

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | None,
        mask: jax.Array | None,
        source_mask: jax.Array,
        train: bool,
        cached: bool,
    ) -> jax.Array:
        attention = self.attention("attention", x.shape[-1], decode=cached)
        x = self.add(x, "attention", lambda y: attention(y, mask=mask), train)
        kept = {"attention_fn": self.attend_to_kept} if cached else {}
        cross = self.attention("cross_attention", x.shape[-1], **kept)
        x = self.add(x, "cross_attention", lambda y: cross(y, memory, mask=source_mask), train)
        return self.add_feed_forward(x, train)

    @functools.wraps(nn.dot_product_attention)  # Flax passes on what stands in the signature.
    def attend_to_kept(
        self, query: jax.Array, key: jax.Array, value: jax.Array, **options: Any
    ) -> jax.Array:
        """Attention to the first call's keys and values; under jit, later ones are not computed."""
        key = self.variable("memory", "key", lambda: key).value
        value = self.variable("memory", "value", lambda: value).value
        return nn.dot_product_attention(query, key, value, **options)


class Transformer(nn.Module):
    """Source rows and the targets before each place to logits of the targets, in float32.

    Attributes:
      vocab_source, vocab_target: number of token ids.
      d_model: features of a token between blocks.
      d_ff: features inside the feed-forward sublayer.
      heads: of each attention layer.
      head_size: features of one head's queries, keys and values.
      layers: blocks of each of the two stacks.
      max_length: learned positions; rows may not be longer.
      dropout: on embeddings and on what is added to the residual stream.
      ffn_dropout: inside the feed-forward sublayer.
      dtype: of products and activations; None: of the parameters.
      remat: whether the backward pass computes the inside of the blocks again.
    """

    vocab_source: int
    vocab_target: int
    d_model: int = 256
    d_ff: int = 1024
    heads: int = 4
    head_size: int = 64
    layers: int = 2
    max_length: int = 1024
    dropout: float = 0.2
    ffn_dropout: float = 0.1
    dtype: Any = None
    remat: bool = False

    def setup(self) -> None:
        def embeddings(vocabulary: int) -> Embeddings:
            return Embeddings(vocabulary, self.d_model, self.max_length, self.dropout, self.dtype)

        def blocks(block: type[Block]) -> list[Any]:
            return stack(
                block,
                self.layers,
                self.remat,
                d_ff=self.d_ff,
                heads=self.heads,
                head_size=self.head_size,
                style=STYLE,
                dropout=self.dropout,
                ffn_dropout=self.ffn_dropout,
                dtype=self.dtype,
            )

        self.source_embedding = embeddings(self.vocab_source)
        self.target_embedding = embeddings(self.vocab_target)
        self.encoder = blocks(SelfAttentionBlock)
        self.decoder = blocks(DecoderBlock)
        self.encoder_norm = nn.LayerNorm(dtype=self.dtype)
        self.decoder_norm = nn.LayerNorm()
        self.output = nn.Dense(self.vocab_target, kernel_init=_linear_init, bias_init=_linear_init)

    def __call__(self, source: jax.Array, target_in: jax.Array, train: bool) -> jax.Array:
        """Logits `(batch, target length, vocab_target)`.

        Args:
          source: rows `(batch, source length)`, with `EOS` behind their last token.
          target_in: `BOS` and the targets but their last, `(batch, target length)`.
          train: whether dropout acts, which takes the random numbers `dropout`.
        """
        return self.decode(target_in, self.encode(source, train), source, train)

    def encode(self, source: jax.Array, train: bool) -> jax.Array:
        """The encoder's output `(batch, source length, d_model)`."""
        x = self.source_embedding(source, train)
        mask = visible(source)
        for block in self.encoder:
            x = block(x, mask, train)
        return self.encoder_norm(x)

    def decode(
        self,
        target_in: jax.Array,
        memory: jax.Array | None,
        source: jax.Array,
        train: bool,
        cached: bool = False,
    ) -> jax.Array:
        """Logits, as in `__call__`, from the encoder's output.

        Args:
          target_in, source, train: as in `__call__`.
          memory: the encoder's output for `source`.
          cached: one target at a time, with keys and values kept from call to call. The first call,
            which makes the collections `cache` (mutable from then on) and `memory`, takes rows of
            the greatest length there will be (their tokens are not looked at, and its logits mean
            nothing) and the memory; every other one takes the next tokens `(batch, 1)`, and `None`
            for the memory.
        """
        x = self.target_embedding(target_in, train, cached)
        mask = None  # Flax sees to the order of what is cached; no padding stands in it.
        if not cached:
            causal = nn.make_causal_mask(target_in, dtype=jnp.bool_)
            mask = nn.combine_masks(causal, visible(target_in), dtype=jnp.bool_)
        source_mask = visible(source)
        for block in self.decoder:
            x = block(x, memory, mask, source_mask, train, cached)
        x = self.decoder_norm(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
        return self.output(x)
