"""TensorTrain: a pointwise kernel, read as a tensor, as a chain of three cores.

    tensor[a, b, c] = core1[0, a, :] @ core2[:, b, :] @ core3[:, c, 0]

The ranks of a published scale s are ``round(s * min(d1, d2))`` and ``round(s * min(d2, d3))``, with
the dimensions of :mod:`lowrank_jax.weights.tensorization`. The decomposition sweeps from right to
left: a truncated SVD of the unfolding ``(d1 d2, d3)`` gives the third core, one of what is left,
unfolded to ``(d1, d2 r2)``, the second; both have orthonormal rows, and all the norm is in the
first core. The squared error is at most the sum of the squared singular values of the two
unfoldings past their rank.

The squared norm is a product of transfer matrices ``E_k = sum_b core_k[:, b, :]ᵀ E_(k-1)
core_k[:, b, :]``, of the sizes of the ranks; the kernel is not formed.

TensorLy has such a decomposition too; the root of this library needs JAX, NumPy and Optax alone,
and on the SVD it has already, a tensor train is a dozen lines, with batches, precision and finite
values looked after. Source: Oseledets, "Tensor-Train Decomposition", SIAM J. Sci. Comput. 2011.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowrank_jax import svd
from lowrank_jax.weights.base import register_weight
from lowrank_jax.weights.explicit_axes import batch_sharding
from lowrank_jax.weights.tensorization import Dims, Ranks, TensorizedWeight


@register_weight(static=("outputs", "spatial_axes"))
class TensorTrain(TensorizedWeight):
    """A pointwise kernel ``(*batch, 1, 1, in, out)``, or a matrix ``(*batch, in, out)``.

    Made by ``Rule(pattern, RankScale(0.7), TensorTrain)``; ``rank`` is ``(r1, r2)``.

    Attributes:
      core1: ``(*batch, 1, d1, r1)``.
      core2: ``(*batch, r1, d2, r2)``.
      core3: ``(*batch, r2, d3, 1)``.
      outputs: the size of the dense kernel's last axis.
      spatial_axes: how many axes of size one the dense kernel has before its last two: 2 or 0.

    >>> cores = [jnp.ones(shape) for shape in ((1, 4, 2), (2, 4, 3), (3, 3, 1))]
    >>> weight = TensorTrain(*cores, outputs=8, spatial_axes=2)
    >>> weight.shape, weight.rank, float(weight.squared_norm())
    ((1, 1, 6, 8), (2, 3), 1728.0)
    """

    core1: Any
    core2: Any
    core3: Any
    _: dataclasses.KW_ONLY
    outputs: int
    spatial_axes: int = 0

    rank_count: ClassVar[int] = 2
    equation: ClassVar[str] = "...xay,...ybz,...zcw->...abc"

    @property
    def dims(self) -> Dims:
        return self.core1.shape[-2], self.core2.shape[-2], self.core3.shape[-2]

    @property
    def rank(self) -> Ranks:
        """The sizes of the two contracted axes."""
        return self.core1.shape[-1], self.core2.shape[-1]

    def squared_norm(self) -> jax.Array:
        return train_squared_norm((self.core1, self.core2, self.core3))

    @classmethod
    def rank_sides(cls, dims: Dims) -> Ranks:
        return min(dims[:2]), min(dims[1:])

    @classmethod
    def full_rank(cls, dims: Dims) -> Ranks:
        d1, d2, d3 = dims
        return min(d1, d2 * d3), min(d1 * d2, d3)

    @classmethod
    def factor_shapes(cls, dims: Dims, rank: Ranks) -> dict[str, tuple[int, ...]]:
        (d1, d2, d3), (r1, r2) = dims, rank
        return {"core1": (1, d1, r1), "core2": (r1, d2, r2), "core3": (r2, d3, 1)}

    @classmethod
    def decompose(cls, tensor: np.ndarray, rank: Ranks) -> tuple[np.ndarray, ...]:
        return train_svd(tensor, rank)


def train_svd(tensor: np.ndarray, rank: Ranks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cores ``(1, d1, r1)``, ``(r1, d2, r2)``, ``(r2, d3, 1)`` of one tensor."""
    (d1, d2, d3), (r1, r2) = tensor.shape, rank
    left, third = right_orthonormal(tensor.reshape(d1 * d2, d3), r2)
    first, second = right_orthonormal(left.reshape(d1, d2 * r2), r1)
    return first[None], second.reshape(r1, d2, r2), third[..., None]


def right_orthonormal(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The best ``left (rows, rank) @ right (rank, columns)``, the rows of ``right`` orthonormal.

    Where the matrix has fewer singular values, the other columns of ``left`` are zero and the other
    rows of ``right`` any orthonormal ones, so that those columns have a gradient.
    """
    u, s, vt = svd.thin_svd(matrix, rank)
    missing = rank - len(s)
    left = np.pad(u * s, ((0, 0), (0, missing)))
    return left, np.concatenate([vt, svd.complement(vt, missing)]) if missing else vt


def train_squared_norm(cores: Iterable[jax.Array], metrics: Iterable[Any] = (None,) * 3) -> Any:
    """The squared Frobenius norm of a train of cores ``(*batch, left, middle, right)``: a scalar.

    Args:
      cores: from left to right.
      metrics: for each core, the inner products ``(*batch, middle, middle)`` of the directions that
        its middle axis counts; None where they are orthonormal.
    """
    transfer: Any = None
    for core, metric in zip(cores, metrics, strict=True):
        core = core.astype(jnp.promote_types(core.dtype, jnp.float32))
        moved = core
        if transfer is not None:
            moved = _contract("...xy,...yaz->...xaz", transfer, moved)
        if metric is not None:
            moved = _contract("...ab,...xbz->...xaz", metric, moved)
        sharding = batch_sharding(core, core.ndim - 3)
        transfer = _contract("...xay,...xaz->...yz", core, moved, out_sharding=sharding)
    return jnp.sum(transfer)


def _contract(subscripts: str, *operands: jax.Array, out_sharding: Any = None) -> jax.Array:
    return jnp.einsum(
        subscripts, *operands, precision=lax.Precision.HIGHEST, out_sharding=out_sharding
    )
