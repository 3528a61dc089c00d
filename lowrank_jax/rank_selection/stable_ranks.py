"""Stable ranks on the device, in one batched call per shape, without a decomposition.

    stable rank = ||W||_F² / ||W||_2² = tr G / λ,     G = W Wᵀ or Wᵀ W, whichever is smaller,

with λ the largest eigenvalue of G. Power iteration finds it by repeated squaring,

    P = G^p / tr G^p,  p = 2^13,     λ (1 - ln(n) / p) <= tr G P <= λ,

which is 8192 steps in 13 products of n x n matrices. There is no start vector that could miss the
leading direction, so the bound holds for every spectrum: a stable rank is exact to ``ln(n) / 8192``
of itself, below one in a thousand up to n = 3600, however close the leading singular values are.
(Proof: with eigenvalues λ x_i, tr G P is the mean of λ x_i under the weights x_i^p; 1 - x_i is at
most ln(1 / x_i^p) / p, whose mean is the entropy of the weights less ln sum x_i^p >= 0, at most
ln(n) / p.) On random kernels the error is that of float32. The squarings cost 26 n³ operations, for
a convolution with 9 n inputs about as much as forming G.

Sources: Rudelson and Vershynin, "Sampling from large matrices", 2007 (stable rank); Wang et al.,
"Cuttlefish", MLSys 2023 (arXiv 2305.02538), which takes all singular values on the host instead.
"""

from __future__ import annotations

import collections
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowrank_jax.rules import is_abstract, named, require_values
from lowrank_jax.table import Row, Table, phrase, require_kernels, row_of
from lowrank_jax.tree import kernels
from lowrank_jax.weights import FactorizedWeight, is_factorized
from lowrank_jax.weights.explicit_axes import gathered

_SQUARINGS = 13


def stable_ranks(params: Any, table: Table) -> dict[str, float]:
    """``||W||_F² / ||W||_2²`` of the dense kernels that a table names.

    Each kernel is read as the matrix that the kind in its row would factorize. Of a stack of
    kernels (batch axes), the largest; of a kernel of zeros, 0; of all others, at least 1. For
    factorized weights see :func:`lowrank_jax.diagnostics.stable_rank`.

    Args:
      params: a tree with those kernels, dense and with their values at hand.
      table: only its paths, kinds and axes are read.

    Returns:
      Numbers by path, in the order of the table.

    Raises:
      ValueError: an entry of a kernel is not finite; the table names a path that is not there, a
        kernel of another shape, or one that is factorized already.
      TypeError: a kernel is being traced, or only its shape is known.

    >>> from lowrank_jax.ranks import RankScale
    >>> from lowrank_jax.rules import Rule, resolve
    >>> params = {"kernel": jnp.diag(jnp.array([2.0, 2.0, 1.0]))}
    >>> found = stable_ranks(params, resolve(params, [Rule("kernel", RankScale(1.0))]))
    >>> round(found["kernel"], 3)
    2.25
    """
    leaves = kernels(params)
    require_kernels(table, leaves)
    alike = collections.defaultdict(list)
    for row in table.rows:
        kernel = leaves[row.path]
        with named(row.path):
            _require_dense_values(row, kernel)
        form = (row.kind, tuple(row.axes.items()), row.shape, jnp.result_type(kernel))
        alike[form].append(row.path)
    # All are started before the first is waited for.
    started = [
        _of_kernels([leaves[path] for path in paths], kind=kind, axes=axes)
        for (kind, axes, _, _), paths in alike.items()
    ]
    found: dict[str, Any] = {}
    for paths, values in zip(alike.values(), jax.device_get(started), strict=True):
        found |= zip(paths, values.reshape(len(paths), -1).max(axis=1), strict=True)
    for path, value in found.items():
        if not np.isfinite(value):
            with named(path):
                require_values(leaves[path])
    return {row.path: float(found[row.path]) for row in table.rows}


def _require_dense_values(row: Row, kernel: Any) -> None:
    if is_factorized(kernel):
        raise ValueError(
            f"it is {phrase(row_of(row.path, kernel))} already, and stable ranks are measured of "
            "dense kernels here: measure before the switch, or leave it out of the table"
        )
    if is_abstract(kernel):
        raise TypeError("only its shape is known, and stable ranks need values")
    if isinstance(kernel, jax.core.Tracer):
        require_values(kernel)


@functools.partial(jax.jit, static_argnames=("kind", "axes"))
def _of_kernels(
    kernels: list[jax.Array], *, kind: type[FactorizedWeight], axes: tuple[tuple[str, int], ...]
) -> jax.Array:
    """The stable ranks ``(number, *batch)`` of kernels of one form."""
    grams = jnp.stack([_gram(kind.matricize(gathered(x, 0), **dict(axes))) for x in kernels])
    trace = _trace(grams)
    gram = _scaled(grams, trace)

    def square(_: int, power: jax.Array) -> jax.Array:
        power = jnp.matmul(power, power, precision=lax.Precision.HIGHEST)
        # Scaled at every step: a trace of one leaves the largest eigenvalue between 1 / n and 1.
        return _scaled(power, _trace(power))

    power = lax.fori_loop(0, _SQUARINGS, square, gram)
    share = jnp.sum(gram * power, axis=(-2, -1))
    return jnp.where(trace == 0, 0.0, jnp.maximum(1.0 / share, 1.0))


def _gram(matrix: jax.Array) -> jax.Array:
    """``(*batch, n, n)``, n the smaller side, of the matrix at the scale of its largest entry."""
    matrix = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
    matrix = _scaled(matrix, jnp.max(jnp.abs(matrix), axis=(-2, -1)))
    if matrix.shape[-2] > matrix.shape[-1]:
        matrix = jnp.swapaxes(matrix, -1, -2)
    return jnp.matmul(matrix, jnp.swapaxes(matrix, -1, -2), precision=lax.Precision.HIGHEST)


def _scaled(matrix: jax.Array, size: jax.Array) -> jax.Array:
    return matrix / jnp.where(size == 0, 1.0, size)[..., None, None]


def _trace(matrix: jax.Array) -> jax.Array:
    return jnp.trace(matrix, axis1=-2, axis2=-1)
