"""Training: one loop for every task, from a config to a run folder.

It reads from top to bottom: the plan, the folder, the forms of the kernels, the compiled steps, the
epochs, the result. Steps run several to a dispatch, and every dispatch begins and ends at a fixed
place of its epoch, whether the run was interrupted or not; data order and augmentation are
functions of seed and epoch, and forms are kept. So a run that was killed and started again ends
with the same bits as one that never stopped.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import lowrank_jax as lrj
from experiments import (
    arguments,
    compilation_cache,
    files,
    forms,
    plots,
    profiling,
    recipe,
    run_folder,
    tasks,
)
from experiments import mesh as meshes
from experiments import state as states
from experiments.accumulation import micro_batch_size
from experiments.checkpoint import Checkpoints
from experiments.dispatch import default_steps, dispatch_function, dispatches
from experiments.divergence import diverged, not_finite
from experiments.errors import RunError
from experiments.metrics import MetricsWriter, Progress, duration
from experiments.result import FILE_NAME as RESULT
from experiments.result import Best, Final, Result, commit, versions
from experiments.state import Plan, TrainState
from experiments.stopping import Stopped, StopSignal

_SECONDS_BETWEEN_LINES = 10.0


def _say(line: str) -> None:
    print(line, flush=True)  # Seen at once where the output goes to a file.


def train_and_evaluate(
    config: ConfigDict, workdir: Path, say: Callable[[str], None] = _say
) -> Path:
    """Trains a config in a folder, continuing what is there, and writes the result.

    Args:
      config: a config; it is settled here.
      workdir: the run folder; made if it is not there.
      say: where progress lines go.

    Returns:
      The run folder.

    Raises:
      RunError: anything a user can mend.
      Stopped: SIGTERM arrived; a checkpoint was saved first.
    """
    # The signal from here on, so that starting up and compiling are covered.
    with StopSignal() as stop, contextlib.ExitStack() as until_done:
        return _train(arguments.settle(config), workdir, say, stop, until_done)


def _train(
    config: ConfigDict,
    workdir: Path,
    say: Callable[[str], None],
    stop: StopSignal,
    until_done: contextlib.ExitStack,
) -> Path:
    started, revision = time.perf_counter(), commit()

    # ---------------------------------------------------------------- plan, by shapes alone
    task = tasks.load(config)
    batches = task.batches_per_epoch()
    plan = states.plan(config, task.network, len(batches))
    total_steps = config.epochs * len(batches)
    for batch_size in batches:
        micro_batch_size(batch_size, config.accumulate_steps)
    profiling.check(config.profile_steps, total_steps)
    stop.leave_if_requested()

    # ---------------------------------------------------------------- the run folder
    folder = run_folder.examine(workdir, config, task.data, plan.table)
    if folder.finished:
        say(f"{workdir} is finished: see {workdir / RESULT}")
        return workdir
    until_done.enter_context(compilation_cache.kept_in(config.compilation_cache))
    run_folder.begin(folder, config, task.data, plan.table)
    until_done.enter_context(run_folder.held(workdir))
    checkpoints = Checkpoints(workdir, config.keep_checkpoints)
    latest = checkpoints.latest()

    # ---------------------------------------------------------------- how kernels are applied
    stored = run_folder.read_forms(workdir, plan.table)
    task, plan, applied = forms.choose(task, plan, say, stored, stop.leave_if_requested)
    if stored is None and applied.rows:
        if latest is not None and config.forms == "measure":
            say(f"{run_folder.FORMS} is missing: decided again, the bits may differ")
        run_folder.write_forms(workdir, applied)
    say(_heading(config, task, plan, applied, total_steps, workdir))

    # ---------------------------------------------------------------- state, new or restored
    stop.leave_if_requested()
    if latest is None:
        state = states.create(plan, task.network)
        progress = _new_progress(config.steps_per_dispatch or default_steps(plan))
        if spoiled := not_finite(state):
            raise RunError(f"not finite before the first step: {', '.join(spoiled[:3])}")
    else:
        state, progress = checkpoints.restore(
            latest,
            plan.abstract,
            config=config,
            table=plan.table,
            fingerprint=task.data.fingerprint,
        )
        say(f"continuing from step {latest}")
        if progress["versions"] != versions():
            say("the versions of the software have changed since: the bits may differ")

    # ---------------------------------------------------------------- compiled steps
    everywhere = meshes.replicated(plan.mesh)
    arrays = jax.device_put(task.splits, everywhere)
    compiling = time.perf_counter()
    # As when the run began: an interrupted epoch must be taken up at one of its own cuts.
    cuts = dispatches(batches, progress["steps_per_dispatch"])
    compiled = {}
    for cut in cuts:
        stop.leave_if_requested()
        if (cut.steps, cut.batch_size) not in compiled:
            function = dispatch_function(task, plan, cut.steps, cut.batch_size)
            zero = jax.device_put(jnp.zeros((), jnp.int32), everywhere)
            order = jax.device_put(task.order(0), everywhere)
            compiled[cut.steps, cut.batch_size] = function.lower(
                plan.abstract, arrays, order, zero, zero
            ).compile()
    evaluate = jax.jit(plan.in_layout(task.evaluate))
    progress["compile_time_s"] += time.perf_counter() - compiling
    say(f"compiled in {time.perf_counter() - compiling:.0f} s")

    def measured(split: str) -> dict[str, float]:
        sums = evaluate(state.params, state.model_state, arrays[split])
        count = len(task.splits[split][1])
        if not np.isfinite(sums["loss"]):
            raise RunError(
                f"the {split} loss is not finite after step {step}, though the parameters are; a "
                "lower learning_rate is the first thing to try"
            )
        return {
            f"{split}_loss": float(sums["loss"]) / count,
            f"{split}_accuracy": int(sums["correct"]) / count,
        }

    # ---------------------------------------------------------------- epochs
    step = int(state.step)
    spent_before = progress["wall_time_s"]
    console = Progress(total_steps, config.batch_size, step)
    told = time.perf_counter()
    profile = until_done.enter_context(profiling.Profile(config.profile_steps, workdir, step, say))

    def save() -> None:
        progress["wall_time_s"] = spent_before + time.perf_counter() - started
        checkpoints.save(
            step,
            state,
            config=config,
            table=plan.table,
            fingerprint=task.data.fingerprint,
            progress=progress,
        )

    with MetricsWriter(workdir, resume_step=None if latest is None else step) as metrics:
        if latest is None:
            _write_diagnostics(metrics, config, plan, state, 0, 0.0, spectra=True)
            save()
        for epoch in range(step // len(batches), config.epochs):
            order = jax.device_put(task.order(epoch), everywhere)
            for cut in cuts:
                if epoch * len(batches) + cut.first < step:
                    continue  # Done before the interruption.
                run = compiled[cut.steps, cut.batch_size]
                with profile.dispatch(cut.steps):
                    state, sums = run(
                        state,
                        arrays,
                        order,
                        jax.device_put(jnp.int32(epoch), everywhere),
                        jax.device_put(jnp.int32(cut.example), everywhere),
                    )
                    losses = np.asarray(sums["loss"])
                stopping = stop.requested
                # At a finite loss the last step can still have spoiled the state: not to be saved.
                saves = stopping or cut is cuts[-1]
                if not np.isfinite(losses).all() or (saves and not_finite(state)):
                    raise diverged(state, step, losses, len(batches), checkpoints.latest())
                step += cut.steps
                progress["loss"] += float(losses.astype(np.float64).sum())
                progress["correct"] += int(np.asarray(sums["correct"]).sum())
                progress["examples"] += cut.steps * cut.batch_size
                console.update(step)
                if cut is not cuts[-1]:
                    if time.perf_counter() - told >= _SECONDS_BETWEEN_LINES:
                        told = time.perf_counter()
                        say(console.line(step, step / len(batches), _train_means(progress)))
                    if stopping:
                        save()
                        raise Stopped(f"stopped at step {step}; start again to continue")

            # ------------------------------------------------------------ end of an epoch
            done = epoch + 1
            last = done == config.epochs
            scalars = _train_means(progress) | {
                "learning_rate": float(plan.schedule(step - 1)),
                "examples_per_second": console.examples_per_second,
            }
            progress |= _empty_sums()
            if "validation" in task.splits:
                scalars |= measured("validation")
            if last or "validation" not in task.splits:
                scalars |= measured("test")
            _note_best(progress, task.selects, scalars, done)
            if last or done % config.diagnostics_every_epochs == 0:
                _write_diagnostics(metrics, config, plan, state, step, done, last, scalars)
            else:
                metrics.write(step, done, scalars)
            say(console.line(step, done, scalars))
            if last:
                progress["final"] = scalars
            stopping = stop.requested
            if last or stopping or done % config.checkpoint_every_epochs == 0:
                save()
            if stopping and not last:
                raise Stopped(f"stopped at step {step}; start again to continue")
    checkpoints.close()

    # ---------------------------------------------------------------- the result
    seconds = spent_before + time.perf_counter() - started
    outcome = _result(config, task, plan, progress, step, seconds, revision)
    plots.run_plots(workdir)
    files.write_json(workdir / RESULT, outcome.as_dict())
    say(_closing(outcome, workdir))
    return workdir


def _write_diagnostics(
    metrics: MetricsWriter,
    config: ConfigDict,
    plan: Plan,
    state: TrainState,
    step: int,
    epoch: float,
    spectra: bool,
    scalars: dict[str, float] | None = None,
) -> None:
    """One record with the measures of every kernel that is factorized (or would be)."""
    try:
        table = (
            plan.table
            if plan.table.rows
            else lrj.resolve(state.params, recipe.comparison_rules(config))
        )
        diagnostics = lrj.diagnostics.report(state.params, table)
        values = lrj.diagnostics.spectrum(state.params, table) if spectra else None
    except ValueError as error:  # A kernel with NaN in it, or a rule that fits nothing.
        raise RunError(str(error)) from error
    metrics.write(
        step,
        epoch,
        scalars if scalars is not None else {"learning_rate": float(plan.schedule(step))},
        diagnostics=diagnostics,
        spectra=values,
    )


def _empty_sums() -> dict[str, Any]:
    return {"loss": 0.0, "correct": 0, "examples": 0}


def _new_progress(steps_per_dispatch: int) -> dict[str, Any]:
    """What the loop carries besides the state; saved with every checkpoint."""
    return _empty_sums() | {
        "best": None,
        "final": None,
        "wall_time_s": 0.0,
        "compile_time_s": 0.0,
        "steps_per_dispatch": steps_per_dispatch,
        "versions": versions(),
    }


def _train_means(progress: dict[str, Any]) -> dict[str, float]:
    return {
        "train_loss": progress["loss"] / progress["examples"],
        "train_accuracy": progress["correct"] / progress["examples"],
    }


def _note_best(
    progress: dict[str, Any], split: str | None, scalars: dict[str, float], epoch: int
) -> None:
    if split is None:
        return
    accuracy = scalars[f"{split}_accuracy"]
    if progress["best"] is None or accuracy > progress["best"]["accuracy"]:
        progress["best"] = {"split": split, "accuracy": accuracy, "epoch": epoch}


def _result(
    config: ConfigDict,
    task: Any,
    plan: Plan,
    progress: dict[str, Any],
    step: int,
    seconds: float,
    revision: dict[str, Any] | None,
) -> Result:
    final = progress["final"]
    return Result(
        name=config.name,
        seed=config.seed,
        config=config.to_dict(),
        data=task.data,
        parameters=plan.table.parameters,
        dense_parameters=plan.table.dense_parameters,
        multiply_adds=plan.multiply_adds,
        dense_multiply_adds=plan.dense_multiply_adds,
        final=Final(
            split="test",
            accuracy=final["test_accuracy"],
            loss=final["test_loss"],
            epoch=config.epochs,
            step=step,
        ),
        best=Best(**progress["best"]) if progress["best"] else None,
        steps=step,
        epochs=config.epochs,
        wall_time_s=seconds,
        compile_time_s=progress["compile_time_s"],
        commit=revision,
    )


def _heading(
    config: ConfigDict,
    task: Any,
    plan: Plan,
    applied: forms.Forms,
    total_steps: int,
    workdir: Path,
) -> str:
    sizes = ", ".join(f"{len(labels)} {name}" for name, (_, labels) in task.splits.items())
    lines = [
        f"{config.name}: {config.model.name} of depth {config.model.depth} in {workdir}",
        f"data: {task.data.name} ({sizes}) from {task.data.origin}, "
        f"fingerprint {task.data.fingerprint[:12]}",
        f"parameters: {plan.table.parameters:,} of {plan.table.dense_parameters:,} dense "
        f"({plan.table.ratio:.2%}), {len(plan.table.rows)} factorized kernels; multiply-adds "
        f"{plan.multiply_adds / 1e6:.1f} of {plan.dense_multiply_adds / 1e6:.1f} million",
        f"steps: {total_steps} in {config.epochs} epochs on {plan.mesh.size} "
        f"{jax.devices()[0].platform} device(s)",
    ]
    if applied.rows:
        lines.insert(3, f"forms: {applied.summary}")
    if config.expected_accuracy:
        lines.append(
            f"expected to reach at least {config.expected_accuracy:.1%} on the test images"
        )
    return "\n".join(lines)


def _closing(outcome: Result, workdir: Path) -> str:
    lines = [
        f"final test accuracy {outcome.final.accuracy:.2%} (loss {outcome.final.loss:.3f}) "
        f"after {outcome.epochs} epochs, {duration(outcome.wall_time_s)}"
    ]
    if outcome.best is not None:
        lines.append(
            f"best {outcome.best.split} accuracy {outcome.best.accuracy:.2%} at epoch "
            f"{outcome.best.epoch}"
        )
    return "\n".join([*lines, f"result: {workdir / RESULT}, plots: {workdir / 'plots'}"])
