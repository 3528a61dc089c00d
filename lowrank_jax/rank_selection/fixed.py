"""Fixed: a table chosen beforehand, at an epoch chosen beforehand.

With ``epoch=0`` that is training low rank from the start, from the initialization's best
approximation (spectral initialization); with a later epoch, dense warm-up.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lowrank_jax.rank_selection.candidates import restructured
from lowrank_jax.rank_selection.decision import (
    Decision,
    History,
    Keep,
    Measured,
    epochs_trained,
    require_epoch,
)
from lowrank_jax.table import Table


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Factorizes the candidates as their table says, before an epoch.

    Attributes:
      candidates: at the ranks they will have.
      epoch: how many epochs are trained dense.

    >>> from lowrank_jax.ranks import FixedRank
    >>> from lowrank_jax.rules import Rule, resolve
    >>> import jax
    >>> params = {"kernel": jax.ShapeDtypeStruct((32, 64), "float32")}
    >>> selector = Fixed(resolve(params, [Rule("kernel", FixedRank(3))]), epoch=1)
    >>> selector.decide([{}]), selector.decide([{}, {}]).table.parameters
    (Keep(remark=''), 288)
    """

    candidates: Table
    epoch: int

    def __post_init__(self) -> None:
        require_epoch("epoch", self.epoch)

    def measure(self, params: Any) -> Measured:
        """Nothing."""
        return {}

    def decide(self, history: History) -> Decision:
        """As :meth:`RankSelector.decide` says."""
        if epochs_trained(history) < self.epoch:
            return Keep()
        return restructured(self.candidates, remark="")
