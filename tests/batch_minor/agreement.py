"""Whether ``batch_minor(function)`` computes what ``function`` does, in float64 to 1e-12."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax.batch_minor import batch_minor


def assert_same(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    """Same structure, shapes and dtypes; values close in relation to the largest."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = list(zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True))
    largest = max((_size(other) for _, other in pairs), default=0.0)
    for one, other in pairs:
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        # A gradient that is zero but for rounding is compared with the others.
        bound = tolerance * max(_size(other), 0.01 * largest)
        np.testing.assert_allclose(one, other, rtol=0, atol=bound)


def _size(array: Any) -> float:
    """The largest absolute value; 0 for integers, which are to be equal."""
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return 0.0
    return float(np.abs(np.asarray(array, np.float64)).max(initial=0.0))


def assert_agrees(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Under ``jit``, in one compilation for both."""

    def both(*args: Any, **kwargs: Any) -> Any:
        return batch_minor(function)(*args, **kwargs), function(*args, **kwargs)

    assert_same(*jax.jit(both)(*args, **kwargs))
