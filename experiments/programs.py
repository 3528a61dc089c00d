"""The compiled programs of a plan: training steps, one for each shape of dispatch, and evaluation.

A step is compiled when it is first wanted. A run whose parameters change their form in between has
new programs from there on.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp

from experiments import mesh as meshes
from experiments import tally as tallies
from experiments.dispatch import Dispatch, dispatch_function
from experiments.state import Plan, TrainState, Variables
from experiments.tally import Tally
from experiments.tasks.task import Batch, Task


class Programs:
    """What is compiled for one plan.

    Args:
      task: in the forms of the run.
      plan: of the run.
      arrays: the splits of the task, on the devices.
      tally: of the run; what compiling takes is counted there.
    """

    def __init__(self, task: Task, plan: Plan, arrays: Any, tally: Tally) -> None:
        self._task, self._plan, self._arrays, self._tally = task, plan, arrays, tally
        self._everywhere = meshes.replicated(plan.mesh)
        self._steps: dict[tuple[int, Batch], Any] = {}
        self._evaluate = jax.jit(plan.in_layout(task.evaluate))

    def compile(self, cut: Dispatch) -> Any:
        """The program of a dispatch."""
        if (cut.steps, cut.batch) not in self._steps:
            began = time.perf_counter()
            function = dispatch_function(self._task, self._plan, cut.steps, cut.batch)
            order, zero = self._put(self._task.order(0)), self.scalar(0)
            lowered = function.lower(self._plan.abstract, self._arrays, order, zero, zero)
            self._steps[cut.steps, cut.batch] = lowered.compile()
            self._tally["compile_time_s"] += time.perf_counter() - began
        return self._steps[cut.steps, cut.batch]

    def train(
        self, state: TrainState, order: jax.Array, epoch: int, cut: Dispatch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """The steps of a dispatch; the state is donated.

        Args:
          state: before them.
          order: of the examples in this epoch, as `order` gives it.
          epoch: the number of the epoch.
          cut: the dispatch.

        Returns:
          The state after them, and sums, each with one entry for each step.
        """
        run = self.compile(cut)
        return run(state, self._arrays, order, self.scalar(epoch), self.scalar(cut.example))

    def compile_evaluation(self, split: str) -> Any:
        """The program that measures a network on a split; it is not kept."""
        params, model_state = self._plan.abstract.params, self._plan.abstract.model_state
        return self._evaluate.lower(params, model_state, self._arrays[split]).compile()

    def order(self, epoch: int) -> jax.Array:
        """The order of the examples in an epoch, on the devices."""
        return self._put(self._task.order(epoch))

    def means(self, split: str, network: TrainState | Variables) -> dict[str, float]:
        """The measures of a network on a split."""
        sums = self._evaluate(network.params, network.model_state, self._arrays[split])
        return tallies.means(sums)

    def _put(self, array: Any) -> jax.Array:
        return jax.device_put(array, self._everywhere)

    def scalar(self, value: int) -> jax.Array:
        """A number as the programs take it, on the devices."""
        return self._put(jnp.int32(value))
