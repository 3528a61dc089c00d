"""Convergence of stable ranks: from which epoch on a layer counts as settled.

For the stable ranks ``h_0, h_1, …`` of one layer, h_0 that of the initialization,

    ema_0 = h_0,   ema_i = a h_i + (1 - a) ema_(i-1),   a = 2 / (window + 1)
    drift = mean of the last ``tail`` of |gradient(ema)|,   in ranks per epoch,

with central differences inside and one-sided ones at both ends (``numpy.gradient``). A layer
settles when its drift is at most the threshold, no sooner than ``window + 1`` epochs after the
initialization; once settled it is not asked again. The threshold is absolute, whatever the size of
the layer, and grows when few layers are left, counted before each epoch's own verdicts.

========  ======  ====  =========  ================================
preset    window  tail  threshold  times, where few layers are left
========  ======  ====  =========  ================================
CIFAR     15      11    0.1        2.5 at 2, 5 at 1
IMAGENET  5       5     0.33       2.5 at 4 to 6, 5 at 3 and fewer
VIT       5       5     0.411      2.5 at 5 to 9, 5 at 4 and fewer
========  ======  ====  =========  ================================

Source: the public code of Wang et al., "Cuttlefish", MLSys 2023 (arXiv 2305.02538).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class ConvergenceDetector:
    """When layers settle.

    Attributes:
      window: of the moving average, in epochs.
      tail: how many of the last gradients are averaged; fewer, where there are fewer.
      threshold: the largest drift of a settled layer, in ranks per epoch.
      relaxations: pairs, the first of them ascending: where so many layers or fewer are left, the
        threshold is multiplied by the second; the first pair that applies counts.
      lag: how many of the latest measurements are not yet read. 1 is the published CIFAR program,
        which measures, trains one more epoch, and only then acts on what it has measured.

    >>> detector = ConvergenceDetector(window=2, tail=2, threshold=0.5)
    >>> detector.settled_at({"slow": [9, 7, 5, 4, 4, 4], "still": [3, 3, 3, 3, 3, 3]})
    {'slow': 5, 'still': 3}
    """

    window: int
    tail: int
    threshold: float
    relaxations: tuple[tuple[int, float], ...] = ()
    lag: int = 0

    def __post_init__(self) -> None:
        if self.window < 1 or self.tail < 1 or not self.threshold > 0 or self.lag not in (0, 1):
            raise ValueError(
                f"{self}: window and tail must be at least 1, the threshold positive, and lag 0 or "
                "1"
            )
        counts = [count for count, _ in self.relaxations]
        if counts != sorted(set(counts)) or any(not factor > 0 for _, factor in self.relaxations):
            raise ValueError(
                f"{self}: relaxations must be (layers left, factor) with the numbers of layers "
                "ascending and the factors positive"
            )

    def settled_at(self, histories: Mapping[str, Sequence[float]]) -> dict[str, int | None]:
        """The epoch before which each layer was first found settled; None where it was not yet.

        Args:
          histories: by layer, the stable ranks at the initialization and after each epoch; all of
            one length.

        The last of these epochs is the published E, the first that is trained low rank.
        """
        found: dict[str, int | None] = dict.fromkeys(histories)
        averages = {path: self.moving_average(values) for path, values in histories.items()}
        length = max(map(len, averages.values()), default=0)
        for epoch in range(self.window + 1, length):
            left = [path for path, at in found.items() if at is None]
            limit = self.threshold_for(len(left))
            seen = epoch + 1 - self.lag
            for path in left:
                if self._drift(averages[path][:seen]) <= limit:
                    found[path] = epoch
        return found

    def drift(self, values: Sequence[float]) -> float:
        """How fast one layer's stable rank moves at the end of its history, in ranks per epoch.

        Zero for a history of one measurement.
        """
        seen = self.moving_average(values)[: len(values) - self.lag or 1]
        return self._drift(seen) if len(seen) > 1 else 0.0

    def threshold_for(self, left: int) -> float:
        """The threshold while so many layers have not settled."""
        factors = (factor for count, factor in self.relaxations if left <= count)
        return self.threshold * next(factors, 1.0)

    def moving_average(self, values: Sequence[float]) -> np.ndarray:
        """The exponential moving average that begins with the first value, in float64."""
        weight = 2 / (self.window + 1)
        averages = [float(values[0])]
        for value in values[1:]:
            averages.append(weight * value + (1 - weight) * averages[-1])
        return np.array(averages)

    def _drift(self, average: np.ndarray) -> float:
        # The gradients of the tail, and nothing before it, look one entry further back.
        gradient = np.gradient(average[-self.tail - 1 :])
        return float(np.mean(np.abs(gradient[-self.tail :])))


CIFAR = ConvergenceDetector(15, 11, 0.1, ((1, 5.0), (2, 2.5)))
IMAGENET = ConvergenceDetector(5, 5, 0.33, ((3, 5.0), (6, 2.5)))
VIT = ConvergenceDetector(5, 5, 0.411, ((4, 5.0), (9, 2.5)))
