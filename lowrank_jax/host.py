"""NumPy code on values that may be traced.

Decompositions run on the host. Called with arrays they run there and then; called inside ``jit``,
``vmap`` or ``eval_shape``, where a layer is born factorized, by a callback.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def on_host(function: Callable[..., Any], result: Any, *arrays: Any) -> Any:
    """``function(*arrays)`` with NumPy arrays.

    Args:
      function: takes and returns arrays with any leading batch axes.
      result: the shapes and dtypes it returns, as a tree of ``ShapeDtypeStruct``.
      *arrays: any of them may be traced.

    >>> shape = jax.ShapeDtypeStruct((2,), "float32")
    >>> jax.jit(lambda x: on_host(np.sort, shape, x))(np.array([2.0, 1.0], "float32"))
    Array([1., 2.], dtype=float32)
    """

    def call(*values: Any) -> Any:
        return function(*map(np.asarray, values))

    if not any(isinstance(array, jax.core.Tracer) for array in arrays):
        return call(*arrays)
    return jax.pure_callback(call, result, *arrays, vmap_method="broadcast_all")
