"""What a run says on the console when it begins, at step 0, and when it has finished.

The lines between are `experiments.metrics.Progress.line`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

import lowrank_jax as lrj
from experiments import config_keys, measures, setting_names
from experiments.forms import Forms
from experiments.metrics import duration
from experiments.result import FILE_NAME as RESULT
from experiments.result import Result, Start
from experiments.state import Plan


def heading(task: Any, plan: Plan, applied: Forms, total_steps: int, workdir: Path) -> str:
    """What is about to be trained, on what, and where."""
    config = plan.config
    sizes = ", ".join(f"{count} {name}" for name, count in task.sizes().items())
    lines = [
        f"{config.name}: {setting_names.network_name(config_keys.flatten(config))} in {workdir}",
        f"start: {config.start}" if config.start else None,
        f"data: {task.data.name} ({sizes}) from {task.data.origin}, "
        f"fingerprint {task.data.fingerprint[:12]}",
        *task.remarks(),
        f"parameters: {plan.parameters:,} of {plan.dense_parameters:,} dense ({plan.ratio:.2%}), "
        f"{smaller(plan)}; multiply-adds "
        f"{plan.multiply_adds / 1e6:.1f} of {plan.dense_multiply_adds / 1e6:.1f} million",
        plan.missed_ratio,
        f"forms: {applied.summary}" if applied.rows else None,
        f"steps: {total_steps} in {total_steps / len(task.batches(0)):g} epochs on "
        f"{plan.mesh.size} "
        f"{jax.devices()[0].platform} device(s)",
    ]
    if config.get("expected_accuracy"):
        lines.append(
            f"expected to reach at least {config.expected_accuracy:.1%} on the test images"
        )
    return "\n".join(filter(None, lines))


def smaller(plan: Plan) -> str:
    """What makes the network smaller."""
    if plan.config.method == "prune":
        return "the rest to be pruned"
    return f"{len(plan.table.rows)} factorized kernels"


def at_step_0(start: Start) -> str:
    """What a trained network lost by being factorized, where it was."""
    before = f"test accuracy {start.accuracy:.2%} (loss {start.loss:.3f}) at the start"
    if start.factorized is None:
        return before
    after = start.factorized
    return f"{before}, {after['accuracy']:.2%} (loss {after['loss']:.3f}) factorized"


def switching(epoch: float, table: lrj.Table) -> str:
    """What becomes of a network that has selected its ranks."""
    if not table.rows:
        return (
            f"after epoch {epoch:g} NO KERNEL BECOMES LOW RANK: every rank is at break-even or "
            "above, and the network stays dense to the end"
        )
    return f"after epoch {epoch:g} the network becomes low rank\n{table}"


def at_switch(split: str, scalars: Mapping[str, float]) -> str:
    """What a network lost by becoming low rank in the middle of training."""

    def told(beginning: str) -> str:
        accuracy, loss = (scalars[f"{beginning}{split}_{name}"] for name in ("accuracy", "loss"))
        return f"{accuracy:.2%} (loss {loss:.3f})"

    return f"{split} accuracy {told('')} dense, {told('switched_')} at low rank"


def closing(outcome: Result, workdir: Path) -> str:
    """What a run reached, and where that is written."""
    final, best, start = outcome.final, outcome.best, outcome.start
    measure = measures.of_task(outcome.config["task"])
    left_out = outcome.diagnostics_left_out > 0
    lines = [
        at_step_0(start) if start else None,
        f"final test {measure.per_epoch} {final.accuracy:.2%} (loss {final.loss:.3f}) "
        f"after {outcome.epochs:g} epochs, {duration(outcome.wall_time_s)}",
        f"best on {best.split}: {measure.per_epoch} {best.accuracy:.2%} (loss {best.loss:.3f}) "
        f"at epoch {best.epoch:g}"
        if best
        else None,
        f"test {measure.told(outcome.as_dict())}" if measure.lower_is_better else None,
        *_scored(outcome),
        *_merged(outcome, workdir),
        *_replayed(outcome),
        *_selected(outcome),
        f"diagnostics took {outcome.diagnostics_time_s / outcome.wall_time_s:.1%} of the time"
        + (f"; {outcome.diagnostics_left_out} records left out for that" * left_out),
        f"result: {workdir / RESULT}, plots: {workdir / 'plots'}",
    ]
    return "\n".join(filter(None, lines))


def _scored(outcome: Result) -> Iterator[str]:
    if scores := outcome.scores:
        told = ", ".join(
            f"{name.replace('_', ' ')} {value:.2f}" if isinstance(value, float) else str(value)
            for name, value in scores.items()
            if name != "split"
        )
        yield f"{scores['split']} set: {told}"


def _merged(outcome: Result, workdir: Path) -> Iterator[str]:
    if compact := outcome.compact:
        yield (
            f"merged: test accuracy {compact.accuracy:.2%} with {compact.parameters:,} parameters "
            f"instead of {outcome.parameters:,}; logits differ by {compact.logit_difference:.1e} "
            f"of the largest; in {workdir / compact.file}"
        )


def _selected(outcome: Result) -> Iterator[str]:
    selection = outcome.selection
    if selection is not None and selection.epoch is not None:
        took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in selection.seconds.items())
        yield (f"low rank after {selection.epoch:g} epochs: {len(selection.ranks)} kernels; {took}")


def _replayed(outcome: Result) -> Iterator[str]:
    if replay := outcome.replay:
        yield (
            f"replayed the norms of {replay.run}: they differ by at most "
            f"{replay.largest_difference:.1e}"
        )
