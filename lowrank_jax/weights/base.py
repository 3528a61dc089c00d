"""The protocol of a factorized weight: a pytree node that stands for a dense kernel.

A factorized weight takes the place of an array in a parameter tree. Its leaves are the factors,
its type and static fields say how they combine, and everything that meets it (layers, decay,
diagnostics, export) asks it, instead of guessing from shapes or names. A new kind needs
``dense()`` alone; whatever else it defines, it defines because it can do it more cheaply.

Source of the idea: Khodak, Tenenholtz, Mackey and Fusi, "Initialization and Regularization of
Factorized Neural Layers", ICLR 2021, section 2.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NoReturn, Self, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jax import lax

Kind = TypeVar("Kind", bound="type[FactorizedWeight]")

Rank = int | tuple[int, ...]
"""One number, or several for a kind that has several ranks."""


class FactorizedWeight(abc.ABC):
    """A kernel stored as factors.

    Subclasses are frozen dataclasses registered with :func:`register_weight`. Any leaf may carry
    leading batch axes, so ``jax.vmap`` and ``flax.linen.scan`` work without special care. No
    validation happens on construction, because JAX rebuilds nodes around anything: shardings,
    masks, optimizer moments of another shape.
    """

    static_fields: ClassVar[tuple[str, ...]] = ()
    rank_count: ClassVar[int] = 1
    """How many numbers its rank is; with several, the rank is a tuple."""
    rule_depths: ClassVar[tuple[int, ...]] = (2,)
    """What a rule may ask for as ``depth``; 3, too, where there can be a square middle factor."""

    # What a kind must say.

    @abc.abstractmethod
    def dense(self, *, precision: lax.PrecisionLike = lax.Precision.HIGHEST) -> jax.Array:
        """The dense kernel this weight stands for, ``(*batch, *in, *out)``."""

    # What a kind may know better.

    def squared_norm(self) -> jax.Array:
        """``||dense()||_F^2``, summed over the batch axes too: a scalar.

        Accumulated in float32, or in the factors' own precision where that is higher.
        """
        dense = self.dense()
        accumulator = jnp.promote_types(dense.dtype, jnp.float32)
        return jnp.sum(jnp.square(dense.astype(accumulator)))

    def dot_general(
        self,
        x: jax.Array,
        dimension_numbers: lax.DotDimensionNumbers,
        precision: lax.PrecisionLike = None,
        preferred_element_type: Any = None,
        *,
        compose: bool | None = None,
    ) -> jax.Array:
        """``lax.dot_general(x, dense(), ...)``. A kind without a factored form composes."""
        refuse_factored(self, compose, "contraction")
        return lax.dot_general(
            x,
            self.dense(precision=precision),
            dimension_numbers,
            precision=precision,
            preferred_element_type=preferred_element_type,
        )

    def conv_general_dilated(
        self,
        x: jax.Array,
        *args: Any,
        compose: bool | None = None,
        between: Callable[[jax.Array], jax.Array] | None = None,
        **kwargs: Any,
    ) -> jax.Array:
        """``lax.conv_general_dilated(x, dense(), ...)``; composes, as ``dot_general`` does.

        ``between`` is a function of what lies between the two convolutions that some kinds apply.
        """
        refuse_factored(self, compose, "convolution")
        if between is not None:
            raise ValueError(
                f"{type(self).__name__} of shape {self.shape} is not applied as two convolutions, "
                "so nothing can lie between them; use SpatialLowRank or ChannelLowRank"
            )
        dense = self.dense(precision=kwargs.get("precision"))
        return lax.conv_general_dilated(x, dense, *args, **kwargs)

    def take(self, indices: jax.Array, *, compose: bool | None = None) -> jax.Array:
        """Rows ``dense()[indices]`` along the first axis, as an embedding looks them up."""
        refuse_factored(self, compose, "lookup")
        return jnp.take(self.dense(), indices, axis=0)

    # What follows.

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense kernel."""
        return jax.eval_shape(lambda weight: weight.dense(), self).shape

    @property
    def ndim(self) -> int:
        """Number of axes of the dense kernel, batch axes included."""
        return len(self.shape)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype the factors promote to."""
        return jnp.result_type(*(leaf.dtype for leaf in jax.tree.leaves(self)))

    @property
    def rank(self) -> Rank:
        """Rank of the stored kernel; for a kind that has no such number, full rank."""
        return min(self.shape[-2:])

    @property
    def depth(self) -> int:
        """Number of factors."""
        return sum(1 for _ in self.children())

    @property
    def factor_axes(self) -> dict[str, tuple[int | str | None, ...]]:
        """For each factor, the dense axis each of its axes comes from; none is known here."""
        return {name: (None,) * jnp.ndim(value) for name, value in self.children()}

    @property
    def axes(self) -> dict[str, int]:
        """The static fields, which together with the type fix the geometry."""
        return {name: getattr(self, name) for name in self.static_fields}

    @classmethod
    def named_axes(cls, axes: Mapping[str, int]) -> list[str]:
        """``name=value`` of those static fields that are not at the kind's defaults."""
        return [
            f"{name}={value}" for name, value in axes.items() if value != getattr(cls, name, None)
        ]

    def children(self) -> Iterator[tuple[str, Any]]:
        """The factor fields and their values, missing factors (``None``) left out."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if field.name not in self.static_fields:
                value = getattr(self, field.name)
                if value is not None:
                    yield field.name, value

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def __repr__(self) -> str:
        """The factors by dtype and shape: ``LowRank(u=float32[4,2], vt=float32[2,3])``."""

        def short(value: Any) -> str:
            if hasattr(value, "shape") and hasattr(value, "dtype"):
                return f"{value.dtype}[{','.join(map(str, value.shape))}]"
            return repr(value)

        fields = [f"{name}={short(value)}" for name, value in self.children()]
        fields += self.named_axes(self.axes)
        return f"{type(self).__name__}({', '.join(fields)})"

    def __matmul__(self, other: Any) -> NoReturn:
        self.__array__()

    __rmatmul__ = __matmul__

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} is a factorized weight, not an array: call .dense() for the "
            "kernel it stands for, or apply it with lowrank_jax.dot_general / conv_general_dilated."
        )

    # What a kind must say to be made from a kernel by `factorize`.

    @classmethod
    def check(cls, shape: Sequence[int], **axes: int) -> None:
        """Raises ValueError if a dense kernel of this shape cannot be stored as this kind."""
        raise ValueError(f"{cls.__name__} cannot be made from a dense kernel")

    @classmethod
    def static_axes(cls, shape: Sequence[int], **named: int) -> dict[str, int]:
        """The static fields for a dense kernel of this shape; those not named at their defaults.

        Raises:
          ValueError: the shape does not say which they are, or does not fit the kind.
        """
        axes = {name: named.get(name, getattr(cls, name)) for name in cls.static_fields}
        cls.check(shape, **axes)
        return axes

    @classmethod
    def rank_from_scale(cls, scale: float, shape: Sequence[int], **axes: int) -> Rank:
        """The rank a published rank scale means for this kind; at least 1."""
        raise ValueError(f"no rank scale is defined for {cls.__name__}")

    @classmethod
    def uniform_rank(cls, number: int, shape: Sequence[int], **axes: int) -> Rank:
        """The rank with this number everywhere; where there are several, none above full rank."""
        return number

    @classmethod
    def template(
        cls, shape: Sequence[int], dtype: Any, rank: Rank, depth: int, **axes: int
    ) -> FactorizedWeight:
        """The weight for a dense kernel of this shape, with ``ShapeDtypeStruct`` leaves."""
        raise ValueError(f"{cls.__name__} cannot be made from a dense kernel")

    @classmethod
    def matricize(cls, kernel: Any, **axes: int) -> Any:
        """The matrix ``(*batch, rows, columns)`` whose singular values this kind truncates."""
        raise ValueError(f"{cls.__name__} does not read a kernel as a matrix")

    @classmethod
    def draw(
        cls, kernel_init: Any, key: Any, shape: Sequence[int], dtype: Any, **axes: int
    ) -> jax.Array:
        """A dense kernel of this shape from ``kernel_init(key, shape, dtype)``."""
        return kernel_init(key, tuple(shape), dtype)

    @classmethod
    def initialize(
        cls, kernel: Any, rank: Rank, depth: int, init: Any, key: Any, **axes: int
    ) -> FactorizedWeight:
        """The weight an initializer makes of this dense kernel."""
        raise ValueError(f"{cls.__name__} cannot be made from a dense kernel")


def draw_each(
    kernel_init: Any, key: Any, batch: tuple[int, ...], shape: Sequence[int], dtype: Any
) -> jax.Array:
    """Kernels ``(*batch, *shape)``, drawn one by one: batch axes are no part of a kernel's fan."""

    def draw_one(key: Any) -> jax.Array:
        return kernel_init(key, tuple(shape), dtype)

    for _ in batch:
        draw_one = jax.vmap(draw_one)
    return draw_one(jax.random.split(key, batch) if batch else key)


@dataclass_transform(frozen_default=True, eq_default=False)
def register_weight(*, static: tuple[str, ...] = ()) -> Callable[[Kind], Kind]:
    """Class decorator: a frozen dataclass, registered with JAX; ``static`` fields are no leaves."""

    def decorate(cls: Kind) -> Kind:
        cls.static_fields = static
        # eq=False: comparing arrays has no single truth value; identity is what caches need.
        cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)  # type: ignore[assignment]
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        data = [name for name in names if name not in static]
        jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=list(static))
        return cls

    return decorate


def is_factorized(x: Any) -> bool:
    """Whether ``x`` is a factorized weight; the ``is_leaf`` to walk a tree kernel by kernel.

    >>> is_factorized(jnp.ones((2, 2)))
    False
    """
    return isinstance(x, FactorizedWeight)


def kinds() -> Mapping[str, type[FactorizedWeight]]:
    """Every concrete kind of weight by its class name, for reading saved tables."""

    def walk(cls: type[FactorizedWeight]) -> Iterator[type[FactorizedWeight]]:
        for subclass in cls.__subclasses__():
            if not subclass.__abstractmethods__ and dataclasses.is_dataclass(subclass):
                yield subclass
            yield from walk(subclass)

    return {kind.__name__: kind for kind in walk(FactorizedWeight)}  # type: ignore[type-abstract]


def refuse_factored(weight: FactorizedWeight, compose: bool | None, operation: str) -> None:
    """Raises if ``compose=False`` asks for a factored form that does not exist."""
    if compose is False:
        raise ValueError(
            f"{type(weight).__name__} of shape {weight.shape} has no factored form for this "
            f"{operation}; pass compose=True or leave compose at None."
        )
