"""Depthwise convolutions of batch-minor images, as sums of shifted images.

Each output channel is made of the one input channel at its own place, so that there is no matrix
product to make of it. Images are ``(channels, height, width, batch)``; at the taps i of the height
and j of the width

    out[c] = sum_ij kernel[i, j, c] read_ij(x)[c]

which the compiler makes in one pass over the output, and the kernel's gradient is

    gradient[i, j, c] = sum over height, width and batch of read_ij(x)[c] y[c].

The input's gradient is a depthwise convolution too, with the flipped kernel and stride and input
dilation exchanged. A channel multiplier above 1 is left to lax: there the input's gradient sums
over channels, and would need formulas of its own.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lowrank_jax.batch_minor.taps import HEIGHT, WIDTH, Window, read


def convolve(
    x: jax.Array, kernel: jax.Array, windows: Sequence[Window], dtype: jnp.dtype
) -> jax.Array:
    """The convolution of every channel with its own kernel.

    Args:
      x: ``(channels, height, width, batch)``.
      kernel: ``(height taps, width taps, 1, channels)``.
      windows: along height and width.
      dtype: of the result; float16 and bfloat16 are summed in float32.

    Returns:
      ``(channels, height, width, batch)``.
    """
    x, kernel = x.astype(_of_sums(dtype)), kernel.astype(_of_sums(dtype))
    products = [
        _per_channel(kernel[row, column, 0]) * _read(x, windows, row, column)
        for row, column in _taps(windows)
    ]
    return functools.reduce(operator.add, products).astype(dtype)


def kernel_gradient(
    x: jax.Array, y: jax.Array, windows: Sequence[Window], dtype: jnp.dtype
) -> jax.Array:
    """The derivative of ``sum(y * convolve(x, kernel, windows))`` by the kernel.

    Args:
      x, y: ``(channels, height, width, batch)``.
      windows: along height and width.
      dtype: of the result; float16 and bfloat16 are summed in float32.

    Returns:
      ``(height taps, width taps, 1, channels)``.
    """
    x, y = x.astype(_of_sums(dtype)), y.astype(_of_sums(dtype))
    sums: list[jax.Array] = []
    for row, column in _taps(windows):
        # The compiler would hold the image at all taps at once, or keep it there since the forward
        # pass. A zero from the tap before makes it take one after the other, in the same memory.
        before = sums[-1] if sums else y[:, 0, 0, 0]
        moved = _read(x + 0 * _per_channel(before), windows, row, column)
        sums.append(jnp.sum(moved * y, (1, 2, 3)))
    height, width = windows
    return jnp.stack(sums).reshape(height.taps, width.taps, 1, -1).astype(dtype)


def _taps(windows: Sequence[Window]) -> list[tuple[int, int]]:
    height, width = windows
    return [(row, column) for row in range(height.taps) for column in range(width.taps)]


def _read(x: jax.Array, windows: Sequence[Window], row: int, column: int) -> jax.Array:
    height, width = windows
    return read(read(x, HEIGHT, height, row), WIDTH, width, column)


def _per_channel(values: jax.Array) -> jax.Array:
    return values[:, None, None, None]


def _of_sums(dtype: jnp.dtype) -> jnp.dtype:
    inexact = jnp.issubdtype(dtype, jnp.inexact)
    return jnp.promote_types(dtype, jnp.float32) if inexact else dtype
