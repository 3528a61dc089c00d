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

import numpy as np
from ml_collections import ConfigDict

from experiments import (
    agreement,
    arguments,
    compact,
    compilation_cache,
    config_keys,
    console,
    files,
    forms,
    norm_record,
    plots,
    processes,
    profiling,
    rank_selection,
    recipe,
    run_folder,
    switching,
    tally,
    tasks,
)
from experiments import feed as feeds
from experiments import mesh as meshes
from experiments import start as starts
from experiments import state as states
from experiments.accumulation import micro_batch_size
from experiments.dispatch import Dispatch, default_steps, dispatches
from experiments.divergence import diverged, not_finite
from experiments.errors import RunError
from experiments.kernel_diagnostics import KernelDiagnostics, KernelRecord
from experiments.metrics import MetricsWriter, Progress
from experiments.programs import Programs
from experiments.result import FILE_NAME as RESULT
from experiments.result import commit
from experiments.run_checkpoints import RunCheckpoints
from experiments.run_length import epochs_left, total_steps_of
from experiments.state import Plan, TrainState, Variables
from experiments.stopping import Stopped, StopSignal
from experiments.tasks.task import Task
from lowrank_jax.rank_selection import Keep, Restructure

_SECONDS_BETWEEN_LINES = 10.0


def _say(line: str) -> None:
    print(line, flush=True)  # Seen at once where the output goes to a file.


def _say_nothing(line: str) -> None:
    """Of several processes, one speaks."""


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
    if not processes.is_first():
        say = _say_nothing
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
    agreement.require_one_run(config, workdir)
    meshes.make(config.mesh)  # What does not fit the devices is refused before data is read.

    # ---------------------------------------------------------------- the plan
    task = tasks.load(config, workdir)
    agreement.require_same_data(task.data)
    batches = task.batches(0)
    start = starts.load(config, task.network, task.data)
    begun = None if start is None else start.variables
    table = None if begun is None else states.resolve(config, begun.params)
    plan = states.plan(config, task.network, len(batches), table)
    total_steps = total_steps_of(config, len(batches))
    parts = [micro_batch_size(batch.size, config.accumulate_steps) for batch in batches]
    computed_whole = meshes.require_split(plan.mesh, parts)
    profiling.check(config.profile_steps, total_steps)
    recipe.require_peak(config, total_steps)
    selecting = config_keys.selects_ranks(config)
    if selecting:
        rank_selection.check(config, plan.abstract.params)
    stop.leave_if_requested()

    # ---------------------------------------------------------------- the run folder
    # What such a run factorizes is known when it has switched; its checkpoints tell.
    folder = run_folder.examine(workdir, config, task.data, None if selecting else plan.table)
    if processes.any_says(folder.finished):
        say(f"{workdir} is finished: see {workdir / RESULT}")
        return workdir
    record = norm_record.NormRecord.load(config.replay) if config.replay else None
    if record is not None:
        record.require_fit(config, task.data, plan.table, total_steps)
        plan = states.replaying(plan, len(batches), record.norms)
    if config.merge:
        compact.require_writer()
    until_done.enter_context(compilation_cache.kept_in(config.compilation_cache))
    processes.wait("the run folder is read")
    outputs = until_done.enter_context(processes.output_folder(workdir))
    run_folder.begin(outputs, config, task.data, plan.table)
    agreement.require_seen(workdir / run_folder.CONFIG)
    until_done.enter_context(run_folder.held(outputs))
    for name, content in task.files().items():
        files.write_bytes(outputs / name, content)
    checkpoints = until_done.enter_context(RunCheckpoints(workdir, config, task))
    latest = checkpoints.latest()
    loaded, dense = task, plan
    if selecting and latest is not None:
        manifest = checkpoints.manifest(latest)
        plan = switching.resumed_plan(dense, loaded.network, len(batches), manifest)
        run_folder.write_table(outputs, plan.table)  # A kill may have come before this was done.

    # ---------------------------------------------------------------- how kernels are applied
    def formed(
        plan: Plan, before: int | None, between: Callable[[], None]
    ) -> tuple[Task, Plan, forms.Forms]:
        stored = run_folder.read_forms(workdir, plan.table) if plan.table.rows else None
        task, plan, applied = forms.choose(loaded, plan, say, stored, between)
        if stored is None and applied.rows:
            if before is not None and config.forms == "measure":
                say(f"{run_folder.FORMS} is missing: decided again, the bits may differ")
            run_folder.write_forms(outputs, applied)
        return task, plan, applied

    task, plan, applied = formed(plan, latest, stop.leave_if_requested)
    feed = feeds.of(task, plan.mesh, config.accumulate_steps)
    until_done.callback(feed.close)
    say(console.heading(task, plan, applied, total_steps, workdir))
    if computed_whole:
        say(computed_whole)

    # ---------------------------------------------------------------- state, new or restored
    stop.leave_if_requested()
    if latest is None:
        state = states.create(plan, task.network, begun)
        of_dispatch = default_steps(plan, batches, feed.bytes_per_example)
        progress = tally.new(config.steps_per_dispatch or of_dispatch)
        progress["replayed"] = None if record is None else record.digest
        if spoiled := not_finite(state):
            raise RunError(f"not finite before the first step: {', '.join(spoiled[:3])}")
    else:
        state, progress = checkpoints.restore(latest, plan, record, say)

    ranks = switching.ranks_to_select(
        workdir, loaded, dense, progress, say, stop.leave_if_requested
    )

    # ---------------------------------------------------------------- compiled steps
    def cuts_of(epoch: int) -> list[Dispatch]:
        # As when the run began: an interrupted epoch must be taken up at one of its own cuts.
        left = total_steps - epoch * len(batches)
        return dispatches(task.batches(epoch)[:left], progress["steps_per_dispatch"])

    def compiled(task: Task, plan: Plan, between: Callable[[], None]) -> Programs:
        began = time.perf_counter()
        programs = Programs(task, plan, feed, progress)
        for cut in cuts_of(0):
            between()
            programs.compile(cut)
        say(f"compiled in {time.perf_counter() - began:.0f} s")
        return programs

    programs = compiled(task, plan, stop.leave_if_requested)

    def scores_of(split: str, network: TrainState | Variables) -> dict[str, float]:
        means = programs.means(split, network)
        if not np.isfinite(means["loss"]):
            raise RunError(
                f"the {split} loss is not finite after step {step}, though the parameters are; a "
                "lower learning_rate is the first thing to try"
            )
        return {f"{split}_{name}": value for name, value in means.items()}

    # ---------------------------------------------------------------- epochs
    step = int(state.step)
    spent_before = progress["wall_time_s"]
    pace = Progress(total_steps, unit=task.unit)
    told = time.perf_counter()
    diagnostics = KernelDiagnostics(config, plan, progress)
    profile = until_done.enter_context(profiling.Profile(config.profile_steps, outputs, step, say))

    def elapsed() -> float:
        return spent_before + time.perf_counter() - started

    def save() -> None:
        progress["wall_time_s"] = elapsed()
        checkpoints.save(step, state, plan, progress)

    def stopped_at(step: int) -> Stopped:
        checkpoints.wait()
        processes.wait("all is saved")  # Where one process leaves, the others are not waited for.
        return Stopped(f"stopped at step {step}; start again to continue")

    def write(
        epoch: float,
        scalars: dict[str, float],
        kernels: KernelRecord | None,
        selection: dict[str, dict[str, float]] | None = None,
    ) -> None:
        took = {"diagnostics_seconds": kernels.seconds} if kernels else {}
        metrics.write(
            *(step, epoch, scalars | took),
            diagnostics=kernels and kernels.diagnostics,
            spectra=kernels and kernels.spectra,
            selection=selection,
        )

    with MetricsWriter(outputs, resume_step=None if latest is None else step) as metrics:
        if latest is None:
            scalars = {"learning_rate": float(plan.schedule(0))}
            if start is not None and start.trained:
                for split in [name for name in task.sizes() if name != "train"]:
                    before = scores_of(split, start.variables)
                    scalars |= {f"start_{name}": value for name, value in before.items()}
                    scalars |= scores_of(split, state)
                measured = tally.start_of(config, plan, scalars)
                progress["start"] = dataclasses.asdict(measured)
                say(console.at_step_0(measured))
            params = processes.gathered(state.params)
            measures = diagnostics.measure(params, scalars["learning_rate"])
            write(0.0, scalars, measures, ranks.measure(params) if ranks else None)
            save()
        for epoch in epochs_left(step, total_steps, len(batches)):
            # Without what was done before an interruption.
            cuts = [cut for cut in cuts_of(epoch) if epoch * len(batches) + cut.first >= step]
            for cut, inputs in programs.inputs(epoch, cuts):
                programs.compile(cut)
                with profile.dispatch(cut.steps):
                    state, sums = programs.train(state, inputs, cut)
                    losses = np.asarray(sums["loss"])
                stopping = processes.any_says(stop.requested)
                # At a finite loss the last step can still have spoiled the state, which is then
                # neither saved nor measured.
                saves = stopping or cut is cuts[-1]
                last = step + cut.steps == total_steps
                due = processes.any_says(last or diagnostics.due(step, step + cut.steps, elapsed()))
                spoiled = not_finite(state if saves else state.params) if saves or due else []
                if not np.isfinite(losses).all() or spoiled:
                    raise diverged(state, step, losses, len(batches), checkpoints.latest())
                step += cut.steps
                tally.add(progress, sums)
                pace.update(step, int(np.asarray(sums["count"]).sum()), feed.waited)
                rate = float(plan.schedule(step - 1))
                if cut is not cuts[-1]:
                    done = step / len(batches)
                    if due:
                        params = processes.gathered(state.params)
                        write(done, {"learning_rate": rate}, diagnostics.measure(params, rate))
                    if time.perf_counter() - told >= _SECONDS_BETWEEN_LINES:
                        told = time.perf_counter()
                        say(pace.line(step, done, tally.train_means(progress)))
                    if stopping:
                        save()
                        raise stopped_at(step)

            # ------------------------------------------------------------ end of an epoch
            done = step / len(batches)
            scalars = tally.train_means(progress) | {
                "learning_rate": rate,
                "examples_per_second": pace.examples_per_second,
            }
            if pace.data_wait_share is not None:
                scalars["data_wait_share"] = pace.data_wait_share
            progress |= tally.empty_sums()
            if "validation" in task.sizes():
                scalars |= scores_of("validation", state)
            if last or "validation" not in task.sizes():
                scalars |= scores_of("test", state)
            small = step >= recipe.reduced_from(config, len(batches)) and ranks is None
            if small and tally.note_best(progress, task.selects, scalars, done, step):
                checkpoints.save_best(step, state, plan, progress)
            params = processes.gathered(state.params) if due or ranks else None
            kernels = diagnostics.measure(params, rate) if due else None

            # ------------------------------------------------------------ a switch to low rank
            selection, switched = None, False
            if ranks is not None:
                selection = ranks.measure(params)
                decision = Keep() if last else ranks.decide()
                if decision.remark:
                    say(decision.remark)
                if isinstance(decision, Restructure):
                    say(console.switching(done, decision.table))
                    began, switched = time.perf_counter(), True
                    plan = states.plan(config, loaded.network, len(batches), decision.table, step)
                    state = switching.switch(state, plan)
                    ranks.note_switch(decision, step, done, time.perf_counter() - began)
                    ranks = None
                    run_folder.write_table(outputs, plan.table)
                    # A signal that comes now is followed when the switch is saved.
                    task, plan, _ = formed(plan, None, lambda: None)
                    programs = compiled(task, plan, lambda: None)
                    state = switching.recalibrated(state, task, plan, feed, progress)
                    diagnostics = KernelDiagnostics(config, plan, progress)
                    split = "validation" if "validation" in task.sizes() else "test"
                    after = scores_of(split, state)
                    scalars |= {f"switched_{name}": value for name, value in after.items()}
                    say(console.at_switch(split, scalars))
            write(done, scalars, kernels, selection)
            say(pace.line(step, done, scalars))
            if last:
                progress["final"] = scalars
            stopping = processes.any_says(stop.requested)
            if last or stopping or switched or done % config.checkpoint_every_epochs == 0:
                save()
            if stopping and not last:
                raise stopped_at(step)
    checkpoints.wait()

    # ---------------------------------------------------------------- what is measured once
    state = processes.gathered(state)
    network = checkpoints.best(plan, progress, step)
    network = network or Variables(state.params, state.model_state)
    if not processes.is_first():
        processes.wait("the result is written")
        return workdir

    def say_or_leave(line: str) -> None:
        stop.leave_if_requested()
        say(line)

    scores = task.scores(network, workdir, say_or_leave)

    # ---------------------------------------------------------------- the result
    recorded = norm_record.write(workdir, state.opt_state) if recipe.records_norms(config) else {}
    merged = compact.save(workdir, config, task, network, revision) if config.merge else None
    progress["wall_time_s"] = elapsed()
    outcome = tally.result_of(
        progress,
        config,
        task,
        plan,
        parameters=recipe.counted_parameters(config, state.params),
        step=step,
        commit=revision,
        compact=merged,
        scores=scores,
        replay=norm_record.compare(recorded, record) if record is not None else None,
    )
    plots.run_plots(workdir)
    files.write_json(workdir / RESULT, outcome.as_dict())
    say(console.closing(outcome, workdir))
    processes.wait("the result is written")
    return workdir
