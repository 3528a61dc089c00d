"""A race: contenders in processes of their own take turns; afterwards their memory is measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.benchmark.alternation import Samples, Say, alternate
from experiments.benchmark.contenders import Contender
from experiments.benchmark.worker import Running, start


@dataclasses.dataclass(frozen=True)
class Race:
    """What came out, by the contenders' names.

    Attributes:
      contenders: who took part.
      samples: seconds per turn.
      facts, memory: see `experiments.benchmark.worker`.
    """

    contenders: Mapping[str, Contender]
    samples: Samples
    facts: Mapping[str, Mapping[str, Any]]
    memory: Mapping[str, Mapping[str, int | None] | None]

    def per_step(self, name: str) -> dict[str, float | None]:
        """Median and interval of the seconds of one step."""
        steps = self.contenders[name].steps
        found = dataclasses.asdict(self.samples.time(name))
        return {key: None if value is None else value / steps for key, value in found.items()}


def race(contenders: Mapping[str, Contender], alternations: int, say: Say) -> Race:
    """Starts the contenders one after the other, lets them take turns, and ends them.

    Raises:
      RunError: one of them failed.
    """
    running: dict[str, Running] = {}
    try:
        for name, contender in contenders.items():
            say(f"  preparing {name}")
            running[name] = start(contender)
        samples = alternate({n: one.turn for n, one in running.items()}, alternations, say)
        return Race(
            contenders,
            samples,
            facts={name: one.facts for name, one in running.items()},
            memory={name: one.memory() for name, one in running.items()},
        )
    finally:
        for one in running.values():
            one.close()


def peak_of_steps(memory: Mapping[str, int | None] | None) -> int | None:
    """The peak in bytes that steps need: on an accelerator its own, else the process's."""
    if memory is None:
        return None
    return memory["device"] or memory["steps"]
