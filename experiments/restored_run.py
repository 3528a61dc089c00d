"""A finished run as it is looked at again: with its task and its final state.

Every command that applies a trained network begins with this (`evaluate`, `export`).
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from experiments import tasks
from experiments.finished_run import FinishedRun
from experiments.state import Plan, TrainState, Variables


@dataclasses.dataclass(frozen=True)
class RestoredRun:
    """A finished run, restored onto the devices there are.

    Attributes:
      run: what it was.
      task: its network and its data, see `experiments.tasks`.
      plan: by its own factorization table.
      state: the final one.
      variables: of the network that the run gives away: that of the best epoch where it is kept,
        otherwise the final one.
    """

    run: FinishedRun
    task: Any
    plan: Plan
    state: TrainState
    variables: Variables

    @classmethod
    def read(cls, place: str | os.PathLike[str]) -> RestoredRun:
        """From a run folder.

        Raises:
          RunError: the run is not finished or damaged, its data is not at hand or not what it was
            trained on, or its checkpoint cannot be restored.
        """
        run = FinishedRun.read(place)
        task = tasks.load(run.config, run.folder)
        plan = run.plan(task.network)
        state = run.restore(plan, task.data)
        kept = task.selects is not None and task.selects.kept
        final = Variables(state.params, state.model_state)
        return cls(run, task, plan, state, run.restore_selected(plan) if kept else final)
