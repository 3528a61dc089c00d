"""Views: how a product reads a stored kernel, whole or in part, dense or factorized.

The same attention head is stored in many ways: queries alone ``(D, H, d)``, or queries, keys and
values together as ``(D, 3, H, d)``, ``(D, 3 * H * d)`` or ``(D, H, 3 * d)``; and query heads that
share their keys in groups are read as ``(D, groups, heads of a group, d)``. A :class:`View` names a
leaf and says, step by step, how it is read: an axis is split in several, or a part of an axis is
taken. What it reads of a leaf is a ``Reading``, see ``lowrank_jax/readings.py``.

Every step acts on one axis, so what a view reads is known axis by axis: the entries at some indices
of each, whatever the steps are that say so.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowrank_jax.readings import Label, Operand, Reading, operands_of
from lowrank_jax.weights import is_factorized
from lowrank_jax.weights.explicit_axes import unsplit


@dataclasses.dataclass(frozen=True, repr=False)
class View:
    """A leaf, and how it is read.

    Attributes:
      path: of the leaf, an array or a factorized weight.
      steps: what :meth:`split` and :meth:`take` have added. Their axes are those of what the steps
        before them give; negative ones count from the end, so that leading axes, as ``nn.scan``
        adds them, need nothing.

    Raises:
      TypeError: the path is no string.

    >>> values = View("attention/qkv/kernel").split(-1, (3, 4, 2)).take(-3, 2)
    >>> values
    View('attention/qkv/kernel').split(-1, (3, 4, 2)).take(-3, 2)
    >>> values.shape((6, 24))
    (6, 4, 2)
    """

    path: str
    steps: tuple[_Split | _Take, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.path, str):
            raise TypeError(f"{self.path!r}: expected a path, such as 'query/kernel', or a View")

    @classmethod
    def of(cls, kernel: str | View) -> View:
        """The view itself, or the whole leaf at a path."""
        return kernel if isinstance(kernel, View) else cls(kernel)

    @property
    def brief(self) -> str | View:
        """The path alone, where the whole leaf is read."""
        return self if self.steps else self.path

    @property
    def named(self) -> str:
        """What errors call it."""
        return str(self.brief)

    def split(self, axis: int, sizes: Sequence[int]) -> View:
        """Reads one axis as several, of these sizes, the last one running fastest.

        Raises:
          TypeError: the axis is no whole number, or the sizes are no sequence of them.
        """
        try:
            step = _Split(operator.index(axis), tuple(map(operator.index, sizes)))
        except TypeError as error:
            raise TypeError(
                f"{self!r}.split({axis!r}, {sizes!r}): expected an axis and the sizes that it is "
                "read as, such as split(-1, (3, 4, 2))"
            ) from error
        return dataclasses.replace(self, steps=(*self.steps, step))

    def take(self, axis: int, part: int | tuple[int, int]) -> View:
        """Reads one index of an axis, which is gone then, or a range ``(start, stop)`` of it.

        Raises:
          TypeError: the axis is no whole number, or the part neither one nor a pair of them.
        """
        try:
            if isinstance(part, tuple):
                start, stop = part
                index: int | tuple[int, int] = (operator.index(start), operator.index(stop))
            else:
                index = operator.index(part)
            step = _Take(operator.index(axis), index)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{self!r}.take({axis!r}, {part!r}): expected an axis and an index of it, or a "
                "tuple (start, stop)"
            ) from error
        return dataclasses.replace(self, steps=(*self.steps, step))

    def below(self, prefix: str) -> View:
        """The same view of a leaf at ``prefix + path``."""
        return dataclasses.replace(self, path=prefix + self.path)

    def shape(self, stored: Sequence[int]) -> tuple[int, ...]:
        """The shape of what is read, of a leaf of this dense shape.

        Raises:
          ValueError: a step does not fit.
        """
        shape = tuple(stored)
        for step in self.steps:
            if not -len(shape) <= step.axis < len(shape) or not step.fits(shape[step.axis]):
                raise ValueError(
                    f"{self!r}: {step} does not fit the shape {shape} that it meets; "
                    f"{self.path} is stored as {tuple(stored)}"
                )
            axis = step.axis % len(shape)
            shape = (*shape[:axis], *step.sizes_of(shape[axis]), *shape[axis + 1 :])
        return shape

    def indices(self, stored: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """For each axis of a leaf of this dense shape, which of its indices are read.

        >>> View("qkv").split(-1, (3, 4)).take(-2, 1).indices((2, 12))
        ((0, 1), (4, 5, 6, 7))
        """
        axes = (Operand(np.arange(size), ((axis,),)) for axis, size in enumerate(stored))
        return tuple(
            tuple(operand.array.ravel().tolist())
            for operand in self._steps_on(tuple(axes), stored).operands
        )

    def read(self, leaf: Any) -> Reading:
        """What is read of an array or a factorized weight, factors kept apart.

        Works on NumPy arrays, too; their operands share memory with the leaf.
        """
        return self._steps_on(tuple(operands_of(leaf)), leaf.shape)

    def _steps_on(self, operands: tuple[Operand, ...], stored: Sequence[int]) -> Reading:
        self.shape(stored)
        axes: list[Label] = [(axis,) for axis in range(len(stored))]
        for step in self.steps:
            position = step.axis % len(axes)
            operands = tuple(step.act(operand, axes[position]) for operand in operands)
            axes[position : position + 1] = step.labels(axes[position])
        return Reading(tuple(axes), operands)

    def array(self, leaf: Any) -> Any:
        """What is read, as one array: a factorized weight is composed."""
        (operand,) = self.read(leaf.dense() if is_factorized(leaf) else leaf).operands
        return operand.array

    def __repr__(self) -> str:
        return ".".join([f"View({self.path!r})", *map(repr, self.steps)])


@dataclasses.dataclass(frozen=True, repr=False)
class _Split:
    axis: int
    sizes: tuple[int, ...]

    def fits(self, size: int) -> bool:
        return min(self.sizes, default=0) > 0 and math.prod(self.sizes) == size

    def sizes_of(self, size: int) -> tuple[int, ...]:
        return self.sizes

    def labels(self, label: Label) -> list[Label]:
        return [(label, part) for part in range(len(self.sizes))]

    def act(self, operand: Operand, label: Label) -> Operand:
        if label not in operand.axes:
            return operand
        at, shape = operand.axes.index(label), operand.array.shape
        array = unsplit(operand.array, at).reshape((*shape[:at], *self.sizes, *shape[at + 1 :]))
        axes = (*operand.axes[:at], *self.labels(label), *operand.axes[at + 1 :])
        return dataclasses.replace(operand, array=array, axes=axes)

    def __repr__(self) -> str:
        return f"split({self.axis}, {self.sizes})"


@dataclasses.dataclass(frozen=True, repr=False)
class _Take:
    axis: int
    part: int | tuple[int, int]

    def fits(self, size: int) -> bool:
        if isinstance(self.part, int):
            return -size <= self.part < size
        start, stop = self.part
        return 0 <= start < stop <= size

    def sizes_of(self, size: int) -> tuple[int, ...]:
        return () if isinstance(self.part, int) else (self.part[1] - self.part[0],)

    def labels(self, label: Label) -> list[Label]:
        return [] if isinstance(self.part, int) else [(label, self.part)]

    def act(self, operand: Operand, label: Label) -> Operand:
        if label not in operand.axes:
            return operand
        at = operand.axes.index(label)
        if isinstance(self.part, int):
            start = self.part % operand.array.shape[at]
            stop = start + 1
        else:
            start, stop = self.part
        array = unsplit(operand.array, at)[(slice(None),) * at + (slice(start, stop),)]
        if isinstance(self.part, int):
            # An index instead of a slice would be a gather, which explicit axes refuse.
            array = array.squeeze(at)
        axes = (*operand.axes[:at], *self.labels(label), *operand.axes[at + 1 :])
        return Operand(array, axes, (*operand.taken, label))

    def __repr__(self) -> str:
        return f"take({self.axis}, {self.part})"
