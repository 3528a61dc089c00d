"""Tucker: a pointwise kernel, read as a tensor, as a small core and a matrix for each dimension.

    tensor[a, b, c] = sum_xyz core[x, y, z] * factor1[a, x] * factor2[b, y] * factor3[c, z]

The ranks of a published scale s are ``round(s * d_k)``, with the dimensions of
:mod:`lowrank_jax.weights.tensorization`. The core ``(r1, r2, r3)`` is kept as a tensor train

    core1 (1, r1, b),  core2 (b, r2, r3),  core3 (r3, r3, 1),   b = min(d1, r2 * r3),

which holds more numbers than the core itself, but is what the published parameter counts are of.

The decomposition is the sequentially truncated higher-order SVD, from the third dimension to the
first: the directions of each dimension that matter most become orthonormal columns of its factor
matrix, and what is left is the core. Its cores 2 and 3 have orthonormal rows, and all the norm is
in core 1. The squared error is at most the sum of the squared singular values of the three
unfoldings past their rank.

The squared norm is that of the core's train, with the factors' Gram matrices in between; the kernel
is not formed.

Why no tensor library is used: :mod:`lowrank_jax.weights.tensor_train`.

Sources: Tucker, "Some mathematical notes on three-mode factor analysis", Psychometrika 1966;
Vannieuwenhoven et al., "A new truncation strategy for the higher-order singular value
decomposition", SIAM J. Sci. Comput. 2012; the ranks and the form of the core are those of the
public code of Khodak et al., ICLR 2021 (arXiv 2105.01029), section 5.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from lowrank_jax.weights.base import register_weight
from lowrank_jax.weights.tensor_train import right_orthonormal, train_squared_norm, train_svd
from lowrank_jax.weights.tensorization import Dims, Ranks, TensorizedWeight
from lowrank_jax.weights.two_factor import gram


@register_weight(static=("outputs", "spatial_axes"))
class Tucker(TensorizedWeight):
    """A pointwise kernel ``(*batch, 1, 1, in, out)``, or a matrix ``(*batch, in, out)``.

    Made by ``Rule(pattern, RankScale(0.7), Tucker)``; ``rank`` is ``(r1, r2, r3)``.

    Attributes:
      core1: ``(*batch, 1, r1, b)``.
      core2: ``(*batch, b, r2, r3)``.
      core3: ``(*batch, r3, r3, 1)``.
      factor1: ``(*batch, d1, r1)``.
      factor2: ``(*batch, d2, r2)``.
      factor3: ``(*batch, d3, r3)``.
      outputs: the size of the dense kernel's last axis.
      spatial_axes: how many axes of size one the dense kernel has before its last two: 2 or 0.

    >>> import jax.numpy as jnp
    >>> cores = [jnp.ones(shape) for shape in ((1, 1, 4), (4, 2, 2), (2, 2, 1))]
    >>> factors = [jnp.ones(shape) for shape in ((4, 1), (4, 2), (3, 2))]
    >>> weight = Tucker(*cores, *factors, outputs=8, spatial_axes=2)
    >>> weight.shape, weight.rank, float(weight.squared_norm())
    ((1, 1, 6, 8), (1, 2, 2), 49152.0)
    """

    core1: Any
    core2: Any
    core3: Any
    factor1: Any
    factor2: Any
    factor3: Any
    _: dataclasses.KW_ONLY
    outputs: int
    spatial_axes: int = 0

    rank_count: ClassVar[int] = 3
    equation: ClassVar[str] = "...uxp,...pyq,...qzv,...ax,...by,...cz->...abc"

    @property
    def dims(self) -> Dims:
        return self.factor1.shape[-2], self.factor2.shape[-2], self.factor3.shape[-2]

    @property
    def rank(self) -> Ranks:
        """The numbers of columns of the factor matrices."""
        return self.factor1.shape[-1], self.factor2.shape[-1], self.factor3.shape[-1]

    def squared_norm(self) -> jax.Array:
        factors = (self.factor1, self.factor2, self.factor3)
        metrics = [gram(factor, "ar", "as") for factor in factors]
        return train_squared_norm((self.core1, self.core2, self.core3), metrics)

    @classmethod
    def rank_sides(cls, dims: Dims) -> Ranks:
        return dims

    @classmethod
    def full_rank(cls, dims: Dims) -> Ranks:
        return dims

    @classmethod
    def factor_shapes(cls, dims: Dims, rank: Ranks) -> dict[str, tuple[int, ...]]:
        (d1, d2, d3), (r1, r2, r3) = dims, rank
        b = min(d1, r2 * r3)
        cores = {"core1": (1, r1, b), "core2": (b, r2, r3), "core3": (r3, r3, 1)}
        return cores | {"factor1": (d1, r1), "factor2": (d2, r2), "factor3": (d3, r3)}

    @classmethod
    def decompose(cls, tensor: np.ndarray, rank: Ranks) -> tuple[np.ndarray, ...]:
        (d1, d2, d3), (r1, r2, r3) = tensor.shape, rank
        left, factor3 = right_orthonormal(tensor.reshape(d1 * d2, d3), r3)
        left = left.reshape(d1, d2, r3).swapaxes(1, 2)
        left, factor2 = right_orthonormal(left.reshape(d1 * r3, d2), r2)
        left = left.reshape(d1, r3, r2).swapaxes(1, 2)
        # The train is exact here: its first rank b is full.
        first, core2, core3 = train_svd(left, (min(d1, r2 * r3), r3))
        left, factor1 = right_orthonormal(first[0].T, r1)
        return left.T[None], core2, core3, factor1.T, factor2.T, factor3.T
