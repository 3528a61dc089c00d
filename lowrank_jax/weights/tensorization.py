"""A pointwise kernel read as a tensor of three dimensions: what TensorTrain and Tucker share.

A 1 x 1 convolution, the second half of a depthwise-separable one, is a matrix ``(in, out)``. Its
transpose, flattened row by row, becomes a tensor ``(d1, d2, d3)``, which is then stored as a
network of small cores. With ``N = in * out`` and c the rounded cube root of N, the dimensions are
``(c, c, c)`` where that makes N; otherwise d1, and after it d2, is the smallest divisor of what is
left of N that is at least c (all that is left, if there is none), and d3 is the rest.

The singular values that such a kind truncates are those of the tensor's unfoldings, one matrix for
each of its ranks. It is applied by composing the dense kernel first, as published: its cores mix
inputs with outputs, so that a product by one of them is no smaller layer.

Sources: Novikov et al., "Tensorizing Neural Networks", NeurIPS 2015 (arXiv 1509.06569);
Gray et al., "Separable Layers Enable Structured Efficient Linear Substitutions", 2019 (arXiv
1906.00859), and the code behind it, which Khodak et al., ICLR 2021 (arXiv 2105.01029), section 5,
compare with.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowrank_jax import svd
from lowrank_jax.host import on_host
from lowrank_jax.weights.base import FactorizedWeight, draw_each
from lowrank_jax.weights.explicit_axes import gathered

Dims = tuple[int, int, int]
Ranks = tuple[int, ...]


@functools.cache
def dimensionize(size: int) -> Dims:
    """Three dimensions for a tensor of this many entries.

    >>> dimensionize(160 * 16), dimensionize(160 * 160), dimensionize(8)
    ((16, 16, 10), (32, 32, 25), (2, 2, 2))
    """
    root = round(size ** (1 / 3))
    if root**3 == size:
        return root, root, root

    def smallest_divisor(number: int) -> int:
        small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
        divisors = {*small, *(number // d for d in small)}
        return min((d for d in divisors if d >= root), default=number)

    first = smallest_divisor(size)
    second = smallest_divisor(size // first)
    return first, second, size // (first * second)


class TensorizedWeight(FactorizedWeight):
    """Base of the kinds that store a pointwise kernel as a tensor ``(d1, d2, d3)``.

    Attributes:
      core1, core2, core3: leaves ``(*batch, left, middle, right)``, contracted left with right.
      outputs: the dense kernel's last axis; the one before it is what is left of the entries.
      spatial_axes: axes of size one before those two: 2 for a 1 x 1 convolution, 0 for a matrix.
      equation: the einsum of the leaves, in the order of the fields, that makes the tensor.
    """

    equation: ClassVar[str]

    core1: Any
    core2: Any
    core3: Any
    outputs: int
    spatial_axes: int

    # What a kind must say.

    @property
    @abc.abstractmethod
    def dims(self) -> Dims:
        """The dimensions of the tensor."""

    @property
    @abc.abstractmethod
    def rank(self) -> Ranks:
        """One number for each unfolding that is truncated."""

    @classmethod
    @abc.abstractmethod
    def rank_sides(cls, dims: Dims) -> Ranks:
        """For each rank, what a rank scale is a share of."""

    @classmethod
    @abc.abstractmethod
    def full_rank(cls, dims: Dims) -> Ranks:
        """The ranks at which every tensor can be stored."""

    @classmethod
    @abc.abstractmethod
    def factor_shapes(cls, dims: Dims, rank: Ranks) -> dict[str, tuple[int, ...]]:
        """The shape of each leaf, in the order of the fields, batch axes left out."""

    @classmethod
    @abc.abstractmethod
    def decompose(cls, tensor: np.ndarray, rank: Ranks) -> tuple[np.ndarray, ...]:
        """The leaves for one tensor, in the order of the fields."""

    # What follows.

    def dense(self, *, precision: lax.PrecisionLike = lax.Precision.HIGHEST) -> jax.Array:
        dtype = self.dtype
        tensor = jnp.einsum(
            self.equation,
            # Gathered, since no sharding of a core's axes is one of the kernel's.
            *(gathered(value, self.batch_ndim) for _, value in self.children()),
            precision=precision,
            # Rounded once, at the end: roundings to bfloat16 after each contraction add up.
            preferred_element_type=jnp.promote_types(dtype, jnp.float32),
        ).astype(dtype)
        *batch, d1, d2, d3 = tensor.shape
        inputs = d1 * d2 * d3 // self.outputs
        # By way of a vector: a mesh with explicit axes allows to merge axes and to split them.
        matrix = tensor.reshape(*batch, -1).reshape(*batch, self.outputs, inputs)
        kernel = jnp.swapaxes(matrix, -1, -2)
        return kernel.reshape(*batch, *(1,) * self.spatial_axes, inputs, self.outputs)

    @property
    def batch_ndim(self) -> int:
        """Number of leading axes that count kernels and are not part of one."""
        return self.core1.ndim - 3

    @property
    def factor_axes(self) -> dict[str, tuple[int | str | None, ...]]:
        """Only the batch axes of a factor come from the dense kernel's: all others mix them."""
        batch = self.batch_ndim
        return {
            name: (*range(batch), *(None,) * (value.ndim - batch))
            for name, value in self.children()
        }

    @property
    def shape(self) -> tuple[int, ...]:
        batch, entries = self.core1.shape[: self.batch_ndim], math.prod(self.dims)
        shape = (*batch, *(1,) * self.spatial_axes, entries // self.outputs, self.outputs)
        expected = self.template(shape, self.dtype, self.rank, self.depth, **self.axes)
        found = [value.shape for _, value in self.children()]
        if found != [value.shape for _, value in expected.children()]:
            raise ValueError(f"{self!r}: these do not fit together; expected {expected!r}")
        return shape

    @classmethod
    def check(cls, shape: Sequence[int], **axes: int) -> None:
        outputs, spatial_axes = axes["outputs"], axes["spatial_axes"]
        *leading, _, last = shape
        if 0 in shape:
            raise ValueError(f"a kernel without entries, shape {tuple(shape)}")
        if not 0 <= spatial_axes <= len(leading):
            raise ValueError(
                f"spatial_axes={spatial_axes}, and the kernel's shape is {tuple(shape)}: expected "
                "2 for a 1 x 1 convolution, 0 for a matrix"
            )
        if outputs != last:
            raise ValueError(f"outputs={outputs}, and the kernel's shape is {tuple(shape)}")
        if any(size != 1 for size in leading[len(leading) - spatial_axes :]):
            raise ValueError(
                f"{cls.__name__} is for pointwise kernels (1, 1, in, out), found shape "
                f"{tuple(shape)}: make the convolution depthwise-separable and store its pointwise "
                "kernel so, or use SpatialLowRank or ChannelLowRank"
            )

    @classmethod
    def static_axes(cls, shape: Sequence[int], **named: int) -> dict[str, int]:
        if len(shape) < 2 or ("spatial_axes" not in named and len(shape) not in (2, 4)):
            raise ValueError(
                f"a kernel of shape {tuple(shape)} is neither a matrix (in, out) nor a pointwise "
                "convolution (1, 1, in, out): where leading axes count kernels, name "
                "spatial_axes=0 or spatial_axes=2 in the rule"
            )
        axes = {"outputs": shape[-1], "spatial_axes": len(shape) - 2} | named
        cls.check(shape, **axes)
        return axes

    @classmethod
    def rank_from_scale(cls, scale: float, shape: Sequence[int], **axes: int) -> Ranks:
        sides = cls.rank_sides(dimensionize(shape[-2] * shape[-1]))
        return tuple(max(1, round(scale * side)) for side in sides)

    @classmethod
    def uniform_rank(cls, number: int, shape: Sequence[int], **axes: int) -> Ranks:
        full = cls.full_rank(dimensionize(shape[-2] * shape[-1]))
        return tuple(min(number, most) for most in full)

    @classmethod
    def template(  # type: ignore[override]
        cls, shape: Sequence[int], dtype: Any, rank: Ranks, depth: int, **axes: int
    ) -> Self:
        axes = cls.static_axes(shape, **axes)
        batch, dims = cls._split(shape, axes)[0], dimensionize(shape[-2] * shape[-1])
        full = cls.full_rank(dims)
        fits = isinstance(rank, tuple) and len(rank) == len(full)
        if not fits or not all(1 <= r <= most for r, most in zip(rank, full, strict=True)):
            raise ValueError(
                f"ranks {rank} for a {cls.__name__} of a {tuple(shape)} kernel, read as {dims}: "
                f"expected numbers from 1 to {full}; past those there is nothing to store"
            )
        leaves = {
            name: jax.ShapeDtypeStruct((*batch, *factor), dtype)
            for name, factor in cls.factor_shapes(dims, rank).items()
        }
        return cls(**leaves, **axes)

    @classmethod
    def matricize(cls, kernel: Any, **axes: int) -> Any:
        """``(*batch, in, out)``: all of the kernel; a rank truncates the tensor's unfoldings."""
        batch, _ = cls._split(kernel.shape, axes)
        return kernel.reshape(*batch, *kernel.shape[-2:])

    @classmethod
    def draw(
        cls, kernel_init: Any, key: Any, shape: Sequence[int], dtype: Any, **axes: int
    ) -> jax.Array:
        batch, kernel = cls._split(shape, axes)
        return draw_each(kernel_init, key, batch, kernel, dtype)

    @classmethod
    def initialize(  # type: ignore[override]
        cls, kernel: Any, rank: Ranks, depth: int, init: Any, key: Any, **axes: int
    ) -> Self:
        working = jnp.promote_types(kernel.dtype, jnp.float32)
        planned = cls.template(kernel.shape, working, rank, depth, **axes)
        names, leaves = zip(*planned.children(), strict=True)
        matrix = cls.matricize(kernel, **planned.axes)
        matrix = init.to_decompose(matrix, matrix.shape[-2:], key)
        decompose = functools.partial(cls._decompose_each, planned.dims, rank)
        found = on_host(decompose, leaves, matrix)
        dtype = jax.dtypes.canonicalize_dtype(kernel.dtype)
        return planned.replace(
            **{name: jnp.asarray(leaf, dtype) for name, leaf in zip(names, found, strict=True)}
        )

    @classmethod
    def _decompose_each(
        cls, dims: Dims, rank: Ranks, matrices: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """The leaves, with batch axes, for matrices ``(*batch, in, out)``."""
        matrices = svd.working_precision(matrices)
        batch = matrices.shape[:-2]
        tensors = (matrices[index].T.reshape(dims) for index in np.ndindex(*batch))
        each = [cls.decompose(tensor, rank) for tensor in tensors]
        return tuple(np.reshape(leaf, (*batch, *leaf[0].shape)) for leaf in zip(*each, strict=True))

    @staticmethod
    def _split(shape: Sequence[int], axes: dict[str, int]) -> tuple[tuple[int, ...], ...]:
        """The batch axes of a dense shape, and the axes of one kernel."""
        batch = len(shape) - 2 - axes["spatial_axes"]
        return tuple(shape[:batch]), tuple(shape[batch:])
