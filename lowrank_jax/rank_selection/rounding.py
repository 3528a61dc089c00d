"""Rounding: from a measured rank, which is no whole number, to the rank of a weight.

    r = min(R, multiple_of * ceil(max(ceil(x), minimum, 1) / multiple_of))

for an estimate x and full rank R. An estimate that is ``sr * (R / sr)`` in exact arithmetic can be
R and an ulp in floating point, and its ceiling R + 1: this happens for 7 whole numbers sr at
R = 196, 17 at 384 and 51 at 768, and the published program stops there on an assertion. So an
estimate counts as the whole number that it exceeds by no more than 1e-9, and full rank bounds it.

Source: the public code of Wang et al., "Cuttlefish", MLSys 2023 (arXiv 2305.02538). Multiples are
for hardware whose matrix units work in steps of 8 or 128.
"""

from __future__ import annotations

import math

_NOISE = 1e-9


def rounded_rank(estimate: float, full_rank: int, *, minimum: int = 1, multiple_of: int = 1) -> int:
    """The rank for an estimate: rounded up, at least the minimum, at most full rank.

    Args:
      estimate: a finite number.
      full_rank: the smaller side of the matrix.
      minimum: not above full rank.
      multiple_of: the rank is a multiple of this, rounded up, unless that exceeds full rank.

    >>> rounded_rank(33.2, 768), rounded_rank(33.2, 768, multiple_of=8), rounded_rank(900.0, 768)
    (34, 40, 768)
    """
    rank = max(math.ceil(estimate - _NOISE), minimum, 1)
    return min(full_rank, multiple_of * math.ceil(rank / multiple_of))


def require_multiple(multiple_of: int) -> None:
    """Raises ValueError unless ranks can be multiples of this."""
    if isinstance(multiple_of, bool) or not isinstance(multiple_of, int) or multiple_of < 1:
        raise ValueError(f"multiple_of={multiple_of!r}: expected a whole number >= 1")
