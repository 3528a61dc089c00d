"""The switch: a run that began dense goes on with factors.

The trained kernels become their best approximations of the selected ranks, as balanced factors; all
other parameters, the batch statistics and the step count stay. What the optimizer remembers of the
changed kernels follows `selection.moments`. With `recalibration_batches` the norms see so many
training batches before training goes on, and nothing is learned from them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import lowrank_jax as lrj
from experiments import config_keys, processes, rank_selection, stack_profiling
from experiments import state as states
from experiments.checkpoint import Manifest
from experiments.dispatch import dispatches
from experiments.errors import RunError
from experiments.feed import Feed
from experiments.programs import Programs
from experiments.rank_selection import Ranks, switched_at
from experiments.state import Plan, TrainState, Variables
from experiments.tally import Tally
from experiments.tasks.task import Task
from lowrank_jax.tree import kernels


def resumed_plan(dense: Plan, network: Any, batches_per_epoch: int, manifest: Manifest) -> Plan:
    """The plan by which a run goes on from a checkpoint: the dense one, or that of its ranks.

    Args:
      dense: the plan with which the run began.
      network: the dense network, see `experiments.state.plan`.
      batches_per_epoch: of the run.
      manifest: of the checkpoint.
    """
    at = switched_at(manifest.progress)
    if at is None:
        return dense
    return states.plan(dense.config, network, batches_per_epoch, manifest.read_table(), at)


def ranks_to_select(
    folder: Path,
    task: Task,
    dense: Plan,
    tally: Tally,
    say: Callable[[str], None],
    between: Callable[[], None],
) -> Ranks | None:
    """The ranks that a run has still to select; None where they are given, or selected already.

    Args:
      folder: of the run.
      task: with its dense network.
      dense: the plan with which the run began.
      tally: of the run.
      say: where progress lines go.
      between: called before each measurement of a stack; may raise.

    Raises:
      RunError: there is nothing to select ranks for, or the times in the folder are damaged.
    """
    config = dense.config
    if not config_keys.selects_ranks(config) or switched_at(tally) is not None:
        return None
    began, stacks = time.perf_counter(), None
    if rank_selection.profiles(config):
        if tally["ranks"] is not None and not (folder / stack_profiling.FILE).exists():
            say(f"{stack_profiling.FILE} is missing: timed again, other layers may be kept")
        stacks = stack_profiling.of_run(folder, task, dense, say, between)
        say(str(stacks))
    selector = rank_selection.selector(config, dense.abstract.params, stacks)
    ranks = Ranks(selector, tally)
    ranks.seconds["profiling"] += time.perf_counter() - began
    return ranks


def switch(state: TrainState, plan: Plan) -> TrainState:
    """The state of a dense run in the form of the plan by which it goes on.

    Args:
      state: of the dense run, between two epochs.
      plan: from now on, by the table of the selected ranks.

    Raises:
      RunError: a kernel cannot be factorized, or the policy does not know the optimizer's state.
    """
    try:
        state = processes.gathered(state)
        params = lrj.factorize(state.params, plan.table)
        variables = states.normed(plan.config, plan.table, Variables(params, state.model_state))
        new = kernels(variables.params).keys() - kernels(state.params).keys()
        opt_state = lrj.restructure.carry(
            plan.tx,
            state.opt_state,
            state.params,
            variables.params,
            [*new, *(row.path for row in plan.table.rows)],
            policy=plan.config.selection.moments,
        )
    except ValueError as error:
        raise RunError(str(error)) from error
    switched = TrainState(state.step, variables.params, variables.model_state, opt_state)
    return jax.device_put(processes.of_the_first(switched), states.shardings(plan))


def recalibrated(state: TrainState, task: Task, plan: Plan, feed: Feed, tally: Tally) -> TrainState:
    """The state after its norms have seen the first batches of the first epoch, as asked for.

    Args:
      state: of the run; donated.
      task, plan: from the switch on.
      feed, tally: see `Programs`.
    """
    asked, batches = plan.config.selection.recalibration_batches, task.batches(0)
    if not asked:
        return state
    if asked > len(batches):
        raise RunError(
            f"selection.recalibration_batches={asked}: an epoch has {len(batches)}; give no more"
        )
    batches = batches[:asked]
    programs = Programs(task, _standing_still(plan), feed, tally)
    step = int(state.step)
    for cut, inputs in programs.inputs(0, dispatches(batches, limit=1)):
        state, _ = programs.train(state, inputs, cut)
    return dataclasses.replace(state, step=jax.device_put(jnp.int32(step), state.step.sharding))


def _standing_still(plan: Plan) -> Plan:
    """The plan with an optimizer that changes nothing."""

    def update(grads: Any, opt_state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(jnp.zeros_like, grads), opt_state

    return dataclasses.replace(plan, tx=optax.GradientTransformation(plan.tx.init, update))
