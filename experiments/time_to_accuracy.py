"""How long training took to reach a target accuracy for the first time, beside the parameters.

It is the accuracy that is recorded after each epoch, of images or of target tokens; so times are
whole epochs. A record holds no clock: minutes are the run's wall time without compilation, times
the share of its steps that were done, as if all steps took the same time; what came before the
first step is counted whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import measures
from experiments.comparison import Run, Setting
from experiments.machines import ONE_MACHINE
from experiments.metrics import columns

DENSE_SHARE = 0.95
"""The target where none is given, as a share of the dense network's mean final accuracy."""

Records = Mapping[Path, Sequence[Mapping[str, Any]]]
"""The lines of `metrics.jsonl` by run folder; a run without a record is left out."""


@dataclasses.dataclass(frozen=True)
class Reached:
    """The first record of a run at or above the target."""

    epoch: float
    steps: int
    examples: int  # or tokens
    minutes: float


def first_reached(
    run: Run, lines: Sequence[Mapping[str, Any]], split: str, target: float
) -> Reached | None:
    """When a run first had the target accuracy on a split; None if it never had.

    Args:
      run: the run.
      lines: its record.
      split: on which accuracy is looked at.
      target: a fraction.
    """
    for line in lines:
        accuracy = line.get(f"{split}_accuracy")
        if accuracy is not None and accuracy >= target:
            before = measures.value_at(run.result, "selection.seconds.profiling") or 0.0
            seconds = run.result["wall_time_s"] - run.result["compile_time_s"] - before
            step = line["step"]
            return Reached(
                epoch=line["epoch"],
                steps=step,
                examples=step * run.config["batch_size"],
                minutes=(before + seconds * step / run.result["steps"]) / 60,
            )
    return None


def _measured(lines: Sequence[Mapping[str, Any]], split: str) -> bool:
    return any(f"{split}_accuracy" in line for line in lines)


def dense_target(settings: Sequence[Setting], records: Records, split: str) -> float | None:
    """The default target, a fraction; None where there is no dense network to take it from."""
    last: list[float] = []
    for run in (run for setting in settings if setting.dense for run in setting.runs):
        accuracies = columns(records.get(run.folder, []), f"{split}_accuracy")[1]
        last += accuracies[-1:].tolist()
    return DENSE_SHARE * float(np.mean(last)) if last else None


def time_table(
    settings: Sequence[Setting], records: Records, split: str, target: float | None
) -> str:
    """A Markdown table; '' where there is neither a target nor a dense network, or no record.

    Args:
      settings: of one section.
      records: of their runs.
      split: on which accuracy is looked at.
      target: a fraction; None takes `DENSE_SHARE` of what the dense network ends with.
    """
    given, target = target, dense_target(settings, records, split) if target is None else target
    if target is None or not records:
        return ""
    origin = f" ({DENSE_SHARE:.0%} of the dense network's mean at the end)" if given is None else ""
    section = settings[0].runs[0].section
    measure = section.measure
    evenly = ""
    if any(setting.selects_ranks for setting in settings):
        evenly = (
            ", as if steps before and after a switch to low rank took the same time; the profiling "
            "of stacks comes before the first step"
        )
    rows = [
        f"Until {100 * target:.2f} % {split} {measure.per_epoch}{origin} was first measured; means "
        "over the runs that reached it. Accuracy is measured once an epoch. Minutes: the share of "
        f"the steps times the wall time without compilation{evenly}. {ONE_MACHINE}.\n",
        f"| {section.network} | parameters | runs that reached it | epochs "
        f"| steps | {measure.counted} | minutes |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for setting in settings:
        if setting.runs[0].config["start"]:
            continue  # Its network was trained before its first step.
        runs = [run for run in setting.runs if _measured(records.get(run.folder, []), split)]
        found = [first_reached(run, records[run.folder], split, target) for run in runs]
        reached = [moment for moment in found if moment is not None]
        cells = ["–"] * 4
        if reached:
            epochs, steps, examples, minutes = np.mean(
                [dataclasses.astuple(moment) for moment in reached], axis=0
            )
            cells = [f"{epochs:.1f}", f"{steps:,.0f}", f"{examples:,.0f}", f"{minutes:.1f}"]
        rows.append(
            f"| {setting.label} | {setting.parameters:,} | {len(reached)} of {len(runs)} "
            f"| {' | '.join(cells)} |"
        )
    return "\n".join(rows) + "\n"
