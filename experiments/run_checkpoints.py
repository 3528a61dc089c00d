"""What a run keeps to be continued with: its state, and where its task wants it the network of the
best epoch.

Both are `Checkpoints`, of the same config, factorization and data. What has changed since a state
was saved without making it another run (the software, the mesh) is told when it is continued.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from experiments import mesh as meshes
from experiments import processes, tally
from experiments.checkpoint import SELECTED, Checkpoints, Manifest
from experiments.errors import RunError
from experiments.norm_record import NormRecord
from experiments.result import versions
from experiments.state import Plan, TrainState, Variables
from experiments.tally import Tally
from experiments.tasks.task import Task


class RunCheckpoints(contextlib.ExitStack):
    """The checkpoints of a run; use it as a context manager.

    Args:
      folder: of the run.
      config: settled.
      task: of the run.
    """

    def __init__(self, folder: Path, config: ConfigDict, task: Task) -> None:
        super().__init__()
        self._config, self._fingerprint = config, task.data.identity
        self._states = self.enter_context(Checkpoints(folder, config.keep_checkpoints))
        self._networks: Checkpoints | None = None
        self._all = [self._states]
        if task.selects and task.selects.kept:
            # Those of the epochs since the newest checkpoint, and the one that it tells of.
            kept = config.checkpoint_every_epochs + 1
            self._networks = self.enter_context(Checkpoints(folder, kept, name=SELECTED))
            self._all.append(self._networks)

    def latest(self) -> int | None:
        """The step of the newest finished checkpoint; see `Checkpoints`."""
        return self._states.latest()

    def manifest(self, step: int) -> Manifest:
        """What lies beside the state of a step; see `Checkpoints`."""
        return self._states.manifest(step)

    def wait(self) -> None:
        """Until everything is on disk; see `Checkpoints`."""
        for checkpoints in self._all:
            checkpoints.wait()

    def restore(
        self, step: int, plan: Plan, record: NormRecord | None, say: Callable[[str], None]
    ) -> tuple[TrainState, Tally]:
        """The state of a step and the tally beside it.

        Args:
          step: of a checkpoint.
          plan: by which the run goes on.
          record: of the norms that it replays, if any.
          say: where progress lines go.

        Raises:
          RunError: a checkpoint is damaged, or of another config, factorization or data; or other
            norms are replayed than when the run began.
        """
        state, saved = self._states.restore(
            step,
            plan.abstract,
            config=self._config,
            table=plan.table,
            fingerprint=self._fingerprint,
        )
        progress = tally.new(saved["steps_per_dispatch"]) | saved
        if record is not None and progress["replayed"] != record.digest:
            raise RunError(f"{record.run} has recorded other norms since this run began")
        self.best(plan, progress, step)  # Now, and not when all is done.
        say(f"continuing from step {step}")
        if progress["versions"] != versions():
            say("the versions of the software have changed since: the bits may differ")
        before, here = saved.get("mesh"), meshes.text(plan.mesh)
        if before not in (None, here):
            say(
                f"the mesh was {before}, now {here}: the same run up to the order of sums, not the "
                "same bits"
            )
        return state, progress

    def save(self, step: int, state: TrainState, plan: Plan, progress: Tally) -> None:
        """Writes the state of a step and the tally, in the background; see `Checkpoints`."""
        self._save(self._states, step, state, plan, progress)

    def save_best(self, step: int, state: TrainState, plan: Plan, progress: Tally) -> None:
        """Writes the network of a step that is the best so far, where the task keeps it."""
        if self._networks is not None:
            network = Variables(state.params, state.model_state)
            self._save(self._networks, step, network, plan, progress)

    def best(self, plan: Plan, progress: Tally, step: int) -> Variables | None:
        """The network of the best epoch; None if it is not kept, or is that of this step.

        Raises:
          RunError: it cannot be restored.
        """
        best = progress["best"]
        if self._networks is None or not best or best["step"] == step:
            return None
        found, _ = self._networks.restore(
            best["step"],
            Variables(plan.abstract.params, plan.abstract.model_state),
            config=self._config,
            table=plan.table,
            fingerprint=self._fingerprint,
        )
        return processes.gathered(found)

    def _save(
        self,
        into: Checkpoints,
        step: int,
        what: TrainState | Variables,
        plan: Plan,
        progress: Tally,
    ) -> None:
        if processes.several():
            # Of two that are written at a time, Orbax takes the signals of one for the other's: the
            # processes meet by names in which there is the step, and no folder.
            for checkpoints in self._all:
                checkpoints.wait()
        into.save(
            step,
            what,
            config=self._config,
            table=plan.table,
            fingerprint=self._fingerprint,
            progress=progress | {"mesh": meshes.text(plan.mesh)},
        )
