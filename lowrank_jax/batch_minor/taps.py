"""Taps: one position of a convolution's window along one axis, as a shift of a whole array.

With stride s, window dilation d, input dilation e and low padding p, output position o reads

    input[(o s + i d - p) / e]        at tap i, where that is a whole number in range, else 0.

:func:`read` applies this for one tap to a whole array, and :func:`write` is its transpose. Both are
a ``lax.pad`` and a ``lax.slice``: copies of long contiguous runs where the batch is the last axis.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

HEIGHT, WIDTH = 1, 2  # Axes of a batch-minor image.


@dataclasses.dataclass(frozen=True)
class Window:
    """A convolution along one spatial axis.

    Attributes:
      inputs, outputs: sizes of the axis before and after.
      taps: positions of the window.
      stride, low, input_dilation, dilation: s, p, e and d of the formula above.
    """

    inputs: int
    outputs: int
    taps: int
    stride: int
    low: int
    input_dilation: int
    dilation: int

    def first(self, tap: int) -> int:
        """Where output 0 reads in the dilated input; may lie outside."""
        return tap * self.dilation - self.low


def read(x: jax.Array, axis: int, window: Window, tap: int) -> jax.Array:
    """What every output position reads at this tap: ``axis`` from ``inputs`` to ``outputs`` long.

    >>> window = Window(3, 3, taps=3, stride=1, low=1, input_dilation=1, dilation=1)
    >>> read(jnp.array([1, 2, 3]), 0, window, 0).tolist()
    [0, 1, 2]
    """
    start = window.first(tap)
    return _shift(x, axis, start, window.outputs, window.stride, window.input_dilation)


def write(y: jax.Array, axis: int, window: Window, tap: int) -> jax.Array:
    """The transpose of :func:`read`: puts every output where it was read from, zeros elsewhere.

    >>> window = Window(3, 3, taps=3, stride=1, low=1, input_dilation=1, dilation=1)
    >>> write(jnp.array([1, 2, 3]), 0, window, 0).tolist()
    [2, 3, 0]
    """
    start = -window.first(tap)
    return _shift(y, axis, start, window.inputs, window.input_dilation, window.stride)


def _shift(x: jax.Array, axis: int, start: int, length: int, step: int, dilation: int) -> jax.Array:
    """Element j of the result is element ``start + j step`` of ``x`` with ``dilation - 1`` zeros
    put between its elements, and zero outside of it."""
    last = start + (length - 1) * step
    end = (x.shape[axis] - 1) * dilation
    low, high = max(0, -start), max(0, last - end)
    if low or high or dilation > 1:
        config = [(0, 0, 0)] * x.ndim
        config[axis] = (low, high, dilation - 1)
        x = lax.pad(x, jnp.zeros((), x.dtype), config)
    return lax.slice_in_dim(x, start + low, last + low + 1, step, axis)
