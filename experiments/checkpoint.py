"""Checkpoints: the training state in Orbax, with a manifest that says what it is a state of.

Orbax restores factors of one kind into another kind without a word when their shapes agree. So
beside the state lies a manifest with the factorization table, the config, the fingerprint of the
data, and a digest of the state (`state_digest.py`); all are compared before a run continues. The
manifest has a checksum of its own. A step folder appears in one rename, state and manifest
together, so a kill leaves the previous checkpoint. Training goes on while one is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

import lowrank_jax as lrj
from experiments import config_keys, files, processes, run_folder
from experiments.errors import RunError
from experiments.state_digest import agrees, digest

FOLDER = "checkpoints"
SELECTED = "selected"  # The folder of the best epoch's network, where it is kept.
CHECKSUM = "checksum"

_POLL_SECONDS = 0.01


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What lies beside a state.

    Attributes:
      step: optimizer steps done.
      config: of the run, settled.
      table: the factorization table, as JSON text.
      fingerprint: of the data.
      progress: what the loop carries besides the state (sums of the running epoch, best epoch).
      digest: of the state; see `experiments.state_digest`.
    """

    step: int
    config: dict[str, Any]
    table: str
    fingerprint: str
    progress: dict[str, Any]
    digest: str

    def read_table(self) -> lrj.Table:
        """The factorization table."""
        return lrj.Table.from_json(self.table)


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
      folder: the run folder.
      keep: how many of the newest to keep.
      read_only: whether nothing is to be made, removed or tidied.
      name: of the folder in it.
    """

    def __init__(
        self, folder: Path, keep: int, *, read_only: bool = False, name: str = FOLDER
    ) -> None:
        self._folder = folder.resolve() / name
        self._advice = "nothing was changed; " + (
            "remove that folder to continue from an earlier one"
            if name == FOLDER
            else "it is not made again: train anew, in another --workdir"
        )
        # Orbax logs much and at high levels; what matters here arrives as an exception.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=not read_only,
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
        )
        self._failures: list[Exception] = []
        with self._writing():
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=options,
                item_handlers={
                    "state": _telling(ocp.StandardCheckpointHandler(), self._failures.append),
                    "manifest": _telling(ocp.JsonCheckpointHandler(), self._failures.append),
                },
            )

    def latest(self) -> int | None:
        """The step of the newest finished checkpoint; of several processes, that the first sees.

        Raises:
          RunError: the last one could not be written.
        """
        self.wait()
        step = self._manager.latest_step()
        agreed = int(processes.of_the_first(np.int32(-1 if step is None else step)))
        return None if agreed < 0 else agreed

    def save(
        self,
        step: int,
        state: Any,
        *,
        config: ConfigDict,
        table: lrj.Table,
        fingerprint: str,
        progress: dict[str, Any],
    ) -> None:
        """Writes a checkpoint, in the background: see `wait`. One of this step that is there
        already has the same bits, and is left alone.

        Raises:
          RunError: it cannot be written, or the one before it could not; older checkpoints stay.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        manifest = dataclasses.asdict(
            Manifest(step, config.to_dict(), table.to_json(), fingerprint, progress, digest(state))
        )
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    manifest=ocp.args.JsonSave(manifest | {CHECKSUM: _checksum(manifest)}),
                ),
            )

    def wait(self) -> None:
        """Until everything is on disk.

        Raises:
          RunError: the last checkpoint could not be written; older ones stay.
        """
        with self._writing():
            # Where the writing of one process fails, Orbax waits for the others there, and the
            # others for that one: the error is told from here.
            while processes.several() and self._manager.is_saving_in_progress():
                if self._failures:
                    raise self._failures[0]
                time.sleep(_POLL_SECONDS)
            self._manager.wait_until_finished()

    def manifest(self, step: int | None) -> Manifest:
        """What lies beside the state of a step.

        Raises:
          RunError: there is no such checkpoint, or it is damaged.
        """
        if step is None:
            raise RunError(f"{self._folder} has no checkpoint; {self._advice}")
        self.wait()
        try:
            saved = self._manager.restore(
                step, args=ocp.args.Composite(manifest=ocp.args.JsonRestore())
            )
            fields = dict(saved["manifest"])
            if fields.pop(CHECKSUM) != _checksum(fields):
                raise ValueError("its checksum does not match")
            manifest = Manifest(**fields)
            manifest.read_table()
        except Exception as error:
            raise RunError(
                f"{self._place(step)} has no readable manifest ({_short(error)}); {self._advice}"
            ) from error
        return manifest

    def restore(
        self,
        step: int | None,
        target: Any,
        *,
        config: ConfigDict,
        table: lrj.Table,
        fingerprint: str,
    ) -> tuple[Any, dict[str, Any]]:
        """The state of a step, after everything it must agree with has been compared.

        Args:
          step: which checkpoint; None: there is none, which is an error.
          target: the abstract state, with shardings.
          config: of the run that continues, settled.
          table: the factorization the target has.
          fingerprint: of the data at hand.

        Returns:
          The state and the saved progress.

        Raises:
          RunError: the checkpoint is damaged, or of another config, factorization or data.
        """
        manifest = self.manifest(step)
        place, advice = self._place(step), self._advice
        differences = table.differences(manifest.read_table())
        if differences:
            more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
            raise RunError(f"{place} is of another factorization: {differences[0]}{more}")
        changed = config_keys.differences(manifest.config, config, ignore=run_folder.MAY_CHANGE)
        if changed:
            key, (theirs, ours) = next(iter(changed.items()))
            raise RunError(f"{place} is of another run: {key} is {theirs!r} there, {ours!r} here")
        if manifest.fingerprint != fingerprint:
            raise RunError(
                f"{place} was trained on other data (fingerprint {manifest.fingerprint[:12]}…, "
                f"here {fingerprint[:12]}…)"
            )
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
            )["state"]
        except Exception as error:
            raise RunError(f"{place} cannot be read ({_short(error)}); {advice}") from error
        try:
            whole = agrees(restored, manifest.digest)
        except ValueError as error:
            raise RunError(
                f"{place} cannot be checked: {error}; nothing was changed. Continue with the "
                "version of this program that has written it"
            ) from error
        if not whole:
            raise RunError(f"{place} is damaged: its digest does not match; {advice}")
        return restored, manifest.progress

    def close(self) -> None:
        """As `wait`, and nothing more can be saved."""
        with self._writing():
            self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self.close()
        elif not processes.several():  # With others, it would be waited for who does not come.
            with contextlib.suppress(Exception):  # Which was told already, or comes after another.
                self._manager.close()

    def _place(self, step: int | None) -> str:
        return f"checkpoint {self._folder / str(step)}"

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with files.writing(self._folder):
                yield
        except RunError:
            raise
        except Exception as error:
            # Orbax and TensorStore wrap the operating system's errors in their own.
            raise RunError(f"cannot write {self._folder}: {_short(error)}") from error


def _telling(handler: Any, tell: Callable[[Exception], None]) -> Any:
    """A handler of Orbax that tells the errors of what it does in the background as they happen."""

    @contextlib.contextmanager
    def told() -> Iterator[None]:
        try:
            yield
        except Exception as error:
            tell(error)
            raise

    class Write(ocp.future.Future):
        def __init__(self, write: Any) -> None:
            self._write = write

        def result(self, timeout: float | None = None) -> Any:
            with told():
                return self._write.result(timeout)

    async_save, finalize = handler.async_save, handler.finalize

    async def save(*args: Any, **kwargs: Any) -> Any:
        return [Write(write) for write in await async_save(*args, **kwargs) or []]

    def end(*args: Any, **kwargs: Any) -> None:
        with told():
            finalize(*args, **kwargs)

    handler.async_save, handler.finalize = save, end
    return handler


def _checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "no space left" in text.lower():
        return "no space left on device"
    return f"{type(error).__name__}: {text[:200]}"
