"""What all two-factor weights share: ``kernel = u @ vt``, or ``u @ m @ vt`` when deep.

A kind is a :class:`~lowrank_jax.weights.geometry.Geometry` and a way of applying itself; the
product, its norm, its counts and its making from a dense kernel follow from the geometry here.

The squared Frobenius norm never forms the kernel: with the Gram matrices ``A = uᵀu`` and
``B = vt vtᵀ`` (both ``r x r``),

    ||u m vt||_F^2 = tr(mᵀ A m B) = sum((mᵀ A m) * B).

Source: Khodak et al., ICLR 2021 (arXiv 2105.01029), section 3.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from lowrank_jax.open_sizes import InconclusiveDimensionOperation
from lowrank_jax.weights.base import FactorizedWeight, draw_each
from lowrank_jax.weights.explicit_axes import batch_sharding, gathered
from lowrank_jax.weights.geometry import RANK, Geometry


class TwoFactorWeight(FactorizedWeight):
    """Base of the kinds with an input factor ``u``, an output factor ``vt`` and maybe ``m``."""

    rule_depths: ClassVar[tuple[int, ...]] = (2, 3)
    u: Any
    vt: Any
    m: Any

    @classmethod
    @abc.abstractmethod
    def geometry(cls, **axes: int) -> Geometry:
        """The geometry for these static axes."""

    @property
    def batch_ndim(self) -> int:
        """Number of leading axes that count kernels and are not part of one."""
        return self.u.ndim - len(self.geometry(**self.axes).u)

    @property
    def factor_axes(self) -> dict[str, tuple[int | str | None, ...]]:
        """For each factor, the dense axis (batch axes included) each of its axes comes from.

        ``"rank"`` marks a rank axis and ``None`` an axis of size one.
        """
        geometry, batch = self.geometry(**self.axes), self.batch_ndim
        sources = {"u": geometry.u, "vt": geometry.vt, "m": (RANK, RANK)}
        return {
            name: (
                *range(batch),
                *(batch + s if isinstance(s, int) else s for s in sources[name]),
            )
            for name, _ in self.children()
        }

    @property
    def shape(self) -> tuple[int, ...]:
        geometry = self.geometry(**self.axes)
        u_shape, vt_shape = jnp.shape(self.u), jnp.shape(self.vt)
        if len(u_shape) - len(geometry.u) != len(vt_shape) - len(geometry.vt):
            raise ValueError(
                f"{type(self).__name__}: u {u_shape} and vt {vt_shape} differ in batch axes"
            )
        shape = geometry.dense_shape(u_shape, vt_shape)
        expected = geometry.factor_shapes(shape, u_shape[-1])
        if expected != (u_shape, vt_shape):
            raise ValueError(
                f"{type(self).__name__}: u {u_shape} and vt {vt_shape} do not fit together; "
                f"expected {expected[0]} and {expected[1]}"
            )
        batch = shape[: len(shape) - geometry.dense_ndim]
        square = (*batch, u_shape[-1], u_shape[-1])
        if self.m is not None and jnp.shape(self.m) != square:
            raise ValueError(
                f"{type(self).__name__}: m has shape {jnp.shape(self.m)}, expected {square}"
            )
        return shape

    @property
    def rank(self) -> int:
        """Number of columns of ``u``."""
        return self.u.shape[-1]

    @property
    def depth(self) -> int:
        """Number of factors: 2, or 3 with the square middle factor."""
        return 2 if self.m is None else 3

    def fold_middle(self, precision: lax.PrecisionLike = lax.Precision.HIGHEST) -> Any:
        """``m @ vt`` in the shape of ``vt``; ``vt`` itself where there is no ``m``."""
        if self.m is None:
            return self.vt
        geometry = self.geometry(**self.axes)
        before, after = geometry.labels(geometry.vt, "s"), geometry.labels(geometry.vt, "r")
        return jnp.einsum(f"...rs,...{before}->...{after}", self.m, self.vt, precision=precision)

    def composing_is_cheaper(self, positions: Any, factored: Any) -> bool:
        """Whether one product with the composed kernel costs fewer multiply-adds than two.

        Args:
          positions: how many vectors the kernel is applied to. A number that is left open, as
            ``jax.export`` does for a batch, stands for large ones: composing costs nothing then.
          factored: multiply-adds of the two products.

        Raises:
          ValueError: sizes that are left open, such as height and width, leave the answer open.
        """
        kernel = math.prod(self.geometry(**self.axes).matrix_shape(self.shape))
        composing = kernel * self.rank if isinstance(positions, int) else 0
        try:
            return factored > composing + kernel * positions
        except InconclusiveDimensionOperation as error:
            raise ValueError(
                "which form is the cheaper depends on sizes that are left open: give compose=True "
                f"or compose=False ({str(error).partition(chr(10))[0]})"
            ) from error

    def dense(self, *, precision: lax.PrecisionLike = lax.Precision.HIGHEST) -> jax.Array:
        geometry = self.geometry(**self.axes)
        u, vt = geometry.labels(geometry.u, "r"), geometry.labels(geometry.vt, "r")
        # The axes of size one get letters of their own, so that einsum sums them away.
        vt = vt.translate(str.maketrans("ABCDEFGH", "IJKLMNOP"))
        dense = "".join(chr(ord("a") + axis) for axis in range(geometry.dense_ndim))
        return jnp.einsum(
            f"...{u},...{vt}->...{dense}", self.u, self.fold_middle(precision), precision=precision
        )

    def squared_norm(self) -> jax.Array:
        geometry = self.geometry(**self.axes)
        left = gram(self.u, geometry.labels(geometry.u, "r"), geometry.labels(geometry.u, "s"))
        right = gram(self.vt, geometry.labels(geometry.vt, "r"), geometry.labels(geometry.vt, "s"))
        if self.m is not None:
            m = gathered(self.m.astype(left.dtype), self.batch_ndim)
            left = jnp.einsum(
                "...pr,...pq,...qs->...rs", m, left, m, precision=lax.Precision.HIGHEST
            )
        return jnp.sum(left * right)

    @classmethod
    def check(cls, shape: Sequence[int], **axes: int) -> None:
        expected = cls.geometry(**axes).dense_ndim
        if 0 in shape:
            raise ValueError(f"a kernel without entries, shape {tuple(shape)}")
        if len(shape) < expected:
            raise ValueError(
                f"{cls.__name__} needs a kernel of at least {expected} axes, found {tuple(shape)}"
            )

    @classmethod
    def template(  # type: ignore[override]
        cls, shape: Sequence[int], dtype: Any, rank: int, depth: int, **axes: int
    ) -> FactorizedWeight:
        geometry = cls.geometry(**axes)
        u, vt = geometry.factor_shapes(shape, rank)
        m = (*geometry.split(shape)[0], rank, rank) if depth == 3 else None
        return cls(
            u=jax.ShapeDtypeStruct(u, dtype),  # type: ignore[call-arg]
            vt=jax.ShapeDtypeStruct(vt, dtype),
            m=None if m is None else jax.ShapeDtypeStruct(m, dtype),
            **axes,
        )

    @classmethod
    def matricize(cls, kernel: Any, **axes: int) -> Any:
        return cls.geometry(**axes).matricize(kernel)

    @classmethod
    def from_matrices(
        cls, u: Any, vt: Any, m: Any, shape: Sequence[int], **axes: int
    ) -> TwoFactorWeight:
        """From factor matrices ``(*batch, rows, r)``, ``(*batch, r, columns)`` and ``m``."""
        u, vt = cls.geometry(**axes).unfold(u, vt, shape)
        return cls(u=u, vt=vt, m=m, **axes)  # type: ignore[call-arg]

    @classmethod
    def draw_shape(cls, shape: Sequence[int], **axes: int) -> tuple[int, ...]:
        """``(*receptive field, in, out)``: one kernel as initializers of dense kernels read it."""
        return tuple(shape)

    @classmethod
    def draw(
        cls, kernel_init: Any, key: Any, shape: Sequence[int], dtype: Any, **axes: int
    ) -> jax.Array:
        batch, one = cls.geometry(**axes).split(shape)
        kernels = draw_each(kernel_init, key, batch, cls.draw_shape(one, **axes), dtype)
        return kernels.reshape(shape)

    @classmethod
    def initialize(  # type: ignore[override]
        cls, kernel: Any, rank: int, depth: int, init: Any, key: Any, **axes: int
    ) -> FactorizedWeight:
        geometry = cls.geometry(**axes)
        *receptive, n_in, n_out = cls.draw_shape(geometry.split(kernel.shape)[1], **axes)
        fans = (math.prod(receptive) * n_in, math.prod(receptive) * n_out)
        u, vt, m = init(geometry.matricize(kernel), fans, rank, depth, key)
        weight = cls.from_matrices(u, vt, m, kernel.shape, **axes)
        dtype = jax.dtypes.canonicalize_dtype(kernel.dtype)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), weight)


def gram(factor: jax.Array, row: str, column: str) -> jax.Array:
    """``(*batch, r, r)``: the inner products of the rank-one components of one factor.

    One contraction over all axes but the rank axis, without a reshape to a matrix, so that the
    factor keeps its sharding. ``row`` and ``column`` are the einsum letters of the trailing axes.
    """
    accumulator = jnp.promote_types(factor.dtype, jnp.float32)
    factor = factor.astype(accumulator)
    batch = factor.ndim - len(row)
    return jnp.einsum(
        f"...{row},...{column}->...rs",
        factor,
        factor,
        precision=lax.Precision.HIGHEST,
        out_sharding=batch_sharding(factor, batch),
    )
