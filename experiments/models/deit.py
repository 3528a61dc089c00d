"""DeiT, a Vision Transformer (Touvron et al., "Training data-efficient image transformers &
distillation through attention", ICML 2021; arXiv 2012.12877), without distillation, as Cuttlefish
(MLSys 2023, arXiv 2305.02538) factorizes it.

    tokens:  [class token, patches @ kernel + bias] + positions
    block:   x + attention(norm(x)), x + feed-forward(norm(x)), with GELU (`erf`)
    logits:  head(norm(x)[class token])

Queries, keys and values of all heads are one product, with one kernel (features, 3 · features),
which is factorized as one. Norms add 1e-6 to the variance. Kernels, class token and positions start
at normal numbers of deviation 0.02, biases at zero; patches start as PyTorch's convolutions do,
uniformly within 1 / sqrt(inputs). There are as many positions as an image has patches, and one.

Not copied: stochastic depth, which the published training has.

Parameter paths, with layers counted from 0:

    embedding/patches/{kernel,bias}  embedding/{class_token,positions}  norm/{scale,bias}
    layer_0/attention/{qkv,out}/{kernel,bias}  layer_0/feed_forward/{up,down}/{kernel,bias}
    layer_0/{attention_norm,feed_forward_norm}/{scale,bias}  head/{kernel,bias}

`dtype` is that of products and activations; parameters, the softmax of attention, the last norm and
logits are float32. With `remat`, the backward pass keeps the inputs of the blocks only and computes
what is inside them again.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models.attention_blocks import Block, Style, stack
from experiments.models.initializers import linear_uniform, uniform_bias
from experiments.models.patches import patches
from lowrank_jax.linen import Dense

FACTORIZED = r"layer_\d+/(attention/(qkv|out)|feed_forward/(up|down))/kernel"

# As published: 64 features to a head, 12 layers.
SIZES = {
    "tiny": {"d_model": 192, "heads": 3},
    "small": {"d_model": 384, "heads": 6},
    "base": {"d_model": 768, "heads": 12},
}

normal = nn.initializers.normal(0.02)

STYLE = Style(
    activation=partial(nn.gelu, approximate=False),
    kernel_init=normal,
    out_init=normal,
    use_bias=True,
    norm_first=True,
    norm_epsilon=1e-6,
)


class Embedding(nn.Module):
    """Images (N, H, W, C) to tokens (N, 1 + patches, features)."""

    features: int
    patch_size: int
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = patches(images, self.patch_size)
        x = Dense(
            self.features,
            kernel_init=linear_uniform,
            bias_init=uniform_bias(x.shape[-1]),
            dtype=self.dtype,
            name="patches",
        )(x)
        first = self.param("class_token", normal, (1, 1, self.features))
        first = jnp.broadcast_to(first.astype(x.dtype), (len(x), 1, self.features))
        x = jnp.concatenate([first, x], axis=1)
        return x + self.param("positions", normal, (1, *x.shape[1:])).astype(x.dtype)


class FusedAttention(nn.Module):
    """Self-attention whose queries, keys and values are one product."""

    heads: int
    head_size: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = partial(Dense, dtype=self.dtype, kernel_init=normal)
        split = (3, self.heads, self.head_size)
        qkv = dense(3 * self.heads * self.head_size, name="qkv")(x)
        query, key, value = jnp.moveaxis(qkv.reshape(*x.shape[:2], *split), 2, 0)
        y = nn.dot_product_attention(
            query, key, value, dtype=self.dtype, force_fp32_for_softmax=True
        )
        return dense(x.shape[-1], name="out")(y.reshape(*x.shape[:2], -1))


class VisionBlock(Block):
    """Attention of all tokens to all; feed-forward."""

    static_argnums = (2,)  # `train`

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        attention = FusedAttention(self.heads, self.head_size, self.dtype, name="attention")
        x = self.add(x, "attention", attention, train)
        return self.add_feed_forward(x, train)


class DeiT(nn.Module):
    """The network: images (N, H, W, C) to logits (N, num_classes), in float32.

    Attributes:
      num_classes: number of logits.
      d_model: features of a token; four times as many are inside the feed-forward sublayers.
      heads: of each attention layer.
      layers: blocks.
      patch_size: in pixels; images are whole numbers of patches high and wide.
      dtype: of products and activations; None: of images and parameters.
      remat: whether the backward pass computes the inside of the blocks again.
    """

    num_classes: int
    d_model: int = 384
    heads: int = 6
    layers: int = 12
    patch_size: int = 16
    dtype: Any = None
    remat: bool = False

    def __post_init__(self) -> None:
        if self.d_model % self.heads:
            raise ValueError(
                f"d_model={self.d_model} with heads={self.heads}: each head has as many features, "
                "so the one must be a multiple of the other"
            )
        super().__post_init__()

    def setup(self) -> None:
        self.embedding = Embedding(self.d_model, self.patch_size, self.dtype)
        self.layer = stack(
            VisionBlock,
            self.layers,
            self.remat,
            d_ff=4 * self.d_model,
            heads=self.heads,
            head_size=self.d_model // self.heads,
            style=STYLE,
            dropout=0.0,
            dtype=self.dtype,
        )
        self.norm = nn.LayerNorm(STYLE.norm_epsilon)
        self.head = Dense(self.num_classes, kernel_init=normal)

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = self.embedding(images)
        for block in self.layer:
            x = block(x, train)
        return self.head(self.norm(x)[:, 0])
