"""Geometry: which axis of the dense kernel each axis of a factor comes from.

Every two-factor weight is a matrix product in disguise. Split the axes of a dense kernel into
*rows* (kept by ``u``, the factor that touches the input) and *columns* (kept by ``vt``); then

    matrix(kernel) = u_matrix @ vt_matrix,     u_matrix: (rows, rank),  vt_matrix: (rank, columns)

and the factors are these two matrices with their axes unfolded again. A kind of weight is fully
described by that split, so reshaping, counting, contracting and sharding are written once, here,
for all of them. Nothing is read off the shapes of arrays: the same 4-D kernel is a convolution
for one kind and a stack of attention heads for another.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Final

RANK: Final = "rank"
"""Marks the factor axis that is contracted in the product."""

AxisSource = int | str | None
"""A dense axis (an index), ``RANK``, or ``None`` for an axis of size one without a meaning."""


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The axes of ``u`` and ``vt``, each named by the dense axis it comes from.

    Attributes:
      u: sources of the trailing axes of ``u``; ``RANK`` is the last one.
      vt: sources of the trailing axes of ``vt``.

    Dense axes are counted from the first axis after the batch axes.

    >>> Geometry(u=(0, RANK), vt=(RANK, 1)).matrix_shape((7, 8, 9))
    (8, 9)
    """

    u: tuple[AxisSource, ...]
    vt: tuple[AxisSource, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        return tuple(axis for axis in self.u if isinstance(axis, int))

    @property
    def columns(self) -> tuple[int, ...]:
        return tuple(axis for axis in self.vt if isinstance(axis, int))

    @property
    def dense_ndim(self) -> int:
        """Number of dense axes, batch axes not counted."""
        return len(self.rows) + len(self.columns)

    def split(self, shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Splits a dense shape into its batch part and its kernel part."""
        batch = len(shape) - self.dense_ndim
        return tuple(shape[:batch]), tuple(shape[batch:])

    def matrix_shape(self, shape: Sequence[int]) -> tuple[int, int]:
        """``(rows, columns)`` of the matrix a dense kernel of this shape is read as."""
        _, kernel = self.split(shape)
        return (
            math.prod(kernel[axis] for axis in self.rows),
            math.prod(kernel[axis] for axis in self.columns),
        )

    def factor_shapes(self, shape: Sequence[int], rank: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of ``u`` and ``vt`` for a dense kernel of this shape at this rank."""
        batch, kernel = self.split(shape)

        def size(source: AxisSource) -> int:
            if isinstance(source, int):
                return kernel[source]
            return rank if source == RANK else 1

        return tuple(batch + tuple(map(size, axes)) for axes in (self.u, self.vt))

    def dense_shape(self, u_shape: Sequence[int], vt_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the dense kernel that factors of these shapes stand for."""
        batch = tuple(u_shape[: len(u_shape) - len(self.u)])
        sizes = dict(zip(self.u, u_shape[len(batch) :], strict=True))
        sizes |= dict(zip(self.vt, vt_shape[len(vt_shape) - len(self.vt) :], strict=True))
        return batch + tuple(sizes[axis] for axis in range(self.dense_ndim))

    def matricize(self, kernel: Any) -> Any:
        """``(*batch, rows, columns)``: the kernel as the matrix that is factorized."""
        batch, _ = self.split(kernel.shape)
        offset = len(batch)
        order = (*range(offset), *(offset + axis for axis in self.rows + self.columns))
        return kernel.transpose(order).reshape(batch + self.matrix_shape(kernel.shape))

    def unfold(self, u: Any, vt: Any, shape: Sequence[int]) -> tuple[Any, Any]:
        """Factor matrices ``(*batch, rows, r)`` and ``(*batch, r, columns)`` as factors."""
        _, kernel = self.split(shape)
        u_shape, vt_shape = self.factor_shapes(shape, u.shape[-1])
        batch = tuple(u.shape[:-2])
        column_sizes = tuple(kernel[axis] for axis in self.columns)
        vt = vt.reshape((*batch, vt.shape[-2], *column_sizes))
        have = [RANK, *self.columns]
        want = [source for source in self.vt if source is not None]
        order = [len(batch) + have.index(source) for source in want]
        return u.reshape(u_shape), vt.transpose((*range(len(batch)), *order)).reshape(vt_shape)

    def fold(self, u: Any, vt: Any) -> tuple[Any, Any]:
        """Factors as factor matrices ``(*batch, rows, r)`` and ``(*batch, r, columns)``."""
        batch = tuple(u.shape[: u.ndim - len(self.u)])
        rank = u.shape[-1]
        position = len(batch) + self.vt.index(RANK)
        others = [axis for axis in range(len(batch), vt.ndim) if axis != position]
        vt = vt.transpose((*range(len(batch)), position, *others))
        return u.reshape((*batch, -1, rank)), vt.reshape((*batch, rank, -1))

    def labels(self, axes: tuple[AxisSource, ...], rank: str) -> str:
        """Einsum letters of a factor's trailing axes; ``rank`` is the letter of the rank axis."""
        placeholders = iter("ABCDEFGH")
        return "".join(
            chr(ord("a") + source)
            if isinstance(source, int)
            else rank
            if source == RANK
            else next(placeholders)
            for source in axes
        )
