"""The tally of a run: what the loop counts besides the state, saved with every checkpoint.

Sums over the steps of the epoch in progress, the best epoch so far, what was measured at the start
and at the end, and where the time went. It is plain data, and becomes the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.result import Best, Compact, Final, Replay, Result, Selected, Start, versions
from experiments.state import Plan
from experiments.tasks.task import Selection, Task

Tally = dict[str, Any]


def new(steps_per_dispatch: int) -> Tally:
    """The tally at step 0."""
    return empty_sums() | {
        "start": None,
        "best": None,
        "final": None,
        "wall_time_s": 0.0,
        "compile_time_s": 0.0,
        "diagnostics": {"seconds": 0.0, "records": 0, "left_out": 0},
        "replayed": None,
        "ranks": None,
        "steps_per_dispatch": steps_per_dispatch,
        "versions": versions(),
    }


def empty_sums() -> Tally:
    """The sums at the beginning of an epoch."""
    return {"loss": 0.0, "correct": 0, "examples": 0}


def add(tally: Tally, sums: Mapping[str, Any]) -> None:
    """Adds the sums of the steps of a dispatch, one number each."""
    tally["loss"] += float(np.asarray(sums["loss"], np.float64).sum())
    tally["correct"] += int(np.asarray(sums["correct"]).sum())
    tally["examples"] += int(np.asarray(sums["count"]).sum())


def train_means(tally: Tally) -> dict[str, float]:
    """Loss and accuracy over the steps of the epoch so far."""
    return {
        "train_loss": tally["loss"] / tally["examples"],
        "train_accuracy": tally["correct"] / tally["examples"],
    }


def added(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums of a split from those of its parts, one at a time; what are not scalars is left out.

    >>> added([{"loss": 1.5, "count": 2}, {"loss": 0.5, "count": 1}])
    {'loss': 2.0, 'count': 3}
    """
    sums: dict[str, Any] = {}
    for part in parts:
        scalars = {name: np.asarray(value) for name, value in part.items() if np.ndim(value) == 0}
        sums = {name: sums.get(name, 0) + value.item() for name, value in scalars.items()}
    return sums


def means(sums: Mapping[str, Any]) -> dict[str, float]:
    """The measures of a split, from what a task sums over it: ``loss``, ``accuracy``, and others.

    >>> means({"loss": 6.0, "correct": 1, "count": 4, "logits": np.zeros((4, 2))})
    {'loss': 1.5, 'accuracy': 0.25}
    """
    count = int(sums["count"])
    names = {name: name for name in sums if np.ndim(sums[name]) == 0} | {"correct": "accuracy"}
    return {names[name]: float(sums[name]) / count for name in names if name != "count"}


def note_best(
    tally: Tally,
    selection: Selection | None,
    scalars: Mapping[str, float],
    epoch: float,
    step: int,
) -> bool:
    """Keeps the epoch if it is the best so far, and says whether it is; there may be none to select
    on."""
    if selection is None:
        return False
    found = {name: scalars[f"{selection.split}_{name}"] for name in ("accuracy", "loss")}
    if tally["best"] is not None and not selection.better(found, tally["best"]):
        return False
    tally["best"] = {"split": selection.split, "epoch": epoch, "step": step, **found}
    return True


def start_of(config: ConfigDict, plan: Plan, scalars: Mapping[str, float]) -> Start:
    """What the trained network was that a run starts from, as measured at step 0."""
    factorized = {"accuracy": scalars["test_accuracy"], "loss": scalars["test_loss"]}
    return Start(
        run=config.start,
        accuracy=scalars["start_test_accuracy"],
        loss=scalars["start_test_loss"],
        factorized=factorized if plan.table.rows else None,
    )


def result_of(
    tally: Tally,
    config: ConfigDict,
    task: Task,
    plan: Plan,
    *,
    parameters: int,
    step: int,
    commit: Mapping[str, Any] | None,
    compact: Compact | None,
    scores: Mapping[str, Any] | None,
    replay: Replay | None,
) -> Result:
    """The result of a finished run."""
    final, epochs = tally["final"], step / len(task.batches(0))
    ranks = tally["ranks"]
    return Result(
        name=config.name,
        seed=config.seed,
        config=config.to_dict(),
        data=task.data,
        parameters=parameters,
        dense_parameters=plan.dense_parameters,
        multiply_adds=plan.multiply_adds,
        dense_multiply_adds=plan.dense_multiply_adds,
        final=Final(
            split="test",
            accuracy=final["test_accuracy"],
            loss=final["test_loss"],
            epoch=epochs,
            step=step,
        ),
        best=Best(**tally["best"]) if tally["best"] else None,
        steps=step,
        epochs=epochs,
        wall_time_s=tally["wall_time_s"],
        compile_time_s=tally["compile_time_s"],
        diagnostics_time_s=tally["diagnostics"]["seconds"],
        diagnostics_left_out=tally["diagnostics"]["left_out"],
        commit=commit,
        start=Start(**tally["start"]) if tally["start"] else None,
        compact=compact,
        scores=scores,
        replay=replay,
        selection=Selected.of(ranks, plan.table) if ranks else None,
    )
