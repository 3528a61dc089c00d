"""Training: one loop for every task, from a config to a run folder.

It reads from top to bottom: the plan, the folder, the forms of the kernels, the compiled steps, the
epochs, the result. Steps run several to a dispatch, and every dispatch begins and ends at a fixed
place of its epoch, whether the run was interrupted or not; data order and augmentation are
functions of seed and epoch, and forms are kept. So a run that was killed and started again ends
with the same bits as one that never stopped. A run that starts from a finished run looks at it for
its plan whenever it is continued, and takes its network from there once, for step 0.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
    console,
    files,
    forms,
    plots,
    profiling,
    recipe,
    run_folder,
    tasks,
)
from experiments import mesh as meshes
from experiments import start as starts
from experiments import state as states
from experiments.accumulation import micro_batch_size
from experiments.checkpoint import Checkpoints
from experiments.dispatch import default_steps, dispatch_function, dispatches
from experiments.divergence import diverged, not_finite
from experiments.errors import RunError
from experiments.metrics import MetricsWriter, Progress
from experiments.result import FILE_NAME as RESULT
from experiments.result import Best, Final, Result, Start, commit, versions
from experiments.state import Plan, TrainState, Variables
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

    # ---------------------------------------------------------------- the plan
    task = tasks.load(config)
    batches = task.batches_per_epoch()
    start = starts.load(config, task.network, task.data)
    table = None if start is None else states.resolve(config, start.params)
    plan = states.plan(config, task.network, len(batches), table)
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
    say(console.heading(task, plan, applied, total_steps, workdir))

    # ---------------------------------------------------------------- state, new or restored
    stop.leave_if_requested()
    if latest is None:
        state = states.create(plan, task.network, start)
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

    def measured(split: str, network: TrainState | Variables) -> dict[str, float]:
        sums = evaluate(network.params, network.model_state, arrays[split])
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
    pace = Progress(total_steps, config.batch_size, step)
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
            scalars = {"learning_rate": float(plan.schedule(0))}
            if start is not None:
                for split in [name for name in task.splits if name != "train"]:
                    before = measured(split, start)
                    scalars |= {f"start_{name}": value for name, value in before.items()}
                    scalars |= measured(split, state)
                begun = _start(config, plan, scalars)
                progress["start"] = dataclasses.asdict(begun)
                say(console.at_step_0(begun))
            _write_diagnostics(metrics, config, plan, state, 0, 0.0, scalars, spectra=True)
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
                pace.update(step)
                if cut is not cuts[-1]:
                    if time.perf_counter() - told >= _SECONDS_BETWEEN_LINES:
                        told = time.perf_counter()
                        say(pace.line(step, step / len(batches), _train_means(progress)))
                    if stopping:
                        save()
                        raise Stopped(f"stopped at step {step}; start again to continue")

            # ------------------------------------------------------------ end of an epoch
            done = epoch + 1
            last = done == config.epochs
            scalars = _train_means(progress) | {
                "learning_rate": float(plan.schedule(step - 1)),
                "examples_per_second": pace.examples_per_second,
            }
            progress |= _empty_sums()
            if "validation" in task.splits:
                scalars |= measured("validation", state)
            if last or "validation" not in task.splits:
                scalars |= measured("test", state)
            if step >= recipe.reduced_from(config, len(batches)):
                _note_best(progress, task.selects, scalars, done)
            if last or done % config.diagnostics_every_epochs == 0:
                _write_diagnostics(metrics, config, plan, state, step, done, scalars, spectra=last)
            else:
                metrics.write(step, done, scalars)
            say(pace.line(step, done, scalars))
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
    parameters = recipe.counted_parameters(config, state.params)
    outcome = _result(config, task, plan, parameters, progress, step, seconds, revision)
    plots.run_plots(workdir)
    files.write_json(workdir / RESULT, outcome.as_dict())
    say(console.closing(outcome, workdir))
    return workdir


def _write_diagnostics(
    metrics: MetricsWriter,
    config: ConfigDict,
    plan: Plan,
    state: TrainState,
    step: int,
    epoch: float,
    scalars: dict[str, float],
    *,
    spectra: bool,
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
    metrics.write(step, epoch, scalars, diagnostics=diagnostics, spectra=values)


def _empty_sums() -> dict[str, Any]:
    return {"loss": 0.0, "correct": 0, "examples": 0}


def _new_progress(steps_per_dispatch: int) -> dict[str, Any]:
    """What the loop carries besides the state; saved with every checkpoint."""
    return _empty_sums() | {
        "start": None,
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


def _start(config: ConfigDict, plan: Plan, scalars: dict[str, float]) -> Start:
    factorized = {"accuracy": scalars["test_accuracy"], "loss": scalars["test_loss"]}
    return Start(
        run=config.start,
        accuracy=scalars["start_test_accuracy"],
        loss=scalars["start_test_loss"],
        factorized=factorized if plan.table.rows else None,
    )


def _result(
    config: ConfigDict,
    task: Any,
    plan: Plan,
    parameters: int,
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
        parameters=parameters,
        dense_parameters=plan.dense_parameters,
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
        start=Start(**progress["start"]) if progress.get("start") else None,
    )
