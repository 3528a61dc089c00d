"""ResMLP, products over patches and over features in turn (Touvron et al., "ResMLP: Feedforward
networks for image classification with data-efficient training", arXiv 2105.03404), as Cuttlefish
(MLSys 2023, arXiv 2305.02538) factorizes it.

    tokens:  patches @ kernel + bias
    block:   x + patches_scale · linear_tokens(affine(x)), mixing the tokens of each feature
             x + feed_forward_scale · down(gelu(up(affine(x)))), four times as many features inside
    affine:  scale · x + bias
    logits:  head(mean over tokens of affine(x))

GELU is the one with `erf`. Affine layers start as the identity, the scales of what is added at
`layer_scale`, kernels uniformly within sqrt(6 / (inputs + outputs)) (Glorot and Bengio), those of
the patches at truncated normal numbers of variance 1 / inputs, head and biases at zero: as in timm,
which the published code builds on, but for biases up to 1e-6.

Not copied: stochastic depth, which the published training has.

Parameter paths, with layers counted from 0:

    patches/{kernel,bias}  norm/{scale,bias}  head/{kernel,bias}
    layer_0/{patches_norm,feed_forward_norm}/{scale,bias}  layer_0/linear_tokens/{kernel,bias}
    layer_0/{up,down}/{kernel,bias}  layer_0/{patches_scale,feed_forward_scale}

`dtype` is that of products and activations; parameters, the last affine layer and everything behind
it are float32. With `remat`, the backward pass keeps the inputs of the blocks only and computes
what is inside them again.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models.patches import patches
from lowrank_jax.linen import Dense

FACTORIZED = r"layer_\d+/(linear_tokens|up|down)/kernel"

_xavier_uniform = nn.initializers.xavier_uniform()


class Affine(nn.Module):
    """``scale * x + bias``, feature by feature."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return scale * x + bias


class Block(nn.Module):
    """A product over tokens, and two over features."""

    layer_scale: float
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _, tokens, features = x.shape
        dense = partial(Dense, dtype=self.dtype, kernel_init=_xavier_uniform)

        def scaled(name: str, y: jax.Array) -> jax.Array:
            start = nn.initializers.constant(self.layer_scale)
            return (self.param(f"{name}_scale", start, (features,)) * y).astype(x.dtype)

        y = Affine(name="patches_norm")(x).swapaxes(1, 2)
        x = x + scaled("patches", dense(tokens, name="linear_tokens")(y).swapaxes(1, 2))
        y = dense(4 * features, name="up")(Affine(name="feed_forward_norm")(x))
        y = dense(features, name="down")(nn.gelu(y, approximate=False))
        return x + scaled("feed_forward", y)


class ResMLP(nn.Module):
    """The network: images (N, H, W, C) to logits (N, num_classes), in float32.

    Attributes:
      num_classes: number of logits.
      d_model: features of a token.
      layers: blocks.
      patch_size: in pixels; images are whole numbers of patches high and wide.
      layer_scale: what the scales of what is added start at; as published 1e-4 with 12 layers, 1e-5
        with 24, 1e-6 with 36.
      dtype: of products and activations; None: of images and parameters.
      remat: whether the backward pass computes the inside of the blocks again.
    """

    num_classes: int
    d_model: int = 384
    layers: int = 36
    patch_size: int = 16
    layer_scale: float = 1e-6
    dtype: Any = None
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        del train  # Nothing differs.
        embed = Dense(self.d_model, dtype=self.dtype, name="patches")  # Starts as Flax's layers do.
        x = embed(patches(images, self.patch_size))
        block = nn.remat(Block) if self.remat else Block
        for index in range(self.layers):
            x = block(self.layer_scale, self.dtype, name=f"layer_{index}")(x)
        x = jnp.mean(Affine(name="norm")(x), axis=1)
        return Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x)
