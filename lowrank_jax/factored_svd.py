"""The singular value decomposition of a product, from its factors, without forming the kernel.

With ``u = Q_u R_u`` and ``vtᵀ = Q_v R_v``, the product is ``Q_u (R_u m R_vᵀ) Q_vᵀ``; the
small core has the product's singular values, and its singular vectors, carried through the
orthonormal ``Q``, are the product's. Costs O((rows + columns) r²) instead of O(rows columns
min(rows, columns)).

Source: Golub and Van Loan, "Matrix Computations", chapter 8 (the R-SVD idea on both sides).
"""

from __future__ import annotations

import numpy as np

from lowrank_jax.svd import working_precision
from lowrank_jax.weights.two_factor import TwoFactorWeight


def factored_svd(weight: TwoFactorWeight) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thin SVD of the matrix a two-factor weight stands for.

    Returns:
      ``u (*batch, rows, k)``, ``s (*batch, k)``, ``vt (*batch, k, columns)`` on the host, with k
      the smallest of rank, rows and columns.

    >>> from lowrank_jax.weights import LowRank
    >>> u, s, vt = factored_svd(LowRank(u=np.array([[3.0], [4.0]]), vt=np.array([[0.0, 2.0]])))
    >>> s
    array([10.])
    """
    geometry = weight.geometry(**weight.axes)
    u, vt = geometry.fold(working_precision(weight.u), working_precision(weight.vt))
    q_left, core = np.linalg.qr(u)
    q_right, right = np.linalg.qr(np.swapaxes(vt, -1, -2))
    if weight.m is not None:
        core = core @ working_precision(weight.m)
    core = core @ np.swapaxes(right, -1, -2)
    small_u, s, small_vt = np.linalg.svd(core, full_matrices=False)
    return q_left @ small_u, s, small_vt @ np.swapaxes(q_right, -1, -2)
