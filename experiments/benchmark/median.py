"""The median with an exact interval, from order statistics.

Of n independent samples of any continuous distribution, the number below the median is binomial
with p = 1/2. So the k-th smallest and the k-th largest sample enclose the median with probability

    1 - 2 P(Binomial(n, 1/2) < k),

and the largest k for which that is at least 95 % gives the interval, without any assumption on the
distribution. Below six samples no k does. Source: David and Nagaraja, "Order Statistics", 3rd
edition (2003), section 7.1.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

FEWEST = 6
"""The smallest number of samples with an interval."""

_LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A median and its 95 % interval; the bounds are None where there are too few samples."""

    median: float
    low: float | None
    high: float | None


def interval_rank(n: int) -> int:
    """The k of the module's formula: which sample from either end bounds the interval; 0 for none.

    >>> interval_rank(20), interval_rank(6), interval_rank(5)
    (6, 1, 0)
    """
    rank, below = 0, 0.0
    while True:
        below += math.comb(n, rank) / 2**n  # P(Binomial < rank + 1)
        if 1 - 2 * below < _LEVEL:
            return rank
        rank += 1


def estimate(samples: Sequence[float]) -> Estimate:
    """The median of `samples` with its interval.

    >>> estimate([3.0, 1.0, 2.0, 4.0, 6.0, 5.0])
    Estimate(median=3.5, low=1.0, high=6.0)
    """
    ordered = sorted(float(sample) for sample in samples)
    rank = interval_rank(len(ordered))
    low, high = (ordered[rank - 1], ordered[-rank]) if rank else (None, None)
    return Estimate(statistics.median(ordered), low, high)
