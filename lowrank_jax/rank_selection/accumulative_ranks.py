"""Accumulative rank: how many singular values hold a share of their sum.

    rank(p) = the smallest k with  s_1 + ... + s_k >= p (s_1 + ... + s_n)

UNVERIFIED: the Cuttlefish paper is said to take the larger of this, with p = 0.8, and the scaled
stable rank for transformers, where the stable rank alone is too low. Its public code contains no
such thing: it takes half of full rank as the least instead.

Unlike the stable rank it needs all singular values: they are computed on the host in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowrank_jax import diagnostics
from lowrank_jax.table import Table


def accumulative_ranks(params: Any, table: Table, share: float) -> dict[str, float]:
    """The accumulative ranks of the kernels that a table names; of a stack, the largest.

    Args:
      params: as for :func:`lowrank_jax.rank_selection.stable_ranks`.
      table: only its paths, kinds and axes are read.
      share: p, in (0, 1].

    Raises:
      ValueError, TypeError: as :func:`lowrank_jax.diagnostics.spectrum`.

    >>> from lowrank_jax.ranks import RankScale
    >>> from lowrank_jax.rules import Rule, resolve
    >>> params = {"kernel": np.diag([4.0, 3.0, 2.0, 1.0])}
    >>> accumulative_ranks(params, resolve(params, [Rule("kernel", RankScale(1.0))]), share=0.8)
    {'kernel': 3.0}
    """
    spectra = diagnostics.spectrum(params, table)
    ranks = {}
    for row in table.rows:
        sums = np.cumsum(spectra[row.path], axis=-1)
        # The last partial sum is the whole, exactly: a share of 1 is reached.
        reached = sums >= share * sums[..., -1:]
        ranks[row.path] = float(np.max(np.argmax(reached, axis=-1)) + 1)
    return ranks
