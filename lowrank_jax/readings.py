"""Readings: what a view reads of a kernel, as a chain of factors with labelled axes.

A factorized kernel is read without being formed. Each axis of the dense kernel belongs to a factor,
so a step of a view acts on the factors that have the axis, and what the view gives is a chain of
operands ``u, m, vt``. The Gram matrix along one axis of size d,

    G[i, j] = sum over all free axes f of  kernel[f, i] kernel[f, j],

is folded along that chain from the far end: with the axis in ``vt`` it is
``vtᵀ (mᵀ (uᵀ u) m) vt``, in this order, and on the way there are only factors and Gram matrices
along one axis of them: r x r, and at the end d x d.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lowrank_jax.weights import is_factorized
from lowrank_jax.weights.geometry import RANK
from lowrank_jax.weights.two_factor import TwoFactorWeight

Label = Hashable
"""An axis of an operand: a tuple for one that comes from the dense kernel, else a string."""


@dataclasses.dataclass(frozen=True)
class Operand:
    """An array with labelled axes; ``taken`` are the dense axes of which a part was taken."""

    array: Any
    axes: tuple[Label, ...]
    taken: tuple[Label, ...] = ()

    def renamed(self, names: dict[Label, Label]) -> Operand:
        axes = tuple(names.get(label, label) for label in self.axes)
        return dataclasses.replace(self, axes=axes)


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a view reads of a leaf.

    Attributes:
      axes: the labels of what is read, in order.
      operands: whose product it is, neighbours in the chain sharing a rank axis.
    """

    axes: tuple[Label, ...]
    operands: tuple[Operand, ...]

    def at(self, index: Mapping[Label, int]) -> Reading:
        """What is read at one index of some of its axes, which are gone then."""
        operands = (
            Operand(
                operand.array[tuple(index.get(label, slice(None)) for label in operand.axes)],
                tuple(label for label in operand.axes if label not in index),
                operand.taken,
            )
            for operand in self.operands
        )
        return Reading(tuple(x for x in self.axes if x not in index), tuple(operands))

    def chain(self, axis: int) -> tuple[Operand, ...]:
        """The operands, that with this axis of what is read last."""
        label = self.axes[axis]
        return self.operands if label in self.operands[-1].axes else self.operands[::-1]

    def links(self, axis: int, shared: Sequence[int]) -> Iterable[Link]:
        """The chain as steps that lead from its far end to an axis, see :class:`Link`."""
        chain, kept = self.chain(axis), {self.axes[other] for other in shared}
        before: Label | None = None
        for position, operand in enumerate(chain):
            later = {label for other in chain[position + 1 :] for label in other.axes}
            after = self.axes[axis]
            if position + 1 < len(chain):
                (after,) = (label for label in operand.axes if _is_rank(label) and label in later)
            batch = {label for label in kept | later if not _is_rank(label)}
            yield Link(operand, before, after, batch - {after})
            before = after

    def gram(self, axis: int, shared: Sequence[int]) -> jax.Array:
        """``(*shared, d, d)``: the inner products along one axis of what is read.

        Args:
          axis: of size d.
          shared: axes that are kept apart; over all others is summed.
        """
        gram: Operand | None = None
        for link in self.links(axis, shared):
            operand = dataclasses.replace(link.operand, array=_widened(link.operand.array))
            # The operand as the sum's second factor: its links are axes of their own.
            second = operand.renamed({link.before: "before", link.after: "after"})
            if gram is not None:
                gram = gram.renamed({"after": "before"})
                labels = dict.fromkeys([*gram.axes, *second.axes])
                second = _contract(gram, second, tuple(x for x in labels if x != "before"))
            labels = dict.fromkeys([*operand.axes, *second.axes])
            batch = [label for label in labels if label in link.batch]
            gram = _contract(operand, second, (*batch, link.after, "after"))
        assert gram is not None
        result = (*(self.axes[other] for other in (*shared, axis)), "after")
        return gram.array.transpose([gram.axes.index(label) for label in result])


@dataclasses.dataclass(frozen=True)
class Link:
    """A step along the chain of operands.

    Attributes:
      operand: the array of this step.
      before, after: its axes toward the operand before it (None at the far end) and toward the next
        one; at the end of the chain, the axis that the chain leads to.
      batch: axes that must not be summed yet, because a later operand has them or they are shared.
    """

    operand: Operand
    before: Label | None
    after: Label
    batch: set[Label]


def _is_rank(label: Label) -> bool:
    return not isinstance(label, tuple)


def operands_of(leaf: Any) -> list[Operand]:
    """The chain whose product an array or a factorized weight is."""
    if not isinstance(leaf, TwoFactorWeight):
        array = leaf.dense() if is_factorized(leaf) else leaf
        return [Operand(array, tuple((axis,) for axis in range(array.ndim)))]
    sources = leaf.factor_axes
    ranks = {"u": ["left"], "m": ["left", "right"], "vt": ["left" if leaf.m is None else "right"]}
    operands = []
    for name in ("u", "m", "vt"):
        factor = getattr(leaf, name)
        if factor is not None:
            nothing = tuple(at for at, source in enumerate(sources[name]) if source is None)
            rank = iter(ranks[name])
            axes = (
                next(rank) if source == RANK else (source,)
                for source in sources[name]
                if source is not None
            )
            operands.append(Operand(factor.squeeze(nothing) if nothing else factor, tuple(axes)))
    return operands


def _widened(array: Any) -> jax.Array:
    array = jnp.asarray(array)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def subscripts(operands: Sequence[Operand], result: Sequence[Label]) -> str:
    """What ``einsum`` calls the sum over all axes that are not in the result.

    >>> subscripts([Operand(None, (0, 1)), Operand(None, (1, 2))], (0, 2))
    'ab,bc->ac'
    """
    labels = dict.fromkeys(label for operand in operands for label in operand.axes)
    letters = dict(zip(labels, string.ascii_letters, strict=False))
    *inputs, output = (
        "".join(letters[label] for label in axes)
        for axes in (*(operand.axes for operand in operands), result)
    )
    return f"{','.join(inputs)}->{output}"


def _contract(left: Operand, right: Operand, result: tuple[Label, ...]) -> Operand:
    """The sum over all axes that are not in the result."""
    array = jnp.einsum(
        subscripts((left, right), result),
        left.array,
        right.array,
        precision=lax.Precision.HIGHEST,
        out_sharding=_sharding((left, right), result),
    )
    return Operand(array, result)


def _sharding(operands: Iterable[Operand], result: tuple[Label, ...]) -> NamedSharding | None:
    """On explicit axes: the result's axes are split as in the operands, rank axes not at all."""
    found: dict[Label, Any] = {}
    mesh = None
    for operand in operands:
        sharding = getattr(jax.typeof(operand.array), "sharding", None)
        if sharding is not None and AxisType.Explicit in sharding.mesh.axis_types:
            mesh = sharding.mesh
            for label, names in zip(operand.axes, sharding.spec, strict=False):
                used = {name for other in found.values() for name in _names(other)}
                if label in result and not _is_rank(label) and not used & _names(names):
                    found.setdefault(label, names)
    if mesh is None:
        return None
    return NamedSharding(mesh, PartitionSpec(*(found.get(label) for label in result)))


def _names(entry: Any) -> set[str]:
    """The mesh axes in one entry of a partition spec."""
    return set(entry) if isinstance(entry, tuple) else set() if entry is None else {entry}
