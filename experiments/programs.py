"""The compiled programs of a plan: training steps, one for each shape of dispatch, and evaluation.

A step is compiled when it is first wanted. A run whose parameters change their form in between has
new programs from there on.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments import mesh as meshes
from experiments import state as states
from experiments import tally as tallies
from experiments.dispatch import Dispatch, dispatch_function
from experiments.feed import Feed
from experiments.state import Plan, TrainState, Variables
from experiments.tally import Tally
from experiments.tasks.held_out import Place
from experiments.tasks.task import Batch, Task
from lowrank_jax.sharding import gathered_over


class Inputs(NamedTuple):
    """What the steps of a dispatch are computed from, beside the state.

    Attributes:
      arrays: examples, as the feed gives them.
      order: of the examples in the epoch.
      epoch: its number.
    """

    arrays: Any
    order: jax.Array
    epoch: int


class Programs:
    """What is compiled for one plan.

    Args:
      task: in the forms of the run.
      plan: of the run.
      feed: of the splits of the task.
      tally: of the run; what compiling takes is counted there.
    """

    def __init__(self, task: Task, plan: Plan, feed: Feed, tally: Tally) -> None:
        self._task, self._plan, self._feed, self._tally = task, plan, feed, tally
        self._everywhere = meshes.replicated(plan.mesh)
        self._steps: dict[tuple[int, Batch], Any] = {}
        self._evaluate = self._evaluation()

    def compile(self, cut: Dispatch) -> Any:
        """The program of a dispatch."""
        if (cut.steps, cut.batch) not in self._steps:
            began = time.perf_counter()
            function = dispatch_function(self._task, self._plan, cut.steps, cut.batch)
            order, zero = self._put(self._task.order(0)), self.scalar(0)
            arrays = self._feed.abstract(cut)
            lowered = function.lower(self._plan.abstract, arrays, order, zero, zero)
            self._steps[cut.steps, cut.batch] = lowered.compile()
            self._tally["compile_time_s"] += time.perf_counter() - began
        return self._steps[cut.steps, cut.batch]

    def inputs(self, epoch: int, cuts: Sequence[Dispatch]) -> Iterator[tuple[Dispatch, Inputs]]:
        """These dispatches of an epoch, in order, each with what it is computed from."""
        order = self._put(self._task.order(epoch))
        for cut, arrays in zip(cuts, self._feed.windows(epoch, cuts), strict=True):
            yield cut, Inputs(arrays, order, epoch)

    def train(
        self, state: TrainState, inputs: Inputs, cut: Dispatch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """The steps of a dispatch; the state is donated.

        Args:
          state: before them.
          inputs: of the dispatch.
          cut: the dispatch.

        Returns:
          The state after them, and sums, each with one entry for each step.
        """
        epoch, example = self.scalar(inputs.epoch), self.scalar(cut.example)
        return self.compile(cut)(state, inputs.arrays, inputs.order, epoch, example)

    def _evaluation(self) -> Any:
        mesh = self._plan.mesh

        def put(batch: Any) -> Any:
            """As batches of training are."""
            places = jax.tree.map(lambda leaf: meshes.batch_sharding(mesh, len(leaf)), batch)
            return jax.lax.with_sharding_constraint(batch, places)

        place = Place(meshes.batch_parts(mesh), put)
        evaluate = self._plan.in_layout(functools.partial(self._task.evaluate, place=place))

        @functools.partial(jax.jit, out_shardings=self._everywhere)
        def run(params: Any, model_state: Any, split: Any) -> dict[str, jax.Array]:
            # Not those of the plan: a run looks at the network that it starts from, too.
            places = states.parameter_shardings(self._plan.config, mesh, params)
            whole = gathered_over("fsdp", places)
            return evaluate(jax.lax.with_sharding_constraint(params, whole), model_state, split)

        return run

    def compile_evaluation(self, split: str) -> Any:
        """The program that measures a network on a split, or on the first part of it; it is not
        kept."""
        params, model_state = self._plan.abstract.params, self._plan.abstract.model_state
        part = next(self._feed.held_out(split))
        return self._evaluate.lower(params, model_state, part).compile()

    def means(self, split: str, network: TrainState | Variables) -> dict[str, float]:
        """The measures of a network on a split."""
        return tallies.means(
            tallies.added(
                self._evaluate(network.params, network.model_state, part)
                for part in self._feed.held_out(split)
            )
        )

    def _put(self, array: Any) -> jax.Array:
        return meshes.put(array, self._everywhere)

    def scalar(self, value: int) -> jax.Array:
        """A number as the programs take it, on the devices."""
        return self._put(jnp.int32(value))
