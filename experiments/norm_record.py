"""The norms of a run's factorized weights after every step (`norms.npz`), and their replay.

A run with `record_norms` keeps them in its optimizer's state while it trains, so that they survive
whatever the state survives, and writes them when it is done. A run with `replay=RUN` sets them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import lowrank_jax as lrj
from experiments import config_keys, files, run_folder
from experiments.errors import RunError
from experiments.result import Data, Replay
from lowrank_jax.norm_replay import SMALLEST_NORM

FILE_NAME = "norms.npz"

TOLERANCE = 1e-5
"""Largest accepted difference of a replayed norm from the recorded one, as a share of it."""

Norms = dict[str, np.ndarray]
"""By path of the weight, ``(steps,)``."""


# What the run that replays may do otherwise than the one that recorded.
_MAY_DIFFER = (*config_keys.OPERATIONAL, "decay", "replay")


@dataclasses.dataclass(frozen=True)
class NormRecord:
    """The norms that a run replays.

    Attributes:
      run: the folder of the run that recorded them.
      norms: after each of its steps.
      digest: of the file that they were read from.
    """

    run: Path
    norms: Norms
    digest: str

    @classmethod
    def load(cls, place: str) -> NormRecord:
        """The record of a run.

        Raises:
          RunError: there is none, or it is damaged.
        """
        run = Path(place)
        path = run / FILE_NAME
        if not path.exists():
            raise RunError(
                f"replay={place}: there is no {path}; it is written at the end of a run with "
                "record_norms=True"
            )
        try:
            content = path.read_bytes()
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                norms = {name: np.asarray(archive[name]) for name in archive.files}
        except Exception as error:  # A damaged header of an archive raises anything.
            raise RunError(f"{path} is damaged: {error!r}") from error
        for name, values in norms.items():
            real = values.ndim == 1 and values.dtype.kind == "f"
            if not real or not np.isfinite(values).all() or (values < 0).any():
                raise RunError(f"{path} is damaged: {name} is not a series of norms")
        return cls(run, norms, hashlib.sha256(content).hexdigest())

    def require_fit(self, config: ConfigDict, data: Data, table: lrj.Table, steps: int) -> None:
        """Raises RunError unless it was recorded by the same experiment but for its decay.

        Args:
          config: of the run that is to replay, settled.
          data: what it trains on.
          table: what it factorizes.
          steps: how many it makes.
        """
        differences = table.differences(run_folder.read_table(self.run))
        if differences:
            raise RunError(f"{self.run} is the record of another model: {differences[0]}")
        if self.norms.keys() != {row.path for row in table.rows}:
            apart = sorted(self.norms.keys() ^ {row.path for row in table.rows})
            raise RunError(
                f"{self.run / FILE_NAME} is the record of another model: {', '.join(apart[:3])}"
            )
        theirs = files.read_json(self.run / run_folder.CONFIG)
        found = config_keys.differences(theirs, config, ignore=_MAY_DIFFER)
        if found:
            key, (there, here) = next(iter(found.items()))
            raise RunError(
                f"{self.run} is the record of another experiment: {key} is {there!r} there and "
                f"{here!r} here; only its decay may differ"
            )
        if files.read_json(self.run / run_folder.DATA).get("fingerprint") != data.fingerprint:
            raise RunError(f"{self.run} is the record of a run on other data than {data.name} here")
        lengths = {len(values) for values in self.norms.values()}
        if lengths != {steps}:
            raise RunError(f"{self.run} recorded {min(lengths)} steps, and this run has {steps}")


def write(folder: Path, opt_state: Any) -> Norms:
    """Writes what a run recorded to its folder, and returns it."""
    norms = lrj.recorded_norms(opt_state)
    content = io.BytesIO()
    np.savez(content, **norms)  # type: ignore[arg-type]
    files.write_bytes(folder / FILE_NAME, content.getvalue())
    return norms


def compare(norms: Norms, record: NormRecord) -> Replay:
    """How near the norms of a run came to those that it replayed.

    Raises:
      RunError: not near enough.
    """
    largest = 0.0
    for path, values in norms.items():
        target = record.norms[path].astype(np.float64)
        apart = np.abs(values - target) / np.maximum(target, SMALLEST_NORM)
        apart[(values < SMALLEST_NORM) & (target < SMALLEST_NORM)] = 0  # Left alone.
        if not apart.max() <= TOLERANCE:
            step = int(np.argmax(apart > TOLERANCE)) + 1
            raise RunError(
                f"{path}: after step {step} its norm is {values[step - 1]:.8g}, and "
                f"{target[step - 1]:.8g} was to be replayed from {record.run}"
            )
        largest = max(largest, float(apart.max()))
    return Replay(run=str(record.run), largest_difference=largest)
