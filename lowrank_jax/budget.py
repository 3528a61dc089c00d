"""Parameter budgets: the rank scale at which a whole network has a wanted share of its parameters.

Source: the public code of Khodak et al., ICLR 2021 (arXiv 2105.01029), compression experiments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lowrank_jax.rules import Rule, resolve

_SMALLEST_SCALE = 1e-9


def target_ratio(params: Any, make_rules: Callable[[float], Sequence[Rule]], ratio: float) -> float:
    """The rank scale at which the whole tree has about ``ratio`` of its dense parameters.

    The published search, step by step: bisection of [0, 1]; it stops at an interval below 1e-6 or a
    ratio within 1e-6 of the target, and on the way back a deeper scale wins only where it is
    strictly closer, so that of scales with equal ranks the coarsest is returned.

    Args:
      params: the dense parameters, arrays or ``ShapeDtypeStruct``; all of them count.
      make_rules: the rules for a scale, e.g. ``lambda s: [Rule(".*/kernel", RankScale(s))]``.
      ratio: the wanted share of all parameters.

    Raises:
      ValueError: the ratio is not between 0 and 1, or no scale up to 1 reaches it.
      TypeError: a rule needs values and the tree has none.

    Source: the public code of Khodak et al., ICLR 2021 (compression experiments).

    >>> from lowrank_jax.ranks import RankScale
    >>> import jax
    >>> params = {"kernel": jax.ShapeDtypeStruct((64, 64), "float32")}
    >>> target_ratio(params, lambda s: [Rule("kernel", RankScale(s))], 0.25)
    0.125
    """
    if not 0 < ratio < 1:
        raise ValueError(f"ratio={ratio}: expected a share of the parameters between 0 and 1")

    def share(scale: float) -> float:
        return resolve(params, make_rules(scale)).ratio

    least, most = share(_SMALLEST_SCALE), share(1.0)
    if not least <= ratio <= most:
        raise ValueError(
            f"ratio={ratio} cannot be reached: these rules give between {least:.4g} (every rank at "
            f"its smallest) and {most:.4g} (scale 1) of the dense parameters"
        )

    def search(low: float, high: float) -> tuple[float, float]:
        middle = (low + high) / 2
        found = share(middle)
        if high - low < 1e-6 or abs(found - ratio) < 1e-6:
            return middle, found
        deeper = search(middle, high) if found < ratio else search(low, middle)
        return deeper if abs(deeper[1] - ratio) < abs(found - ratio) else (middle, found)

    return search(0.0, 1.0)[0]
