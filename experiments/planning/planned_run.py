"""A run whose programs can be compiled, and that has neither data nor parameters: shapes alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments import arguments, tally, tasks
from experiments import mesh as meshes
from experiments import start as starts
from experiments import state as states
from experiments.accumulation import micro_batch_size
from experiments.dispatch import Dispatch, default_steps, dispatches
from experiments.planning.shapes_feed import ShapesFeed
from experiments.programs import Programs
from experiments.state import Plan
from experiments.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """What is known of a run before it exists.

    Attributes:
      task: with shapes of its data; kernels are applied in the form with fewer multiply-adds.
      plan: of its state.
      arrays: the shapes of what a dispatch gets of the splits, with their places.
      order: of the examples of an epoch, likewise.
      cut: the dispatch that takes most, of the longest examples where their lengths differ.
      programs: of the run.
    """

    task: Task
    plan: Plan
    arrays: Any
    order: jax.ShapeDtypeStruct
    cut: Dispatch
    programs: Programs

    @property
    def micro_batch(self) -> int:
        """Examples that are taken at once, by all devices together."""
        return micro_batch_size(self.cut.batch.size, self.plan.config.accumulate_steps)


def planned_run(config: ConfigDict) -> PlannedRun:
    """The run of a config, on the mesh that it names; nothing is compiled yet.

    A run that selects its ranks in training is planned dense, as it begins.

    Raises:
      RunError: the config asks for something that does not exist or does not fit, the mesh among
        it.
    """
    config = arguments.settle(config)
    task = tasks.abstract(config)
    batches = task.batches(0)
    table = None
    if config.energy:  # Its ranks follow from values.
        start = starts.load(config, task.network)
        table = states.resolve(config, start.variables.params) if start else None
    plan = states.plan(config, task.network, len(batches), table)
    meshes.require_split(
        plan.mesh, [micro_batch_size(batch.size, config.accumulate_steps) for batch in batches]
    )
    everywhere = meshes.replicated(plan.mesh)

    def placed(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)

    feed = ShapesFeed(task, plan.mesh, config.accumulate_steps)
    cuts = dispatches(
        batches,
        config.steps_per_dispatch or default_steps(plan, batches, feed.bytes_per_example),
    )
    cut = max(cuts, key=lambda cut: (cut.batch.length or 0, cut.batch.size, cut.steps))
    return PlannedRun(
        task=task,
        plan=plan,
        arrays=feed.abstract(cut),
        order=placed(task.order(0)),
        cut=cut,
        programs=Programs(task, plan, feed, tally.new(cuts[0].steps)),
    )
