"""Cuttlefish: ranks and switching epoch from the stable ranks, which settle as training goes on.

With ``sr_t`` the stable rank of a layer after t epochs and R its full rank,

    scale = R / sr_0,     rank = min(R, ceil(max(scale * sr_t, int(minimum_fraction * R))))

so at the initialization the rank is full, whatever the initializer: for independent entries and an
m x n matrix, m <= n, the scale is near ``(1 + sqrt(m / n))²``. The switch comes when all tracked
layers have settled (:mod:`lowrank_jax.rank_selection.convergence`), with the ranks measured then.

Where this departs from the published program, on purpose: every layer has its own scale, by path
(there, lists of unequal length are walked together, and layers get their neighbours' scales and
bounds); stable ranks are not truncated to whole numbers (``floored=True`` does, as published);
measurements are taken after each epoch; ranks are at least 1 and never above full; a rank at
break-even or above keeps the layer dense; and a run whose layers never settle does not silently
stay dense: it switches at ``latest_epoch`` and says which layers still moved.

Source: Wang, Agarwal, U-chupala, Tanaka, Xing and Papailiopoulos, "Cuttlefish: Low-Rank Model
Training without All the Tuning", MLSys 2023 (arXiv 2305.02538) and its public code.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal, get_args

from lowrank_jax.rank_selection.accumulative_ranks import accumulative_ranks
from lowrank_jax.rank_selection.candidates import (
    at_ranks,
    full_rank,
    matrix_shape,
    require_candidates,
    restructured,
)
from lowrank_jax.rank_selection.convergence import CIFAR, IMAGENET, VIT, ConvergenceDetector
from lowrank_jax.rank_selection.decision import (
    Decision,
    History,
    Keep,
    Measured,
    epochs_trained,
    require_epoch,
)
from lowrank_jax.rank_selection.rounding import require_multiple, rounded_rank
from lowrank_jax.rank_selection.stable_ranks import stable_ranks
from lowrank_jax.table import Row, Table

Metric = Literal["scaled_stable", "stable", "accumulative"]

PRESETS: dict[str, dict[str, Any]] = {
    "cifar": {"detector": CIFAR},
    "imagenet": {"detector": IMAGENET, "minimum_fraction": 1 / 5},
    "vit": {"detector": VIT, "minimum_fraction": 1 / 2},
    "cifar_reference": {"detector": dataclasses.replace(CIFAR, lag=1), "floored": True},
    "imagenet_reference": {"detector": IMAGENET, "minimum_fraction": 1 / 5, "floored": True},
    "vit_reference": {"detector": VIT, "minimum_fraction": 1 / 2, "floored": True},
}
"""Fields of :class:`Cuttlefish` for the published tasks: CIFAR and SVHN networks, ResNet-50, DeiT
and ResMLP; of the ``_reference`` ones stable ranks are truncated and epochs counted as published.
"""


@dataclasses.dataclass(frozen=True)
class Cuttlefish:
    """Factorizes the candidates at ranks from their stable ranks, once these have settled.

    Attributes:
      candidates: a table of dense kernels; its ranks are not read, and abstract shapes suffice.
      latest_epoch: the switch comes before this epoch at the latest. With None, as published, a run
        whose layers never settle stays dense to the end.
      detector: when layers have settled.
      tracked: the kernels that must settle; the candidates, if nothing is said. They need not be
        the same: for DeiT the attention's output projection is tracked and never factorized.
      metric: ``"scaled_stable"`` as above; ``"stable"`` the stable rank without the scale (near the
        paper's ablation, which for CIFAR takes full rank where the scaled one is above it);
        ``"accumulative"`` the larger of the scaled stable rank and the accumulative rank, see
        :mod:`lowrank_jax.rank_selection.accumulative_ranks`: unverified, and slower to measure.
      share: of the sum of singular values, for the metric ``"accumulative"``.
      minimum_fraction: no rank is below this share of full rank, rounded down.
      multiple_of: ranks are rounded up to multiples of this, never above full rank.
      floored: stable ranks are truncated to whole numbers before anything else, as published.

    >>> from lowrank_jax.ranks import RankScale
    >>> from lowrank_jax.rules import Rule, resolve
    >>> import jax
    >>> params = {"kernel": jax.ShapeDtypeStruct((32, 64), "float32")}
    >>> candidates = resolve(params, [Rule("kernel", RankScale(1.0))])
    >>> selector = Cuttlefish(candidates, latest_epoch=30, **PRESETS["imagenet"])
    >>> history = [{"stable_rank": {"kernel": rank}} for rank in [10.0, 4.0, 4.0, 4.0, 4.0, 4.0]]
    >>> selector.decide(history)
    Keep(remark='0 of 1 layers have settled')
    >>> selector.ranks(history)
    {'kernel': 13}
    """

    candidates: Table
    latest_epoch: int | None
    detector: ConvergenceDetector = CIFAR
    tracked: Table | None = None
    metric: Metric = "scaled_stable"
    share: float = 0.8
    minimum_fraction: float = 0.0
    multiple_of: int = 1
    floored: bool = False

    def __post_init__(self) -> None:
        require_candidates(self.candidates)
        require_multiple(self.multiple_of)
        if self.latest_epoch is not None:
            require_epoch("latest_epoch", self.latest_epoch)
        if self.metric not in get_args(Metric):
            raise ValueError(
                f"metric={self.metric!r}: expected one of {', '.join(get_args(Metric))}"
            )
        if not 0 <= self.minimum_fraction <= 1:
            raise ValueError(f"minimum_fraction={self.minimum_fraction!r}: expected a share")
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share!r}: expected a share in (0, 1]")
        if self.tracked is None:
            return
        if not self.tracked.rows:
            raise ValueError("tracked is an empty table: leave it out to track the candidates")
        for row in self.tracked.rows:
            other = self.candidates.row(row.path)
            if other is not None and (row.kind, row.axes) != (other.kind, other.axes):
                raise ValueError(
                    f"{row.path} is tracked as {row.kind.__name__} {row.axes} and a candidate as "
                    f"{other.kind.__name__} {other.axes}: it must be the same matrix in both"
                )

    def measure(self, params: Any) -> Measured:
        """The stable ranks of all candidates and tracked kernels, by path.

        For the metric ``"accumulative"`` the accumulative ranks of the candidates, too.
        """
        measured = {"stable_rank": stable_ranks(params, self._measured)}
        if self.metric == "accumulative":
            ranks = accumulative_ranks(params, self.candidates, self.share)
            measured["accumulative_rank"] = ranks
        return measured

    def decide(self, history: History) -> Decision:
        """As :meth:`RankSelector.decide` says."""
        epoch = epochs_trained(history)
        settled = self.settled_at(history)
        left = [path for path, at in settled.items() if at is None]
        if not left:
            return restructured(
                at_ranks(self.candidates, self.ranks(history)),
                f"{len(settled)} of {len(settled)} layers have settled",
            )
        if self.latest_epoch is None or epoch < self.latest_epoch:
            return Keep(f"{len(settled) - len(left)} of {len(settled)} layers have settled")
        asked = [path for path, at in settled.items() if at is None or at == epoch]
        limit = self.detector.threshold_for(len(asked))
        lines = [
            f"NOT SETTLED: {len(left)} of {len(settled)} layers at the latest epoch, "
            f"{self.latest_epoch}. They move by so many ranks per epoch, where {limit:g} would do "
            f"from epoch {self.detector.window + 1} on:"
        ]
        for path in left:
            drift = self.detector.drift(self._stable_ranks(history, path))
            lines.append(f"  {path}: {drift:.3g}")
        return restructured(at_ranks(self.candidates, self.ranks(history)), "\n".join(lines))

    def settled_at(self, history: History) -> dict[str, int | None]:
        """For each tracked layer the epoch before which it had settled, None where it has not."""
        rows = (self.candidates if self.tracked is None else self.tracked).rows
        return self.detector.settled_at(
            {row.path: self._stable_ranks(history, row.path) for row in rows}
        )

    def ranks(self, history: History) -> dict[str, int]:
        """The rank each candidate would get now, were it not for break-even."""
        return {row.path: self._rank(row, history) for row in self.candidates.rows}

    def _rank(self, row: Row, history: History) -> int:
        full, now = self._full_ranks[row.path], self._read(history, -1, "stable_rank", row.path)
        if self.metric == "stable":
            estimate = now
        else:
            estimate = now * self._scale(row, self._read(history, 0, "stable_rank", row.path))
        if self.metric == "accumulative":
            estimate = max(estimate, self._read(history, -1, "accumulative_rank", row.path))
        return rounded_rank(
            estimate,
            full,
            minimum=int(self.minimum_fraction * full),
            multiple_of=self.multiple_of,
        )

    def _scale(self, row: Row, initial: float) -> float:
        """Full rank in units of the initial stable rank.

        A kernel that begins with zeros has none: it gets the scale of independent entries.
        """
        if initial > 0:
            return self._full_ranks[row.path] / initial
        rows, columns = matrix_shape(row)
        return (1 + math.sqrt(min(rows, columns) / max(rows, columns))) ** 2

    def _stable_ranks(self, history: History, path: str) -> list[float]:
        return [self._read(history, index, "stable_rank", path) for index in range(len(history))]

    def _read(self, history: History, index: int, measure: str, path: str) -> float:
        try:
            value = history[index][measure][path]
        except KeyError:
            raise ValueError(
                f"history[{index}] has no {measure} of {path}: it must be what this selector's "
                "measure gives"
            ) from None
        return math.floor(value) if self.floored else value

    @functools.cached_property
    def _full_ranks(self) -> dict[str, int]:
        return {row.path: full_rank(row) for row in self.candidates.rows}

    @functools.cached_property
    def _measured(self) -> Table:
        tracked = () if self.tracked is None else self.tracked.rows
        others = [row for row in tracked if self.candidates.row(row.path) is None]
        return Table((*self.candidates.rows, *others))
