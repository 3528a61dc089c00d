"""How networks written in PyTorch start, where Flax has no name for it.

What PyTorch does by default: kernels and biases uniformly within 1 / sqrt(fan_in). And He et al.'s
normal numbers of variance 2 / fan_out (ICCV 2015; arXiv 1502.01852).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

linear_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
fan_out_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def uniform_bias(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default for the bias of a layer with this many inputs."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )
