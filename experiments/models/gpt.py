"""GPT-2, a decoder that predicts the next token (Radford, Wu, Child, Luan, Amodei, Sutskever:
"Language Models are Unsupervised Multitask Learners", OpenAI 2019).

    embeddings:  dropout(tokens[id] + positions[place])
    block:       causal self-attention, feed-forward: x + dropout(f(norm(x))), with GELU (`tanh`)
    logits:      norm(x) @ tokensᵀ

Biases everywhere but in the output; norms add 1e-5 to the variance. Kernels and tables start at
normal numbers of deviation 0.02, those whose outcome is added to the residual stream of
0.02 / sqrt(2 layers), biases at zero. Dropout acts on embeddings, on attention weights and on the
outcomes of sublayers.

Not copied: there, tables of positions start at deviation 0.01.

Parameter paths: the stack (`language_model.py`) in `decoder`, and `decoder/norm/{scale,bias}`.

Rows of tokens are `(batch, length)` integers, with `PAD` behind their last token if at all: since a
place sees itself and those before it alone, nothing before the padding depends on it.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models.attention_blocks import Style
from experiments.models.language_model import LanguageModel, Stack, normal, single

_NORM_EPSILON = 1e-5


class Decoder(Stack):
    """Rows of tokens `(batch, length)` to features `(batch, length, d_model)`, in float32."""

    def setup(self) -> None:
        super().setup()
        self.norm = nn.LayerNorm(_NORM_EPSILON)
        style = Style(
            activation=partial(nn.gelu, approximate=True),
            kernel_init=normal,
            out_init=nn.initializers.normal(0.02 / (2 * self.layers) ** 0.5),
            use_bias=True,
            norm_first=True,
            norm_epsilon=_NORM_EPSILON,
        )
        self.layer = self.blocks(style)

    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        x = jnp.asarray(self.drop(self.embed(tokens), deterministic=not train), self.dtype)
        mask = nn.make_causal_mask(tokens[:1], dtype=jnp.bool_)
        for block in self.layer:
            x = block(x, mask, train)
        return self.norm(single(x))


class CausalLanguageModel(LanguageModel):
    """The decoder with logits of the token that comes next, in float32."""

    def setup(self) -> None:
        self.decoder = Decoder(**self.sizes())

    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """Logits `(batch, length, vocabulary)`: at each place those of the token behind it.

        Args:
          tokens: rows `(batch, length)`.
          train: whether dropout acts, which takes the random numbers `dropout`.
        """
        return self.decoder.attend(self.decoder(tokens, train))
