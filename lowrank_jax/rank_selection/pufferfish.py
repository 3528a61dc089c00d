"""Pufferfish: after a fixed number of dense epochs, a fixed fraction of full rank.

    r = max(1, int(fraction * min(rows, columns)))

for every candidate. Which layers those are (not the first ones, not the classifier), the fraction
(a quarter) and the epoch (80 of 300 for CIFAR-10, 15 of 90 for ImageNet) are the user's choice.

Source: Wang, Agarwal and Papailiopoulos, "Pufferfish: Communication-efficient Models At No Extra
Cost", MLSys 2021 (arXiv 2103.03936) and its public code.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lowrank_jax.rank_selection.candidates import (
    at_ranks,
    full_rank,
    require_candidates,
    restructured,
)
from lowrank_jax.rank_selection.decision import (
    Decision,
    History,
    Keep,
    Measured,
    epochs_trained,
    require_epoch,
)
from lowrank_jax.rank_selection.rounding import require_multiple, rounded_rank
from lowrank_jax.table import Table


@dataclasses.dataclass(frozen=True)
class Pufferfish:
    """Factorizes the candidates at a fraction of full rank, before an epoch.

    Attributes:
      candidates: a table of dense kernels; its ranks are not read, and abstract shapes suffice.
      epoch: how many epochs are trained dense.
      fraction: of full rank, rounded down as published.
      multiple_of: ranks are rounded up to multiples of this, never above full rank.

    >>> from lowrank_jax.ranks import RankScale
    >>> from lowrank_jax.rules import Rule, resolve
    >>> import jax
    >>> params = {"kernel": jax.ShapeDtypeStruct((32, 64), "float32")}
    >>> selector = Pufferfish(resolve(params, [Rule("kernel", RankScale(1.0))]), epoch=2)
    >>> selector.decide([{}, {}, {}]).table.row("kernel").rank
    8
    """

    candidates: Table
    epoch: int
    fraction: float = 0.25
    multiple_of: int = 1

    def __post_init__(self) -> None:
        require_candidates(self.candidates)
        require_epoch("epoch", self.epoch)
        require_multiple(self.multiple_of)
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction!r}: expected a share of full rank in (0, 1]")

    def measure(self, params: Any) -> Measured:
        """Nothing."""
        return {}

    def decide(self, history: History) -> Decision:
        """As :meth:`RankSelector.decide` says."""
        if epochs_trained(history) < self.epoch:
            return Keep()
        ranks = {}
        for row in self.candidates.rows:
            full = full_rank(row)
            rank = int(self.fraction * full)
            ranks[row.path] = rounded_rank(rank, full, multiple_of=self.multiple_of)
        return restructured(at_ranks(self.candidates, ranks), remark="")
