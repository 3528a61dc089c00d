"""Convolutions of batch-minor images, as one matrix product over all pixels.

Images are ``(channels, height, width, batch)``. The taps of a spatial axis are taken on one side of
the product:

    input side:   out = K @ concat_i read_i(x)          (rows: taps * channels in)
    output side:  out = sum_i read_i((K @ x)_i)         (rows: taps * channels out)

and either can be chosen for each axis. So what is moved scales with the smaller number of channels:
the first stage of a low-rank kernel (many channels to ``r``) takes its taps on the output side, the
second (``r`` to many) on the input side, and no array of ``taps * channels`` rows is made of the
wide one. The gradient of the kernel is a product with the same choice.

The formulas are those of the direct convolution, summed in another order.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax.batch_minor.taps import HEIGHT, WIDTH, Window, read, write

# Reading or writing one element costs about as much as this many multiply-adds.
_MULTIPLY_ADDS_PER_ELEMENT = 32

# A kernel's gradient does not keep columns of more than this many times the output's rows.
_MOST_KEPT = 2


@dataclasses.dataclass(frozen=True)
class Convolution:
    """The geometry of a 2-D convolution.

    Attributes:
      channels_in, channels_out: of the kernel.
      height, width: the window along each axis.
    """

    channels_in: int
    channels_out: int
    height: Window
    width: Window

    @property
    def windows(self) -> tuple[tuple[int, Window], tuple[int, Window]]:
        return (HEIGHT, self.height), (WIDTH, self.width)

    def sides(self) -> tuple[bool, bool]:
        """For height and width: whether the taps are taken on the input side. The cheapest way."""
        return min(itertools.product((True, False), (True, False)), key=self._cost)

    def _cost(self, sides: tuple[bool, bool]) -> float:
        rows_in, rows_out, pixels = self.channels_in, self.channels_out, 1
        for (_, window), on_input in zip(self.windows, sides, strict=True):
            pixels *= window.outputs if on_input else window.inputs
            if on_input:
                rows_in *= window.taps
            else:
                rows_out *= window.taps
        return pixels * (rows_in * rows_out + _MULTIPLY_ADDS_PER_ELEMENT * (rows_in + rows_out))


def convolve(x: jax.Array, kernel: jax.Array, geometry: Convolution, **options: Any) -> jax.Array:
    """The convolution.

    Args:
      x: ``(channels_in, height, width, batch)``.
      kernel: ``(height taps, width taps, channels_in, channels_out)``.
      geometry: of the convolution.
      **options: of ``lax.dot_general``: precision and preferred_element_type.

    Returns:
      ``(channels_out, height, width, batch)``.
    """
    sides = geometry.sides()
    columns = _rows(x, geometry, _positions(geometry, sides, True), read)
    matrix = _to_matrix(kernel, sides)
    products = _matrix_product(matrix, columns, **options)
    taps = _positions(geometry, sides, False)
    parts = jnp.split(products, len(taps))
    moved = [_move(part, geometry, at, read) for part, at in zip(parts, taps, strict=True)]
    return functools.reduce(operator.add, moved)


def kernel_gradient(x: jax.Array, y: jax.Array, geometry: Convolution, **options: Any) -> jax.Array:
    """The derivative of ``sum(y * convolve(x, kernel, geometry))`` by the kernel.

    Args:
      x: ``(channels_in, height, width, batch)``.
      y: ``(channels_out, height, width, batch)``.
      geometry: of the convolution.
      **options: of ``lax.dot_general``.

    Returns:
      ``(height taps, width taps, channels_in, channels_out)``.
    """
    sides = geometry.sides()
    taps = _positions(geometry, sides, True)
    if len(taps) * len(x) > _MOST_KEPT * len(y):
        # The compiler would make the columns in the forward pass and keep them. A zero from the
        # backward pass stops it; where they are small, keeping them costs less than making them.
        x = x + 0 * y[0, 0, 0, 0]
    columns = _rows(x, geometry, taps, read)
    rows = _rows(y, geometry, _positions(geometry, sides, False), write)
    product = lax.dot_general(_flat(rows), _flat(columns), (((1,), (1,)), ((), ())), **options)
    return _from_matrix(product, geometry, sides)


def _positions(
    geometry: Convolution, sides: tuple[bool, bool], on_input: bool
) -> list[tuple[int | None, ...]]:
    """The taps of one side, height before width; None where the axis is on the other side.

    Those of the output side run backwards: the kernel's gradient then takes the same taps in the
    same order as the input's gradient, which is a convolution with the flipped kernel, and the
    compiler makes them once.
    """
    step = 1 if on_input else -1
    of_axes = [
        range(window.taps)[::step] if side == on_input else (None,)
        for (_, window), side in zip(geometry.windows, sides, strict=True)
    ]
    return list(itertools.product(*of_axes))


def _rows(
    image: jax.Array, geometry: Convolution, positions: list[tuple[int | None, ...]], step: Any
) -> jax.Array:
    """The image at every one of these taps, one below the other."""
    return jnp.concatenate([_move(image, geometry, taps, step) for taps in positions])


def _move(
    image: jax.Array, geometry: Convolution, taps: tuple[int | None, ...], step: Any
) -> jax.Array:
    """``read`` or ``write`` at one tap of each axis that has one."""
    for (axis, window), tap in zip(geometry.windows, taps, strict=True):
        if tap is not None:
            image = step(image, axis, window, tap)
    return image


def _output_axes(sides: tuple[bool, bool]) -> tuple[int, ...]:
    """The axes of a kernel whose taps are on the output side."""
    return tuple(axis for axis, on_input in enumerate(sides) if not on_input)


def _order(sides: tuple[bool, bool]) -> list[int]:
    """The axes of a kernel (height, width, in, out), sorted into rows and columns."""
    rows = _output_axes(sides)
    columns = [axis for axis, on_input in enumerate(sides) if on_input]
    return [*rows, 3, *columns, 2]


def _to_matrix(kernel: jax.Array, sides: tuple[bool, bool]) -> jax.Array:
    """``(taps of the output side * channels_out, taps of the input side * channels_in)``."""
    flipped = jnp.flip(kernel, _output_axes(sides))
    ordered = jnp.transpose(flipped, _order(sides))
    return ordered.reshape(math.prod(ordered.shape[: len(_output_axes(sides)) + 1]), -1)


def _from_matrix(matrix: jax.Array, geometry: Convolution, sides: tuple[bool, bool]) -> jax.Array:
    """The inverse of :func:`_to_matrix`."""
    order = _order(sides)
    shape: Sequence[int] = (
        geometry.height.taps,
        geometry.width.taps,
        geometry.channels_in,
        geometry.channels_out,
    )
    ordered = matrix.reshape([shape[axis] for axis in order])
    flipped = jnp.transpose(ordered, [order.index(axis) for axis in range(4)])
    return jnp.flip(flipped, _output_axes(sides))


def _matrix_product(matrix: jax.Array, image: jax.Array, **options: Any) -> jax.Array:
    # Two axes only: a contraction with more is copied into this form by XLA.
    product = lax.dot_general(matrix, _flat(image), (((1,), (0,)), ((), ())), **options)
    return product.reshape(-1, *image.shape[1:])


def _flat(image: jax.Array) -> jax.Array:
    return image.reshape(image.shape[0], -1)
