"""Applying a kernel that may be an array or a factorized weight, with lax's own arguments.

Both functions can be given to any layer that takes ``dot_general`` or ``conv_general_dilated`` as a
field. The choice between applying the factors one after the other and composing the kernel first is
made by multiply-adds at the sizes at hand, statically, and can be overridden by ``compose``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from lowrank_jax.weights.base import FactorizedWeight


def dot_general(
    x: jax.Array,
    w: jax.Array | FactorizedWeight,
    dimension_numbers: lax.DotDimensionNumbers,
    precision: lax.PrecisionLike = None,
    preferred_element_type: Any = None,
    *,
    compose: bool | None = None,
    **kwargs: Any,
) -> jax.Array:
    """``lax.dot_general`` whose right operand may be a factorized weight.

    Args:
      x: the left operand.
      w: the right operand, an array or a factorized weight.
      dimension_numbers, precision, preferred_element_type: as in ``lax.dot_general``.
      compose: ``True`` forms the dense kernel first, ``False`` applies the factors one after the
        other, ``None`` does what costs fewer multiply-adds. Ignored for arrays.
      **kwargs: further arguments of ``lax.dot_general``, for arrays only.

    Raises:
      ValueError: ``compose=False`` where no factored form exists.

    >>> import jax.numpy as jnp
    >>> from lowrank_jax.weights.low_rank import LowRank
    >>> w = LowRank(u=jnp.ones((4, 1)), vt=jnp.ones((1, 3)))
    >>> dot_general(jnp.ones((2, 4)), w, (((1,), (0,)), ((), ()))).shape
    (2, 3)
    """
    if isinstance(w, FactorizedWeight):
        given = [name for name, value in kwargs.items() if value is not None]
        if given:
            raise ValueError(f"dot_general with a {type(w).__name__} takes no {', '.join(given)}")
        return w.dot_general(
            x, dimension_numbers, precision, preferred_element_type, compose=compose
        )
    return lax.dot_general(x, w, dimension_numbers, precision, preferred_element_type, **kwargs)


def conv_general_dilated(
    x: jax.Array,
    w: jax.Array | FactorizedWeight,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *args: Any,
    compose: bool | None = None,
    **kwargs: Any,
) -> jax.Array:
    """``lax.conv_general_dilated`` whose kernel may be a factorized weight.

    Args:
      x: the input.
      w: the kernel, an array or a factorized weight (whose geometry is HWIO).
      window_strides, padding: as in ``lax.conv_general_dilated``.
      *args: its further arguments.
      compose: as in :func:`dot_general`.
      **kwargs: its further arguments, by name.

    Raises:
      ValueError: a grouped convolution or a stacked kernel, of a kind with two factors (a kind that
        always composes, as ``TensorTrain`` and ``Tucker`` do, takes groups); or ``compose=False``
        where no factored form exists.

    >>> import jax.numpy as jnp
    >>> from lowrank_jax.weights.spatial import SpatialLowRank
    >>> w = SpatialLowRank(u=jnp.ones((1, 3, 4, 2)), vt=jnp.ones((3, 1, 2, 6)))
    >>> numbers = ("NHWC", "HWIO", "NHWC")
    >>> x = jnp.ones((1, 8, 8, 4))
    >>> conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=numbers).shape
    (1, 4, 4, 6)
    """
    if isinstance(w, FactorizedWeight):
        return w.conv_general_dilated(x, window_strides, padding, *args, compose=compose, **kwargs)
    return lax.conv_general_dilated(x, w, window_strides, padding, *args, **kwargs)
