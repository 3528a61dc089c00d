"""Wide ResNets with projections as shortcuts: the network that the compression experiments of
arXiv 2105.01029 (section 5) factorize, from the code behind Wang et al., "EigenDamage" (ICML 2019).

Like `resnet.py`, with three differences:

    64, 128, 256 channels (times `width`) instead of 16, 32, 64
    where the shape changes, the shortcut is norm(conv 1x1 of stride 2), without bias (option B)
    every bias starts at 0, the head's too

At depth 32 this is the network published as ResNet-32 "x2". The two projections have the parameter
paths block_i/projection/kernel and block_i/projection_norm/{scale,bias}, and are factorized with
the convolutions of the blocks.
"""

from __future__ import annotations

from typing import ClassVar

import jax
from flax import linen as nn

from experiments.models.resnet import Block, Norm, ResNet, kaiming_normal
from lowrank_jax.linen import Conv

FACTORIZED = r"block_\d+/(conv[12]|projection)/kernel"


class ProjectionBlock(Block):
    """A block whose shortcut is a projection where the shape changes."""

    def shortcut(self, x: jax.Array, train: bool) -> jax.Array:
        if x.shape[-1] == self.features and self.stride == 1:
            return x
        projected = Conv(
            self.features,
            kernel_size=(1, 1),
            strides=self.stride,
            use_bias=False,
            kernel_init=kaiming_normal,
            dtype=self.dtype,
            name="projection",
        )(x)
        norm = Norm(use_running_average=not train, dtype=self.dtype, name="projection_norm")
        return norm(projected)


class ProjectionResNet(ResNet):
    """The residual network of this file; attributes, inputs and outputs as for `ResNet`."""

    block: ClassVar[type[nn.Module]] = ProjectionBlock
    channels: ClassVar[int] = 64

    def head_bias(self, fan_in: int) -> nn.initializers.Initializer:
        return nn.initializers.zeros
