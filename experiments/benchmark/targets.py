"""What the benchmark aims at, beside what was measured: the only place with an aim as a number.

A target takes no part in measuring. Each is an upper bound with, where there is one, a stretch: the
point where ambition ends. Those of the step are ratios to PyTorch's time for the same network, on a
CPU per network and rank, on an accelerator one for all: twice PyTorch's images per second is half
its time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.benchmark import markdown
from experiments.benchmark.contenders import weights


@dataclasses.dataclass(frozen=True)
class Target:
    """A quantity should be at most `at_most`, at best at most `stretch`."""

    at_most: float
    stretch: float | None = None

    def verdict(self, measured: float) -> str:
        """How a measured value stands to the target.

        >>> Target(0.8, 0.5).verdict(0.4), Target(0.8).verdict(0.4), Target(0.8).verdict(1.0)
        ('stretch met', 'met', 'missed by 25 %')
        """
        if measured > self.at_most:
            return f"missed by {100 * (measured / self.at_most - 1):.0f} %"
        return "stretch met" if self.stretch is not None and measured <= self.stretch else "met"


_STEP_ON_CPU = {
    ("resnet20", 0.111): Target(0.75, 0.5),
    ("resnet20", 0.333): Target(1.15, 0.8),
    ("resnet20", 0.0): Target(1.05, 0.8),
    ("wide_resnet32", 0.111): Target(0.85, 0.6),
}
_STEP_ON_ACCELERATOR = Target(1 / 2, 1 / 3)
_TO_OWN_DENSE_ON_CPU = {("resnet20", 0.111): Target(0.6, 0.35)}
_MEMORY = Target(1.3)
_FROBENIUS_DECAY = Target(0.02)


def table(record: Mapping[str, Any]) -> str | None:
    """Every target that the figures of an outcome bear on, in Markdown; None if there is none."""
    rows = list(_rows(record))
    header = ["quantity", "measured", "target (stretch)", "verdict"]
    return markdown.table(header, rows) if rows else None


def _rows(record: Mapping[str, Any]) -> Iterator[list[str]]:
    on_cpu = record["hardware"]["platform"] == "cpu"
    sections = record["sections"]
    for network in sections.get("step", {}).get("networks", []):
        for row in network["contenders"]:
            if row["implementation"] != "ours":
                continue
            key, to = (network["name"], row["rank_scale"]), row["ratio_to"]
            name = f"{network['title']}, {network['precision']}, {weights(row['rank_scale'])}"
            step = _STEP_ON_CPU.get(key) if on_cpu else _STEP_ON_ACCELERATOR
            dense = _TO_OWN_DENSE_ON_CPU.get(key) if on_cpu else None
            if step and "torch" in to:
                yield _row(f"{name}: time / PyTorch's", to["torch"], step)
            if dense and "dense" in to:
                yield _row(f"{name}: time / own dense", to["dense"], dense)
            if row["memory_to_torch"] is not None and row["rank_scale"]:
                yield _row(f"{name}: memory / PyTorch's", _exact(row["memory_to_torch"]), _MEMORY)
    for row in sections.get("decay", {}).get("updates", []):
        if row["decay"] == "frobenius":
            name = f"Frobenius decay, {sections['decay']['network']}: share of a step"
            yield _row(name, row["share_of_step"], _FROBENIUS_DECAY)


def _row(quantity: str, measured: Mapping[str, float | None], target: Target) -> list[str]:
    median = measured["median"]
    assert median is not None
    stretch = "" if target.stretch is None else f" ({target.stretch:.2g})"
    digits = 4 if target.at_most < 0.1 else 2
    return [
        quantity,
        markdown.estimate(measured, 1, digits),
        f"≤ {target.at_most:.3g}{stretch}",
        target.verdict(median),
    ]


def _exact(value: float) -> dict[str, float | None]:
    """A value without an interval."""
    return {"median": value, "low": None, "high": None}
