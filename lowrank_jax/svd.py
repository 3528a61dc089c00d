"""Singular value decompositions on the host, and balanced factors made of them.

For a matrix ``W = U S Vᵀ`` the best rank-r product is ``(U_r √S_r)(√S_r V_rᵀ)``; splitting the
singular values evenly makes both Gram matrices equal to ``S_r``, so the factors are balanced.

All functions take NumPy arrays with optional leading batch axes and run on the host, in float32 or
better, never inside a compiled step: compiling an SVD for an accelerator can take minutes, and its
derivative is undefined where singular values coincide. LAPACK's divide-and-conquer driver is called
through SciPy. Sources: Eckart and Young, "The approximation of one matrix by another of lower
rank", 1936; Halko, Martinsson and Tropp, "Finding structure with randomness", 2011 (the randomized
form).
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import scipy.linalg

Overcomplete = Literal["complement", "zero"]
Method = Literal["exact", "randomized"]

_OVERSAMPLING = 10
_POWER_ITERATIONS = 2


def require_overcomplete(overcomplete: str) -> None:
    """Raises ValueError unless it is a known way of filling directions past the kernel's rank."""
    if overcomplete not in get_args(Overcomplete):
        raise ValueError(
            f"overcomplete={overcomplete!r}: expected one of {', '.join(get_args(Overcomplete))}"
        )


def working_precision(matrix: np.ndarray) -> np.ndarray:
    """The matrix in float32, or in float64 if that is what it is stored in."""
    matrix = np.asarray(matrix)
    return matrix.astype(np.float64 if matrix.dtype == np.float64 else np.float32)


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Singular values in descending order, ``(*batch, min(rows, columns))``."""
    return np.linalg.svd(working_precision(matrix), compute_uv=False)


def thin_svd(
    matrix: np.ndarray, rank: int, method: Method = "exact"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The leading ``min(rank, rows, columns)`` singular triplets of one matrix.

    Args:
      matrix: ``(rows, columns)``.
      rank: how many triplets are wanted.
      method: ``"randomized"`` samples the range of the matrix, about four times faster at two
        thousand columns and up to a few percent less exact; it falls back to ``"exact"`` where
        nearly all triplets are wanted.

    Returns:
      ``u (rows, k)``, ``s (k,)``, ``vt (k, columns)``.
    """
    keep = min(rank, *matrix.shape)
    if method == "randomized" and keep + _OVERSAMPLING < min(matrix.shape):
        # A fixed sample: the same kernel must give the same factors every time.
        sample = np.random.default_rng(0).standard_normal(
            (matrix.shape[1], keep + _OVERSAMPLING), dtype=np.float64
        )
        image = matrix @ sample.astype(matrix.dtype)
        for _ in range(_POWER_ITERATIONS):
            image = matrix @ (matrix.T @ np.linalg.qr(image)[0])
        basis = np.linalg.qr(image)[0]
        small, s, vt = scipy.linalg.svd(basis.T @ matrix, full_matrices=False)
        u = basis @ small
    else:
        u, s, vt = scipy.linalg.svd(matrix, full_matrices=False)
    return u[:, :keep], s[:keep], vt[:keep]


def balanced_factors(
    u: np.ndarray,
    s: np.ndarray,
    vt: np.ndarray,
    rank: int,
    overcomplete: Overcomplete = "complement",
    noise: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Factors ``(rows, rank)`` and ``(rank, columns)`` of ``u @ diag(s) @ vt``, balanced.

    Where there are more directions than nonzero singular values, something must stand in the rest:

    * ``"complement"``: zeros in the extra columns of the left factor, so the product is exact; in
      the extra rows of the right factor, directions orthogonal to the kept ones, at the smallest
      nonzero kept singular value. Their gradient is alive, and the nuclear bound and the
      orthogonality of the factors are nearly kept. Rows past the orthogonal complement come from
      ``noise``.
    * ``"zero"``: zeros on both sides. Such a direction has zero gradient for ever.

    Args:
      u, s, vt: a thin SVD, ``(rows, k)``, ``(k,)``, ``(k, columns)``.
      rank: columns of the result; singular triplets past it are dropped.
      overcomplete: as above.
      noise: ``(number, columns)`` standard normal rows, used where the complement is exhausted;
        see :func:`noise_rows` for how many are needed.
    """
    columns = vt.shape[1]
    keep = min(rank, len(s))
    u, s, vt = u[:, :keep], s[:keep], vt[:keep]
    root = np.sqrt(s)
    left = np.zeros((u.shape[0], rank), u.dtype)
    right = np.zeros((rank, columns), vt.dtype)
    left[:, :keep] = u * root
    right[:keep] = root[:, None] * vt
    if overcomplete == "zero":
        return left, right

    tolerance = max(u.shape[0], columns) * np.finfo(s.dtype).eps * s.max(initial=0.0)
    alive = s > tolerance
    fill = np.sqrt(s[alive].min()) if alive.any() else s.dtype.type(1.0)
    left[:, :keep][:, ~alive] = 0.0
    right[:keep][~alive] = fill * vt[~alive]
    if rank > keep:
        extra = min(rank, columns) - keep
        rows = complement(vt, extra)
        missing = rank - keep - extra
        if missing > 0:
            assert noise is not None and len(noise) >= missing
            random = noise[:missing] / np.linalg.norm(noise[:missing], axis=1, keepdims=True)
            rows = np.concatenate([rows, random.astype(rows.dtype)])
        right[keep:] = fill * rows
    return left, right


def complement(rows: np.ndarray, count: int) -> np.ndarray:
    """``(count, columns)``: orthonormal rows, orthogonal to the orthonormal ``rows`` given."""
    # Any directions do, and completing the whole basis would take columns² memory.
    columns = rows.shape[1]
    sample = np.random.default_rng(0).standard_normal((columns, count)).astype(rows.dtype)
    return np.linalg.qr(np.concatenate([rows.T, sample], axis=1))[0][:, len(rows) :].T


def noise_rows(columns: int, rank: int) -> int:
    """How many random rows an overcomplete factorization needs: those past all ``columns``."""
    return max(0, rank - columns)
