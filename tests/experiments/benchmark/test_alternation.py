"""Taking turns, on a machine whose clock and speed are made up."""

from __future__ import annotations

import collections

import pytest

from experiments.benchmark.alternation import alternate, timed
from experiments.errors import RunError


class Machine:
    """A clock that work moves forward, on a machine that gets slower all the time."""

    def __init__(self, slowing: float = 0.0) -> None:
        self.now, self.slowing = 0.0, slowing
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def work(self, name: str, seconds: float):
        def run() -> None:
            self.now += seconds * (1 + self.slowing) ** (len(self.log) // 3)
            self.log.append(name)

        return run

    def turn(self, name: str, seconds: float):
        return timed(self.work(name, seconds), clock=self.clock)


def silent(line: str) -> None:
    pass


def test_ratios_are_paired_so_that_drift_cancels():
    machine = Machine(slowing=0.1)
    turns = {name: machine.turn(name, s) for name, s in [("a", 1.0), ("b", 2.0), ("c", 4.0)]}
    samples = alternate(turns, 20, silent, machine.clock)
    # All three run at one speed within an alternation: the ratios are exact, the times drift.
    for name, other, expected in (("a", "b", 0.5), ("c", "a", 4.0), ("b", "c", 0.5)):
        ratio = samples.ratio(name, other)
        assert (ratio.median, ratio.low, ratio.high) == pytest.approx((expected,) * 3, rel=1e-12)
    time = samples.time("a")
    assert time.high > 1.5 * time.low
    # Of n ordered times the median is between the n/2-th and the next; warming up took two rounds.
    middle = (1.1**11 + 1.1**12) / 2
    assert time.median == pytest.approx(middle, rel=1e-12)


def test_everyone_has_one_turn_in_each_alternation_in_changing_order():
    machine = Machine()
    turns = {name: machine.turn(name, 1.0) for name in "abc"}
    samples = alternate(turns, 12, silent, machine.clock)
    assert {name: len(found) for name, found in samples.seconds.items()} == dict.fromkeys("abc", 12)
    log = machine.log[len(machine.log) - 36 :]
    rounds = ["".join(log[i : i + 3]) for i in range(0, 36, 3)]
    assert all(sorted(one) == list("abc") for one in rounds)
    assert len(set(rounds)) > 3
    # Everybody was warmed up before, the same number of times.
    assert set(collections.Counter(machine.log[:-36]).values()) == {2}


def test_short_work_is_timed_over_many_calls():
    machine = Machine()
    turn = timed(machine.work("a", 0.25), calls=8, clock=machine.clock)
    assert turn() == 0.25
    assert len(machine.log) == 8


def test_progress_tells_the_time_left():
    machine, lines = Machine(), []
    alternate({"a": machine.turn("a", 30.0)}, 4, lines.append, machine.clock)
    assert lines == [
        "  alternation 1/4, 1:30 left",
        "  alternation 2/4, 1:00 left",
        "  alternation 3/4, 0:30 left",
    ]


def test_no_alternation_is_refused():
    with pytest.raises(RunError, match="alternations=0: expected a whole number, at least 1"):
        alternate({}, 0, silent)


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 3), (10.0, 5), (1.0, 3), (1e6, 100)])
def test_as_many_alternations_as_fit(seconds, expected):
    """By the last turns of the warm-up, two seconds together; the first ones take longer."""
    machine, scripts = Machine(), {name: iter([50.0]) for name in "ab"}

    def turn(name):
        return lambda: next(scripts[name], 1.0)

    samples = alternate({name: turn(name) for name in "ab"}, 3, silent, machine.clock, seconds)
    assert {len(found) for found in samples.seconds.values()} == {expected}
