"""Taking turns: every contender once per alternation, in an order drawn anew each time.

A machine's speed drifts (other load, clock rates, heat) by more than the differences looked for. A
ratio is therefore taken within an alternation, where both contenders saw the same machine, and the
median over the alternations is reported:

    ratio of a to b = median over i of seconds[a][i] / seconds[b][i].
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Mapping

from experiments.benchmark.median import Estimate, estimate
from experiments.errors import RunError
from experiments.metrics import duration

Turn = Callable[[], float]
"""Runs one unit of work to its end and returns the seconds it took."""

Say = Callable[[str], None]

_WARM_UP = 2
_MOST = 100  # Alternations, of those that are only made because there is time.
_SECONDS_BETWEEN_LINES = 10.0


@dataclasses.dataclass(frozen=True)
class Samples:
    """Seconds by contender, one entry per alternation."""

    seconds: Mapping[str, tuple[float, ...]]

    def time(self, name: str) -> Estimate:
        """The median time of a contender."""
        return estimate(self.seconds[name])

    def ratio(self, name: str, other: str) -> Estimate:
        """The median of the paired ratios: below 1, `name` is faster than `other`."""
        pairs = zip(self.seconds[name], self.seconds[other], strict=True)
        return estimate([a / b for a, b in pairs])


def timed(
    work: Callable[[], object], calls: int = 1, clock: Callable[[], float] = time.perf_counter
) -> Turn:
    """A turn of `calls` calls of `work`, which must not return before the work is done.

    The turn returns the seconds of one call; many calls are for work too short to be timed alone.
    """

    def turn() -> float:
        started = clock()
        for _ in range(calls):
            work()
        return (clock() - started) / calls

    return turn


def alternate(
    turns: Mapping[str, Turn],
    alternations: int,
    say: Say,
    clock: Callable[[], float] = time.monotonic,
    seconds: float = 0.0,
) -> Samples:
    """Warms every contender up, then lets them take turns.

    Args:
      turns: the contenders by name.
      alternations: how many turns each of them gets.
      say: where progress goes: a line every ten seconds, with the time left.
      clock: seconds from any origin, for the progress.
      seconds: where more alternations fit in so many seconds, by the last turns of the warm-up,
        there are as many as fit, at most a hundred.

    Raises:
      RunError: fewer than one alternation.
    """
    if alternations < 1:
        raise RunError(f"alternations={alternations}: expected a whole number, at least 1")
    for _ in range(_WARM_UP):
        together = sum(turn() for turn in turns.values())
    if seconds:
        alternations = max(alternations, min(_MOST, int(seconds / together)))
    taken: dict[str, list[float]] = {name: [] for name in turns}
    started = told = clock()
    for done in range(1, alternations + 1):
        # Nobody always follows the same neighbour, whose leavings in the caches would be his.
        for name in random.Random(done).sample(list(turns), len(turns)):
            taken[name].append(turns[name]())
        now = clock()
        if now - told >= _SECONDS_BETWEEN_LINES and done < alternations:
            told = now
            left = (now - started) / done * (alternations - done)
            say(f"  alternation {done}/{alternations}, {duration(left)} left")
    return Samples({name: tuple(values) for name, values in taken.items()})
