"""Wide ResNets (Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016; arXiv 1605.07146), as
the tensor experiments of arXiv 2105.01029 (section 5) train them, from the code behind Gray et al.,
"Separable Layers Enable Structured Efficient Linear Substitutions" (arXiv 1906.00859).

    stem: conv 3x3 to 16 channels
    three groups of n blocks with 160, 320, 640 channels (times `width`), the last two from stride 2
    block: shortcut + conv2(relu(norm2(conv1(relu(norm1(x))))))
    relu(norm), mean over pixels, linear head

where the shortcut is x, or where the number of channels changes a 1x1 convolution of relu(norm1(x))
without norm. Depth is 6n + 4. At depth 28 and width 1 this is WRN-28-10; WRN-28-k has width k / 10.

`separable` puts, in place of each 3x3 convolution of the blocks, a depthwise 3x3 convolution, which
carries the stride, and a pointwise (1x1) one, whose kernel tensor decompositions store.

Convolutions start at normal numbers of variance 2 / (k² out); a depthwise kernel at 2 / (9 in), the
head uniformly within 1 / sqrt(in) with no bias.

Parameter paths, with blocks counted from 1 to 3n:

    stem/kernel  norm/{scale,bias}  head/{kernel,bias}
    block_1/{conv1,conv2}/kernel  block_1/{norm1,norm2}/{scale,bias}  block_1/projection/kernel
    separable: block_1/{conv1,conv2}/{depthwise,pointwise}/kernel

`dtype` and `remat` are as in `resnet.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models.initializers import fan_out_normal, linear_uniform
from experiments.models.resnet import Norm
from experiments.models.width import scaled
from lowrank_jax.linen import Conv, Dense

FACTORIZED = r"block_\d+/(conv[12]|projection)/kernel"
POINTWISE = r"block_\d+/conv[12]/pointwise/kernel"

_STEM_CHANNELS = 16
_CHANNELS = (160, 320, 640)

_Conv3x3 = partial(
    Conv, kernel_size=(3, 3), padding=((1, 1), (1, 1)), use_bias=False, kernel_init=fan_out_normal
)
_Conv1x1 = partial(Conv, kernel_size=(1, 1), use_bias=False, kernel_init=fan_out_normal)


class SeparableConv(nn.Module):
    """A depthwise 3 x 3 convolution followed by a pointwise one."""

    features: int
    strides: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        deviation = (2 / (9 * channels)) ** 0.5
        x = _Conv3x3(
            channels,
            strides=self.strides,
            feature_group_count=channels,
            kernel_init=nn.initializers.normal(deviation),
            dtype=self.dtype,
            name="depthwise",
        )(x)
        return _Conv1x1(self.features, dtype=self.dtype, name="pointwise")(x)


class Block(nn.Module):
    """Two convolutions, each after norm and ReLU, beside a shortcut."""

    features: int
    stride: int = 1
    separable: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        convolution = SeparableConv if self.separable else _Conv3x3
        conv = partial(convolution, self.features, dtype=self.dtype)
        norm = partial(Norm, use_running_average=not train, dtype=self.dtype)
        activated = nn.relu(norm(name="norm1")(x))
        y = conv(strides=self.stride, name="conv1")(activated)
        y = conv(name="conv2")(nn.relu(norm(name="norm2")(y)))
        if x.shape[-1] == self.features and self.stride == 1:
            return x + y
        projection = _Conv1x1(
            self.features, strides=self.stride, dtype=self.dtype, name="projection"
        )
        return projection(activated) + y


class WideResNet(nn.Module):
    """The network: images (N, H, W, C) to logits (N, num_classes), in float32.

    Attributes:
      num_classes: number of logits.
      depth: layers with weights on the longest path, projections included: 6n + 4, e.g. 28.
      width: multiplies the channel counts of the groups.
      separable: whether the blocks' convolutions are depthwise and pointwise ones.
      dtype: of the computation up to the mean over pixels; None: of images and parameters.
      remat: whether the backward pass computes the inside of the blocks again.
    """

    num_classes: int
    depth: int = 28
    width: float = 1.0
    separable: bool = False
    dtype: Any = None
    remat: bool = False

    def __post_init__(self) -> None:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(
                f"a wide ResNet of depth {self.depth} does not exist: depth is 6n + 4, "
                "e.g. 10, 16, 22, 28, 40"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = _Conv3x3(_STEM_CHANNELS, dtype=self.dtype, name="stem")(images)
        # Argument 2 is `train`, behind the module and its input.
        block = nn.remat(Block, static_argnums=2) if self.remat else Block
        blocks = (self.depth - 4) // 6
        for index in range(3 * blocks):
            group = index // blocks
            x = block(
                features=scaled(_CHANNELS[group], self.width),
                stride=2 if group > 0 and index % blocks == 0 else 1,
                separable=self.separable,
                dtype=self.dtype,
                name=f"block_{index + 1}",
            )(x, train)
        x = nn.relu(Norm(use_running_average=not train, dtype=self.dtype, name="norm")(x))
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        return Dense(self.num_classes, kernel_init=linear_uniform, name="head")(x)
