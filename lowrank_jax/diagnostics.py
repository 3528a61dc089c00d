"""Diagnostics: norms, ranks and spectra of the kernels that factorized weights stand for.

With the singular values ``s`` of a kernel ``W = u m vt`` read as the matrix its kind factorizes:

    frobenius_norm     ||W||_F = sqrt(sum s²)      from Gram matrices: sum((mᵀ uᵀu m) * (vt vtᵀ))
    nuclear_norm       ||W||_* = sum s
    nuclear_bound      (||u||² + ||m||² + ||vt||²) / 2, at least ||W||_* where there is no m
    non_orthogonality  mean of ||G - diag(G)||_F / ||G||_F over G = uᵀu and G = vt vtᵀ
    stable_rank        ||W||_F² / ||W||_2²
    effective_rank     exp(-sum p log p) with p = s / sum s
    spectrum           s, in descending order

The bound is what ordinary weight decay on the factors penalizes, and it is tight where the factors
are balanced, ``uᵀu = vt vtᵀ``. Spectral initialization makes both of these diagonal, and the
non-orthogonality tells how far they have moved from that. With ``m`` the bound bounds nothing, and
the non-orthogonality is not defined. A kernel of zeros has stable and effective rank 0.

Every function takes ``(params, table=None)`` and returns ``{path: value}`` in the tree's order, a
value being a float or, for a stack of kernels, an array of the batch axes. Without a table the
factorized weights are measured; with one, the dense kernels it names are too, each read as the
matrix that the kind in its row would factorize, so that a dense baseline can be compared. All of it
runs on the host in float64, and the kernel of a two-factor weight is never formed. A weight of
another kind is measured by its dense kernel, as the matrix its kind names: ``(in, out)`` for
``TensorTrain`` and ``Tucker``.

Sources: Khodak et al., ICLR 2021 (arXiv 2105.01029), section 4 and its code (norms, bound,
non-orthogonality); Roy and Vetterli, "The effective rank", EUSIPCO 2007; Rudelson and Vershynin,
"Sampling from large matrices", 2007 (stable rank).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from lowrank_jax import svd
from lowrank_jax.factored_svd import factored_svd
from lowrank_jax.rules import is_abstract, named, require_values
from lowrank_jax.table import Row, Table, require_kernels
from lowrank_jax.tree import kernels
from lowrank_jax.weights import FactorizedWeight, is_factorized
from lowrank_jax.weights.two_factor import TwoFactorWeight

Value = float | np.ndarray


def frobenius_norm(params: Any, table: Table | None = None) -> dict[str, Value]:
    """Frobenius norm of each kernel.

    Args:
      params: a tree with factorized weights, their values at hand (nothing here can be traced).
      table: dense kernels to measure as well; see the module's description.

    Raises:
      ValueError: an entry of a kernel is not finite; or the table names a path that is not there,
        or a kernel of another shape.
      TypeError: a kernel is being traced, or only its shape is known.

    >>> from lowrank_jax.weights import LowRank
    >>> weight = LowRank(u=np.eye(3, 2), vt=np.array([[3.0, 0.0], [0.0, 4.0]]))
    >>> frobenius_norm({"dense": {"kernel": weight, "bias": np.zeros(2)}})
    {'dense/kernel': 5.0}
    """
    return _measure(params, table, _frobenius_norm)


def nuclear_norm(params: Any, table: Table | None = None) -> dict[str, Value]:
    """Nuclear norm, the sum of the singular values. Arguments as :func:`frobenius_norm`."""
    return _measure(params, table, _nuclear_norm)


def nuclear_bound(params: Any, table: Table | None = None) -> dict[str, Value]:
    """Half the sum of the squared norms of all factors, ``m`` included.

    Of two-factor weights only. Arguments as :func:`frobenius_norm`.
    """
    return _measure(params, table, _nuclear_bound)


def non_orthogonality(params: Any, table: Table | None = None) -> dict[str, Value]:
    """Share of the factors' Gram matrices that is off their diagonals, between 0 and 1.

    Of two-factor weights without ``m`` only. A Gram matrix of zeros counts as 0. Arguments as
    :func:`frobenius_norm`.
    """
    return _measure(params, table, _non_orthogonality)


def stable_rank(params: Any, table: Table | None = None) -> dict[str, Value]:
    """``||W||_F² / ||W||_2²``, at most the rank. Arguments as :func:`frobenius_norm`."""
    return _measure(params, table, _stable_rank)


def effective_rank(params: Any, table: Table | None = None) -> dict[str, Value]:
    """Exponential of the entropy of the singular values as shares of their sum.

    At most the rank, and equal to it where all singular values are. Arguments as
    :func:`frobenius_norm`. Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007.

    >>> from lowrank_jax.weights import LowRank
    >>> weight = LowRank(u=np.eye(3, 2), vt=np.array([[3.0, 0.0], [0.0, 3.0]]))
    >>> round(effective_rank({"kernel": weight})["kernel"], 12)
    2.0
    """
    return _measure(params, table, _effective_rank)


def spectrum(params: Any, table: Table | None = None) -> dict[str, np.ndarray]:
    """Singular values in descending order, ``(*batch, k)``. Arguments as :func:`frobenius_norm`.

    ``k`` is the smallest of rows, columns and, for weights of two factors, rank.

    >>> from lowrank_jax.weights import LowRank
    >>> weight = LowRank(u=np.eye(3, 2), vt=np.array([[3.0, 0.0], [0.0, 4.0]]))
    >>> spectrum({"kernel": weight})
    {'kernel': array([4., 3.])}
    """
    return _measure(params, table, _spectrum)  # type: ignore[return-value]


def report(params: Any, table: Table | None = None) -> dict[str, dict[str, Value]]:
    """All the measures, by name and path, at the cost of one decomposition per kernel.

    The names are those of the functions here. Every name is there, with no paths if nothing has
    that measure. Arguments as :func:`frobenius_norm`.

    >>> from lowrank_jax.weights import LowRank
    >>> result = report({"kernel": LowRank(u=np.ones((2, 1)), vt=np.ones((1, 2)))})
    >>> result["nuclear_bound"], list(result)[:3]
    ({'kernel': 2.0}, ['frobenius_norm', 'nuclear_norm', 'nuclear_bound'])
    """
    result: dict[str, dict[str, Value]] = {name: {} for name in _MEASURES}
    for path, kernel in _measured(params, table):
        for name, measure in _MEASURES.items():
            value = measure(kernel)
            if value is not None:
                result[name][path] = _plain(value)
    return result


# A kernel as the measures see it: in float64, on the host, what several of them need kept.


@dataclasses.dataclass(frozen=True)
class _Matrix:
    """A dense kernel as a matrix, ``(*batch, rows, columns)``."""

    matrix: np.ndarray

    @property
    def squared_norm(self) -> np.ndarray:
        return _sum_of_squares(self.matrix)

    @functools.cached_property
    def singular_values(self) -> np.ndarray:
        return svd.singular_values(self.matrix)


@dataclasses.dataclass(frozen=True)
class _Factors:
    """A two-factor weight, with factor matrices ``(*batch, rows, r)``, ``(*batch, r, columns)``."""

    weight: TwoFactorWeight

    @functools.cached_property
    def matrices(self) -> tuple[np.ndarray, np.ndarray]:
        return self.weight.geometry(**self.weight.axes).fold(self.weight.u, self.weight.vt)

    @functools.cached_property
    def grams(self) -> tuple[np.ndarray, np.ndarray]:
        u, vt = self.matrices
        return np.swapaxes(u, -1, -2) @ u, vt @ np.swapaxes(vt, -1, -2)

    @property
    def squared_norm(self) -> np.ndarray:
        left, right = self.grams
        if self.weight.m is not None:
            left = np.swapaxes(self.weight.m, -1, -2) @ left @ self.weight.m
        # Rounding can leave a product that cancels to zero slightly below it.
        return np.maximum((left * right).sum((-1, -2)), 0.0)

    @functools.cached_property
    def singular_values(self) -> np.ndarray:
        return factored_svd(self.weight)[1]


_Kernel = _Matrix | _Factors


def _frobenius_norm(kernel: _Kernel) -> np.ndarray:
    return np.sqrt(kernel.squared_norm)


def _nuclear_norm(kernel: _Kernel) -> np.ndarray:
    return kernel.singular_values.sum(-1)


def _nuclear_bound(kernel: _Kernel) -> np.ndarray | None:
    if not isinstance(kernel, _Factors):
        return None
    middle = () if kernel.weight.m is None else (kernel.weight.m,)
    return sum(map(_sum_of_squares, (*kernel.matrices, *middle))) / 2  # type: ignore[return-value]


def _non_orthogonality(kernel: _Kernel) -> np.ndarray | None:
    if not isinstance(kernel, _Factors) or kernel.weight.m is not None:
        return None
    left, right = map(_off_diagonal_share, kernel.grams)
    return (left + right) / 2


def _stable_rank(kernel: _Kernel) -> np.ndarray:
    s = kernel.singular_values
    return np.square(_shares(s, s.max(-1, initial=0.0))).sum(-1)


def _effective_rank(kernel: _Kernel) -> np.ndarray:
    s = kernel.singular_values
    shares = _shares(s, s.sum(-1))
    logarithms = np.log(np.where(shares > 0, shares, 1.0))
    return np.where(shares.sum(-1) > 0, np.exp(-(shares * logarithms).sum(-1)), 0.0)


def _spectrum(kernel: _Kernel) -> np.ndarray:
    return kernel.singular_values


_MEASURES: Mapping[str, Callable[[_Kernel], np.ndarray | None]] = {
    "frobenius_norm": _frobenius_norm,
    "nuclear_norm": _nuclear_norm,
    "nuclear_bound": _nuclear_bound,
    "non_orthogonality": _non_orthogonality,
    "stable_rank": _stable_rank,
    "effective_rank": _effective_rank,
    "spectrum": _spectrum,
}


def _sum_of_squares(matrix: np.ndarray) -> np.ndarray:
    return np.square(matrix).sum((-1, -2))


def _off_diagonal_share(gram: np.ndarray) -> np.ndarray:
    norm = np.sqrt(_sum_of_squares(gram))
    off_diagonal = np.where(np.eye(gram.shape[-1], dtype=bool), 0.0, gram)
    return np.sqrt(_sum_of_squares(off_diagonal)) / np.where(norm > 0, norm, 1.0)


def _shares(values: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return values / np.where(whole > 0, whole, 1.0)[..., None]


# From a tree to kernels.


def _measure(
    params: Any, table: Table | None, measure: Callable[[_Kernel], np.ndarray | None]
) -> dict[str, Value]:
    values = ((path, measure(kernel)) for path, kernel in _measured(params, table))
    return {path: _plain(value) for path, value in values if value is not None}


def _plain(value: np.ndarray) -> Value:
    return float(value) if np.ndim(value) == 0 else value


def _measured(params: Any, table: Table | None) -> list[tuple[str, _Kernel]]:
    leaves = kernels(params)
    if table is not None:
        require_kernels(table, leaves)
    measured: list[tuple[str, _Kernel]] = []
    for path, leaf in leaves.items():
        row = None if table is None else table.row(path)
        with named(path):
            if is_factorized(leaf):
                measured.append((path, _read_weight(leaf)))
            elif row is not None:
                measured.append((path, _read_dense(leaf, row)))
    return measured


def _read_weight(weight: FactorizedWeight) -> _Kernel:
    if isinstance(weight, TwoFactorWeight):
        return _Factors(_on_host(weight))
    _require_numbers(weight)
    kernel = _on_host(weight.dense())
    # A matrix is its own matrix; of another kernel, the kind must say which one it is.
    return _Matrix(kernel if kernel.ndim == 2 else weight.matricize(kernel, **weight.axes))


def _read_dense(kernel: Any, row: Row) -> _Kernel:
    return _Matrix(row.kind.matricize(_on_host(kernel), **row.axes))


def _require_numbers(kernel: Any) -> None:
    if is_abstract(kernel):
        raise TypeError("only its shape is known, and diagnostics need values")
    require_values(kernel)


def _on_host(kernel: Any) -> Any:
    _require_numbers(kernel)
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float64), kernel)
