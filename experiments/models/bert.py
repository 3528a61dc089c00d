"""BERT, an encoder that is pre-trained to fill in masked tokens (Devlin, Chang, Lee, Toutanova:
"BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", NAACL 2019;
arXiv 1810.04805).

    embeddings:      dropout(norm(tokens[id] + positions[place] + segments[0]))
    block:           self-attention, feed-forward: norm(x + dropout(f(x))), with GELU (`erf`)
    masked token:    transform_norm(gelu(transform(x))) @ tokensᵀ + output_bias
    class of a row:  output(dropout(tanh(pooler(x[first]))))

Biases everywhere; norms add 1e-12 to the variance; kernels and tables start at normal numbers of
deviation 0.02, biases at zero. Dropout acts on embeddings, on attention weights and on the outcomes
of sublayers.

Not copied: next-sentence prediction is left out. So a row is one text, all of the first of the two
published segments; the other's embedding is there and is never looked up. Published numbers at the
start are normal ones cut off at two deviations.

Parameter paths: the stack (`language_model.py`) in `encoder`, and beside it

    encoder/segments/embedding  encoder/norm/{scale,bias}
    MaskedLanguageModel: transform/{kernel,bias}  transform_norm/{scale,bias}  output_bias
    TextClassifier: {pooler,output}/{kernel,bias}

Rows of tokens are `(batch, length)` integers with `PAD` behind their last token; nothing that
stands before the padding depends on it.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models.attention_blocks import Style, visible
from experiments.models.language_model import LanguageModel, Stack, normal, single

STYLE = Style(
    activation=partial(nn.gelu, approximate=False),
    kernel_init=normal,
    out_init=normal,
    use_bias=True,
    norm_first=False,
    norm_epsilon=1e-12,
)


class Encoder(Stack):
    """Rows of tokens `(batch, length)` to features `(batch, length, d_model)`."""

    def setup(self) -> None:
        super().setup()
        self.segments = nn.Embed(2, self.d_model, embedding_init=normal)
        self.norm = nn.LayerNorm(STYLE.norm_epsilon, self.dtype)
        self.layer = self.blocks(STYLE)

    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        x = self.embed(tokens) + self.segments(jnp.zeros(1, jnp.int32))
        x = self.drop(self.norm(x), deterministic=not train)
        mask = visible(tokens)
        for block in self.layer:
            x = block(x, mask, train)
        return x


class MaskedLanguageModel(LanguageModel):
    """The encoder with logits of what stands at places of its rows, in float32."""

    def setup(self) -> None:
        self.encoder = Encoder(**self.sizes())
        self.transform = nn.Dense(self.d_model, dtype=self.dtype, kernel_init=normal)
        self.transform_norm = nn.LayerNorm(STYLE.norm_epsilon)
        self.output_bias = self.param("output_bias", nn.initializers.zeros, (self.vocabulary,))

    def __call__(self, tokens: jax.Array, places: jax.Array, train: bool) -> jax.Array:
        """Logits `(batch, places, vocabulary)` of the tokens at these places alone.

        Args:
          tokens: rows `(batch, length)`.
          places: of each row, `(batch, places)` numbers from 0 to length - 1.
          train: whether dropout acts, which takes the random numbers `dropout`.
        """
        x = self.encoder(tokens, train)
        x = jnp.take_along_axis(x, places[:, :, None], axis=1)
        x = self.transform_norm(single(STYLE.activation(self.transform(x))))
        return self.encoder.attend(x) + self.output_bias


class TextClassifier(LanguageModel, kw_only=True):
    """The encoder with logits of the class of a row, in float32.

    Attributes:
      classes: number of logits.
    """

    classes: int

    def setup(self) -> None:
        self.encoder = Encoder(**self.sizes())
        self.pooler = nn.Dense(self.d_model, dtype=self.dtype, kernel_init=normal)
        self.drop = nn.Dropout(self.dropout)
        self.output = nn.Dense(self.classes, kernel_init=normal)

    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """Logits `(batch, classes)`.

        Args:
          tokens: rows `(batch, length)`, each with `BOS` in front.
          train: whether dropout acts, which takes the random numbers `dropout`.
        """
        x = nn.tanh(self.pooler(self.encoder(tokens, train)[:, 0]))
        return self.output(self.drop(single(x), deterministic=not train))
