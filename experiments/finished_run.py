"""A finished run that something else takes up: what it was, and its final state.

The config, the data and the recorded outcome are files to read. The state is restored by the run's
own factorization table, since a rule that looks at values (`energy`) could not be resolved again,
and onto whatever devices there are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import arguments, files, run_folder
from experiments import state as states
from experiments.checkpoint import FOLDER as CHECKPOINTS
from experiments.checkpoint import SELECTED, Checkpoints
from experiments.errors import RunError
from experiments.mesh import on_this_machine
from experiments.result import FILE_NAME as RESULT
from experiments.result import Data
from experiments.state import Plan, TrainState, Variables


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """What a finished run was.

    Attributes:
      folder: the run folder.
      config: settled.
      data: what it was trained on.
      step: of its final state.
      accuracy: of its final state on the test split, as recorded.
      best_step: at which its best epoch ended; None if none was selected.
    """

    folder: Path
    config: ConfigDict
    data: Data
    step: int
    accuracy: float
    best_step: int | None

    @classmethod
    def read(cls, place: str | os.PathLike[str]) -> FinishedRun:
        """From a run folder.

        Raises:
          RunError: there is none, the run is not finished, or a file is damaged.
        """
        folder = Path(place)
        if not (folder / RESULT).exists():
            if not folder.exists():
                reason = "it does not exist"
            else:
                reason = f"it has no {RESULT}" if folder.is_dir() else "it is a file"
            raise RunError(f"{folder} is not a finished run: {reason}")
        result = files.read_json(folder / RESULT)
        saved = files.read_json(folder / run_folder.CONFIG)
        data = files.read_json(folder / run_folder.DATA)
        try:
            final = result["final"]
            config = arguments.settle(ConfigDict(saved))
            return cls(
                folder=folder,
                config=config,
                data=Data(**data),
                step=int(final["step"]),
                accuracy=float(final["accuracy"]),
                best_step=(result.get("best") or {}).get("step"),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            names = f"{RESULT}, {run_folder.CONFIG} or {run_folder.DATA}"
            raise RunError(f"{folder}: {names} is damaged: {error!r}") from error

    def plan(self, network: Any) -> Plan:
        """The plan of the run by its own table, onto the devices there are.

        Args:
          network: the dense network of the run, see `experiments.state.plan`.

        Raises:
          RunError: the network is another one, or the table cannot be read.
        """
        table = run_folder.read_table(self.folder)
        batches_per_epoch = max(1, self.step // self.config.epochs)
        return states.plan(on_this_machine(self.config), network, batches_per_epoch, table)

    def restore(self, plan: Plan, data: Data) -> TrainState:
        """The final state, factorized as it was trained.

        Args:
          plan: of the run, see `plan`.
          data: what is at hand, which must be what the run was trained on.

        Raises:
          RunError: it is other data, or there is no checkpoint of the final step that is whole.
        """
        run_folder.examine(self.folder, self.config, data, plan.table)
        return self._read(CHECKPOINTS, self.step, plan.abstract, plan, data)

    def restore_selected(self, plan: Plan) -> Variables:
        """The network of the best epoch, of a run that keeps it.

        Raises:
          RunError: there is none that is whole.
        """
        target = Variables(plan.abstract.params, plan.abstract.model_state)
        return self._read(SELECTED, self.best_step, target, plan, self.data)

    def _read(self, name: str, step: int | None, target: Any, plan: Plan, data: Data) -> Any:
        """What a checkpoint holds."""
        checkpoints = Checkpoints(
            self.folder, self.config.keep_checkpoints, read_only=True, name=name
        )
        with contextlib.closing(checkpoints):
            restored, _ = checkpoints.restore(
                step,
                target,
                config=self.config,
                table=plan.table,
                fingerprint=data.identity,
            )
        return restored
