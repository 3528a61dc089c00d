"""VGG with batch norm and one linear layer (Simonyan and Zisserman, "Very Deep Convolutional
Networks for Large-Scale Image Recognition", ICLR 2015; arXiv 1409.1556), as the compression
experiments of arXiv 2105.01029 (section 5) train it, from the code behind Wang et al.,
"EigenDamage" (ICML 2019).

    five stages of 64, 128, 256, 512, 512 channels (times `width`)
    layer: relu(norm(conv 3x3)), without bias
    after each stage but the last: max pooling 2x2
    mean over pixels, linear head

The published code averages over the whole of what is left (2 x 2 pixels of 32 x 32 images, 4 x 4 of
64 x 64 ones), which is the mean over pixels. Convolutions start as in `resnet.py`, the head at
normal numbers of standard deviation 0.01 and no bias. The first convolution is not factorized.

Parameter paths, with layers counted from 1:

    layer_1/conv/kernel  layer_1/norm/{scale,bias}  head/{kernel,bias}
    factor_norm: layer_2/conv/factor_norm/{scale,bias}, of factorized kernels

`dtype` and `remat` are as in `resnet.py`, with a layer for a block.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models.resnet import Norm, kaiming_normal
from experiments.models.width import scaled
from lowrank_jax.linen import Dense, FactorNormConv

FACTORIZED = r"layer_(?!1/)\d+/conv/kernel"

_Conv3x3 = partial(
    FactorNormConv,
    kernel_size=(3, 3),
    padding=((1, 1), (1, 1)),
    use_bias=False,
    kernel_init=kaiming_normal,
)

_CHANNELS = (64, 128, 256, 512, 512)
# Convolutions in each stage, by depth.
LAYERS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class Layer(nn.Module):
    """A 3 x 3 convolution with norm and ReLU."""

    features: int
    factor_norm: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = partial(Norm, use_running_average=not train, dtype=self.dtype)
        between = norm if self.factor_norm else None
        x = _Conv3x3(self.features, norm=between, dtype=self.dtype, name="conv")(x)
        return nn.relu(norm(name="norm")(x))


class VGG(nn.Module):
    """The network: images (N, H, W, C) to logits (N, num_classes), in float32.

    Attributes:
      num_classes: number of logits.
      depth: layers with weights: 11, 13, 16 or 19.
      width: multiplies the channel counts.
      factor_norm: whether convolutions have a norm between their factors where they are factorized,
        see `lowrank_jax.linen.FactorNormConv`.
      dtype: of the computation up to the mean over pixels; None: of images and parameters.
      remat: whether the backward pass computes the inside of the layers again.
    """

    num_classes: int
    depth: int = 19
    width: float = 1.0
    factor_norm: bool = False
    dtype: Any = None
    remat: bool = False

    def __post_init__(self) -> None:
        if self.depth not in LAYERS:
            known = ", ".join(map(str, LAYERS))
            raise ValueError(f"a VGG of depth {self.depth} does not exist: depth is one of {known}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        # Argument 2 is `train`, behind the module and its input.
        layer = nn.remat(Layer, static_argnums=2) if self.remat else Layer
        x, index = images, 0
        for stage, (channels, layers) in enumerate(zip(_CHANNELS, LAYERS[self.depth], strict=True)):
            if stage > 0:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            for _ in range(layers):
                index += 1
                features = scaled(channels, self.width)
                x = layer(features, self.factor_norm, self.dtype, name=f"layer_{index}")(x, train)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        return Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="head")(x)
