"""ResNets for 32 x 32 images, depth 6n + 2 (He, Zhang, Ren, Sun: "Deep Residual Learning for Image
Recognition", CVPR 2016, section 4.2; arXiv 1512.03385).

    stem: conv 3x3, norm, ReLU
    three stages of n blocks with 16, 32, 64 channels (times `width`), the last two from stride 2
    block: relu(shortcut(x) + norm2(conv2(relu(norm1(conv1(x))))))
    mean over pixels, linear head

The shortcut has no parameters (option A): every second pixel, new channels zero. Initialization
and batch-norm constants are those of the PyTorch code behind arXiv 2105.01029, with one difference:
Flax updates the running variance by the batch variance, PyTorch by its unbiased estimate (a factor
of N / (N - 1), where N is the number of pixels in a batch).

Parameter paths, with blocks counted from 1 to 3n:

    stem/kernel  stem_norm/{scale,bias}  head/{kernel,bias}
    block_1/{conv1,conv2}/kernel  block_1/{norm1,norm2}/{scale,bias}

`dtype` is that of the convolutions and activations. Whatever it is, parameters, batch statistics
and everything from the mean over pixels on are float32. With `remat`, the backward pass keeps the
inputs of the blocks only and computes what is inside them again.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models.initializers import uniform_bias
from experiments.models.width import scaled
from lowrank_jax.linen import Conv, Dense

# The published system factorizes the convolutions of the blocks, not the stem and not the head.
FACTORIZED = r"block_\d+/conv[12]/kernel"

# He et al. 2015: variance 2 / fan_in, plain (not truncated) normal.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")

# Padding is given in numbers: at stride 2, 'SAME' would pad one side only.
Conv3x3 = partial(
    Conv, kernel_size=(3, 3), padding=((1, 1), (1, 1)), use_bias=False, kernel_init=kaiming_normal
)
Norm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


def shortcut(x: jax.Array, features: int, stride: int) -> jax.Array:
    """Option A: subsamples `x` (N, H, W, C) and pads zero channels, half before and half after."""
    added = features - x.shape[-1]
    x = x[:, ::stride, ::stride, :]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (added // 2, added - added // 2)))


class Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut."""

    features: int
    stride: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = partial(Conv3x3, self.features, dtype=self.dtype)
        norm = partial(Norm, use_running_average=not train, dtype=self.dtype)
        y = conv(strides=self.stride, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y))
        y = conv(name="conv2")(y)
        y = norm(name="norm2")(y)
        return nn.relu(self.shortcut(x, train) + y)

    def shortcut(self, x: jax.Array, train: bool) -> jax.Array:
        """What is added to the convolutions' output."""
        return shortcut(x, self.features, self.stride)


class ResNet(nn.Module):
    """The residual network: images (N, H, W, C) to logits (N, num_classes), in float32.

    Attributes:
      num_classes: number of logits.
      depth: layers with weights, 6n + 2 for n blocks per stage: 20, 32, 44, 56, 110, ...
      width: multiplies the channel counts of the stages.
      dtype: of the computation up to the mean over pixels; None: of images and parameters.
      remat: whether the backward pass computes the inside of the blocks again.
    """

    num_classes: int
    depth: int = 20
    width: float = 1.0
    dtype: Any = None
    remat: bool = False

    # What a family of these networks is made of.
    block: ClassVar[type[nn.Module]] = Block
    channels: ClassVar[int] = 16  # of the stem and the first stage

    def __post_init__(self) -> None:
        if self.depth < 8 or (self.depth - 2) % 6:
            raise ValueError(
                f"a ResNet of depth {self.depth} does not exist: depth is 6n + 2, "
                "e.g. 8, 20, 32, 44, 56, 110"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = Conv3x3(scaled(self.channels, self.width), dtype=self.dtype, name="stem")(images)
        norm = Norm(use_running_average=not train, dtype=self.dtype, name="stem_norm")
        x = nn.relu(norm(x))
        # Argument 2 is `train`, behind the module and its input.
        block = nn.remat(self.block, static_argnums=2) if self.remat else self.block
        blocks = (self.depth - 2) // 6
        for index in range(3 * blocks):
            stage = index // blocks
            x = block(
                features=scaled(self.channels * 2**stage, self.width),
                stride=2 if stage > 0 and index % blocks == 0 else 1,
                dtype=self.dtype,
                name=f"block_{index + 1}",
            )(x, train)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        return Dense(
            self.num_classes,
            kernel_init=kaiming_normal,
            bias_init=self.head_bias(x.shape[-1]),
            name="head",
        )(x)

    def head_bias(self, fan_in: int) -> nn.initializers.Initializer:
        """The initializer of the head's bias: PyTorch's default for a linear layer."""
        return uniform_bias(fan_in)
