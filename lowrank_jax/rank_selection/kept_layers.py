"""Kept layers: which stacks of a network are worth factorizing, from what they take.

The first layers of a network see the largest inputs and have the fewest channels: factorizing them
saves few parameters and often no time. So each stack (blocks of one width) is timed dense and at a
candidate ratio, forward and backward. Walking from the input, stacks stay dense until the first
one that is faster by the threshold; that one and all after it are factorized:

    speed-up = dense seconds / factorized seconds,     kept: all before the first with >= threshold

Where no stack reaches the threshold there is no speed to be won, and still a smaller network: then
those before the one that gains most stay dense.

Source: Wang et al., "Cuttlefish", MLSys 2023 (arXiv 2305.02538); a ratio of 1/4 and a threshold of
1.5 are said to be the paper's. Its public programs print the times, and people decide.
"""

from __future__ import annotations

import dataclasses
import json
import math


@dataclasses.dataclass(frozen=True)
class StackTime:
    """What one stack takes, forward and backward.

    Attributes:
      name: of the stack.
      dense_seconds: with dense kernels.
      factorized_seconds: at the candidate ratio.
    """

    name: str
    dense_seconds: float
    factorized_seconds: float

    def __post_init__(self) -> None:
        for seconds in (self.dense_seconds, self.factorized_seconds):
            if not (math.isfinite(seconds) and seconds > 0):
                raise ValueError(f"{self.name}: {seconds} is not a time that something takes")

    @property
    def speed_up(self) -> float:
        """How many times faster it is factorized."""
        return self.dense_seconds / self.factorized_seconds


@dataclasses.dataclass(frozen=True)
class KeptLayers:
    """The times of all stacks, and what follows from them.

    Attributes:
      times: of the stacks, from the input to the output.
      threshold: the smallest speed-up that is worth it.

    >>> times = [StackTime("stage_1", 3.0, 2.9), StackTime("stage_2", 3.0, 1.5)]
    >>> KeptLayers(tuple(times)).kept
    ('stage_1',)
    """

    times: tuple[StackTime, ...]
    threshold: float = 1.5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and self.threshold > 0):
            raise ValueError(f"threshold={self.threshold!r}: expected a positive speed-up")
        names = [time.name for time in self.times]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"times must be of stacks with names of their own, found {names}")

    @property
    def kept(self) -> tuple[str, ...]:
        """The stacks that stay dense."""
        speed_ups = [time.speed_up for time in self.times]
        enough = min(self.threshold, max(speed_ups))
        first = next(at for at, speed_up in enumerate(speed_ups) if speed_up >= enough)
        return tuple(time.name for time in self.times[:first])

    @property
    def worth_it(self) -> bool:
        """Whether any stack reaches the threshold."""
        return any(time.speed_up >= self.threshold for time in self.times)

    def to_json(self) -> str:
        """JSON text; :meth:`from_json` reads it back, and computes what follows from the times."""
        times = [
            {**dataclasses.asdict(time), "speed_up": time.speed_up, "kept": time.name in self.kept}
            for time in self.times
        ]
        return json.dumps({"threshold": self.threshold, "stacks": times}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> KeptLayers:
        """Reads what :meth:`to_json` wrote.

        Raises:
          ValueError: the text is something else.
        """
        try:
            data = json.loads(text)
            times = [
                StackTime(stack["name"], stack["dense_seconds"], stack["factorized_seconds"])
                for stack in data["stacks"]
            ]
            return cls(tuple(times), data["threshold"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not the times of stacks: {error!r}") from error

    def __str__(self) -> str:
        header = ("stack", "dense ms", "factorized ms", "speed-up", "")
        body = [
            (
                time.name,
                f"{1e3 * time.dense_seconds:.3f}",
                f"{1e3 * time.factorized_seconds:.3f}",
                f"{time.speed_up:.2f}",
                "stays dense" if time.name in self.kept else "factorized",
            )
            for time in self.times
        ]
        widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
        lines = []
        for name, *numbers, verdict in [header, *body]:
            cells = [
                number.rjust(width) for number, width in zip(numbers, widths[1:], strict=False)
            ]
            lines.append("  ".join([name.ljust(widths[0]), *cells, verdict]).rstrip())
        lines.insert(1, "  ".join("-" * width for width in widths))
        if self.worth_it:
            last = f"factorized from the first stack on whose speed-up is {self.threshold:g}"
        else:
            last = (
                f"NO STACK IS {self.threshold:g} TIMES AS FAST: factorized from the one on that "
                "gains most, for its parameters"
            )
        lines.append(last)
        return "\n".join(lines)
