"""Drop-in ``Dense``, ``DenseGeneral`` and ``Conv``: flax's layers on an array or a weight.

They take flax's arguments, have flax's parameter names and compute what flax computes; only the
kernel found under ``kernel`` may be a factorized weight. What is done with it is flax's own code,
see ``kernels.py``.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from lowrank_jax.linen.kernels import KernelView, flax_code


class Dense(nn.Dense):
    """``flax.linen.Dense`` whose kernel ``(in, features)`` is an array or a factorized weight.

    Attributes:
      compose: ``True`` forms the dense kernel first, ``False`` applies the factors one after the
        other, ``None`` does what costs fewer multiply-adds. The other attributes are flax's; a
        ``kernel_init`` made by ``lowrank_jax.initializers.factorized`` gives a layer that is born
        factorized.

    Raises:
      ValueError: when called, if the weight stands for a kernel of another shape; or if the kernel
        is factorized and ``dot_general``, ``dot_general_cls`` or ``promote_dtype`` is not flax's.

    >>> import jax.numpy as jnp
    >>> from lowrank_jax.weights import LowRank
    >>> weight = LowRank(u=jnp.ones((3, 1)), vt=jnp.ones((1, 2)))
    >>> Dense(2, use_bias=False).apply({"params": {"kernel": weight}}, jnp.ones(3)).tolist()
    [3.0, 3.0]
    """

    compose: bool | None = None

    @nn.compact
    def __call__(self, inputs: Any) -> jax.Array:
        return flax_code(nn.Dense.__call__)(KernelView(self, self.compose), inputs)


class DenseGeneral(nn.DenseGeneral):
    """``flax.linen.DenseGeneral`` whose kernel is an array or a factorized weight.

    The kernel has shape ``(*batch_dims, *axis, *features)``: a ``LowRank`` for it has as many
    ``in_axes`` as the layer contracts and as many ``out_axes`` as it has features, and so has what
    a ``kernel_init`` that names neither gives. Attributes and errors as for :class:`Dense`.
    """

    compose: bool | None = None

    @nn.compact
    def __call__(self, inputs: Any) -> jax.Array:
        return flax_code(nn.DenseGeneral.__call__)(KernelView(self, self.compose), inputs)


class Conv(nn.Conv):
    """``flax.linen.Conv`` whose kernel ``(*window, in, features)`` is an array or a weight.

    Any stride, padding and dilation. Attributes as for :class:`Dense`.

    Raises:
      ValueError: when called, if the weight stands for a kernel of another shape; or if the kernel
        is factorized and ``feature_group_count`` is not 1, there is a ``mask``, or
        ``conv_general_dilated``, ``conv_general_dilated_cls`` or ``promote_dtype`` is not flax's.
    """

    compose: bool | None = None

    @nn.compact
    def __call__(self, inputs: Any) -> jax.Array:
        return flax_code(nn.Conv.__call__)(KernelView(self, self.compose), inputs)
