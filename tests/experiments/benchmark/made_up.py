"""Contenders with made-up speeds, in place of processes that train, and what goes with them."""

from __future__ import annotations

import json
from typing import Any

from experiments.benchmark.contenders import Contender
from experiments.benchmark.options import Options

SECONDS = {
    ("ours", 0.0): 1.0, ("ours", 0.111): 0.3, ("ours", 0.333): 1.0,
    ("lax", 0.0): 2.0, ("lax", 0.111): 1.5, ("lax", 0.333): 2.0,
    ("torch", 0.0): 1.0, ("torch", 0.111): 0.5, ("torch", 0.333): 0.8,
}  # fmt: skip


class Fake:
    """A contender that takes the same time for every step, whatever its options."""

    closed = 0

    def __init__(self, contender: Contender) -> None:
        self._who = contender.implementation, contender.rank_scale
        self._steps = contender.steps
        self.facts: dict[str, Any] = {
            "parameters": 1000, "multiply_adds": 2_000_000, "compile_s": 3.5, "device": "fake",
        }  # fmt: skip

    def turn(self) -> float:
        return SECONDS[self._who] * self._steps

    def memory(self) -> dict[str, int | None]:
        steps = 200_000_000 if self._who[0] == "torch" else 300_000_000
        return {"import": 10**8, "peak": 2 * steps, "steps": steps, "device": None}

    def close(self) -> None:
        Fake.closed += 1


def options(quick: bool = False, **changes: Any) -> Options:
    """The options of a run on two cores."""
    found = {"alternations": 6, "networks": None, "platform": "cpu", "cores": 2}
    return Options.of(quick=quick, **(found | changes))


def outcome(sections: dict[str, Any], quick: bool = False) -> dict[str, Any]:
    """An outcome with these sections, as it is read from its file."""
    return {
        "date": "2031-02-03T04:05:06+00:00",
        "versions": {"python": "3.11.7", "jax": "0.10.2", "torch": None},
        "commit": {"hash": "a" * 40, "dirty": True},
        "hardware": {
            "platform": "cpu", "device_kind": "cpu", "device_count": 1, "cpu": "Slow", "cores": 2,
        },
        "quick": quick,
        "sections": json.loads(json.dumps(sections)),
    }  # fmt: skip


def silent(line: str) -> None:
    """Says nothing."""
