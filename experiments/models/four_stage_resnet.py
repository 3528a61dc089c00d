"""ResNets of four stages (He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", CVPR
2016, section 4.1; arXiv 1512.03385), as Pufferfish (MLSys 2021, arXiv 2103.03936) and Cuttlefish
(MLSys 2023, arXiv 2305.02538) factorize them.

    ResNet18       for small images: stem conv 3x3; 2, 2, 2, 2 basic blocks
    ResNet50       stem conv 7x7 of stride 2, max pooling 3x3 of stride 2; 3, 4, 6, 3 bottlenecks
    WideResNet50   the same with twice the channels inside the bottlenecks (Zagoruyko and
                   Komodakis, BMVC 2016; arXiv 1605.07146): WRN-50-2

    stages of c = 64, 128, 256, 512 channels (times `width`), all but the first from stride 2
    block:        relu(shortcut(x) + norm(conv(… relu(norm(conv(x))))))
      basic       3x3 to c, 3x3 to c
      bottleneck  1x1 to c, 3x3 to c, 1x1 to 4c; the stride is that of the 3x3
    shortcut:     x, or where the shape changes norm(conv 1x1)
    mean over pixels, linear head

ResNet18 starts as PyTorch layers do, uniformly within 1 / sqrt(fan_in); the others at normal
numbers of variance 2 / fan_out, their heads like ResNet18's. Norms are those of `resnet.py`.

Parameter paths, with stages and the blocks of each counted from 1:

    stem/kernel  stem_norm/{scale,bias}  head/{kernel,bias}
    stage_1_block_1/{conv1,conv2,conv3}/kernel  stage_1_block_1/{norm1,norm2,norm3}/{scale,bias}
    stage_1_block_1/projection/kernel  stage_1_block_1/projection_norm/{scale,bias}
    factor_norm: stage_1_block_1/conv1/factor_norm/{scale,bias}, of factorized kernels

`dtype` and `remat` are as in `resnet.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.models.initializers import fan_out_normal, linear_uniform, uniform_bias
from experiments.models.resnet import Norm
from experiments.models.width import scaled
from lowrank_jax.linen import Conv, Dense, FactorNormConv

# What can be factorized. The published code never factorizes a basic block's shortcut; a
# bottleneck's is a layer like the others, but for the norm between the factors.
CONVOLUTIONS = r"stage_\d_block_\d/conv\d/kernel"
WITH_PROJECTIONS = r"stage_\d_block_\d/(conv\d|projection)/kernel"


Convolutions = tuple[tuple[int, int, int], ...]
"""Of a block: size of the window, features and stride of each, in their order."""


def _basic(channels: int, stride: int) -> Convolutions:
    return (3, channels, stride), (3, channels, 1)


def _bottleneck(inside: int, channels: int, stride: int) -> Convolutions:
    """With `inside` times the channels of the stage in the middle."""
    inner = inside * channels
    return (1, inner, 1), (3, inner, stride), (1, 4 * channels, 1)


class Block(nn.Module):
    """Convolutions with norms, around a shortcut.

    Attributes:
      convolutions: see `Convolutions`.
      kernel_init: of all kernels.
      factor_norm: whether there is a norm between the factors of the convolutions.
      dtype: see the module.
    """

    convolutions: Convolutions
    kernel_init: nn.initializers.Initializer
    factor_norm: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = partial(Norm, use_running_average=not train, dtype=self.dtype)
        options = {"use_bias": False, "kernel_init": self.kernel_init, "dtype": self.dtype}
        y = x
        for number, (size, features, stride) in enumerate(self.convolutions, start=1):
            y = FactorNormConv(
                features,
                (size, size),
                strides=stride,
                padding=size // 2,
                norm=norm if self.factor_norm else None,
                name=f"conv{number}",
                **options,
            )(y if number == 1 else nn.relu(y))
            y = norm(name=f"norm{number}")(y)
        if x.shape != y.shape:
            stride = max(stride for _, _, stride in self.convolutions)
            projection = Conv(y.shape[-1], (1, 1), stride, name="projection", **options)
            x = norm(name="projection_norm")(projection(x))
        return nn.relu(x + y)


class FourStageResNet(nn.Module):
    """The residual network: images (N, H, W, C) to logits (N, num_classes), in float32.

    Attributes:
      num_classes: number of logits.
      width: multiplies the channel counts.
      factor_norm: whether the blocks' convolutions have a norm between their factors where they are
        factorized, see `lowrank_jax.linen.FactorNormConv`; shortcuts have none.
      dtype: of the computation up to the mean over pixels; None: of images and parameters.
      remat: whether the backward pass computes the inside of the blocks again.
    """

    num_classes: int
    width: float = 1.0
    factor_norm: bool = False
    dtype: Any = None
    remat: bool = False

    # What a family of these networks is made of.
    blocks: ClassVar[tuple[int, ...]]  # Of each stage.
    large_images: ClassVar[bool]
    kernel_init: ClassVar[nn.initializers.Initializer]
    # Of a block, by the channels of its stage and its stride.
    convolutions: ClassVar[staticmethod[[int, int], Convolutions]]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        size, stride = (7, 2) if self.large_images else (3, 1)
        stem = Conv(
            scaled(64, self.width),
            (size, size),
            strides=stride,
            padding=size // 2,
            use_bias=False,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="stem",
        )
        norm = Norm(use_running_average=not train, dtype=self.dtype, name="stem_norm")
        x = nn.relu(norm(stem(images)))
        if self.large_images:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        # Argument 2 is `train`, behind the module and its input.
        block = nn.remat(Block, static_argnums=2) if self.remat else Block
        for stage, blocks in enumerate(self.blocks, start=1):
            channels = scaled(64 * 2 ** (stage - 1), self.width)
            for number in range(1, blocks + 1):
                x = block(
                    self.convolutions(channels, 2 if stage > 1 and number == 1 else 1),
                    self.kernel_init,
                    self.factor_norm,
                    self.dtype,
                    name=f"stage_{stage}_block_{number}",
                )(x, train)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        return Dense(
            self.num_classes,
            kernel_init=linear_uniform,
            bias_init=uniform_bias(x.shape[-1]),
            name="head",
        )(x)


class ResNet18(FourStageResNet):
    """Basic blocks, for small images such as CIFAR's; attributes as for `FourStageResNet`."""

    blocks = (2, 2, 2, 2)
    large_images = False
    kernel_init = staticmethod(linear_uniform)
    convolutions = staticmethod(_basic)


class ResNet50(FourStageResNet):
    """Bottlenecks, for images such as ImageNet's; attributes as for `FourStageResNet`."""

    blocks = (3, 4, 6, 3)
    large_images = True
    kernel_init = staticmethod(fan_out_normal)
    convolutions = staticmethod(partial(_bottleneck, 1))


class WideResNet50(ResNet50):
    """WRN-50-2; attributes as for `FourStageResNet`."""

    convolutions = staticmethod(partial(_bottleneck, 2))
