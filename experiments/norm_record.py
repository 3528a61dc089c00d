"""The norms of a run's factorized weights after every step (`norms.npz`), and their replay.

A run with `record_norms` keeps them in its optimizer's state while it trains, so that they survive
whatever the state survives, and writes them when it is done. A run with `replay=RUN` sets them.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

import lowrank_jax as lrj
from experiments import files, run_folder
from experiments.errors import RunError
from experiments.result import Replay
from lowrank_jax.norm_replay import SMALLEST_NORM

FILE_NAME = "norms.npz"

TOLERANCE = 1e-5
"""Largest accepted difference of a replayed norm from the recorded one, as a share of it."""

Norms = dict[str, np.ndarray]
"""By path of the weight, ``(steps,)``."""


@dataclasses.dataclass(frozen=True)
class NormRecord:
    """The norms that a run replays.

    Attributes:
      run: the folder of the run that recorded them.
      table: what was factorized there.
      norms: after each of its steps.
    """

    run: Path
    table: lrj.Table
    norms: Norms

    @classmethod
    def load(cls, place: str) -> NormRecord | None:
        """The record of a run; None if the place is ''.

        Raises:
          RunError: there is none, or it is damaged.
        """
        if not place:
            return None
        run = Path(place)
        path = run / FILE_NAME
        if not path.exists():
            raise RunError(
                f"replay={place}: there is no {path}; it is written at the end of a run with "
                "record_norms=True"
            )
        try:
            with np.load(path, allow_pickle=False) as archive:
                norms = {name: np.asarray(archive[name]) for name in archive.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise RunError(f"{path} is damaged: {error}") from error
        for name, values in norms.items():
            if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any():
                raise RunError(f"{path} is damaged: {name} is not a series of norms")
        return cls(run, run_folder.read_table(run), norms)

    def require_fit(self, table: lrj.Table, steps: int) -> None:
        """Raises RunError unless it is the record of such a network, over as many steps."""
        differences = table.differences(self.table)
        if differences:
            raise RunError(f"{self.run} is the record of another model: {differences[0]}")
        paths = {row.path for row in table.rows}
        if paths != self.norms.keys():
            apart = ", ".join(sorted(paths ^ self.norms.keys())[:3])
            raise RunError(f"{self.run / FILE_NAME} is the record of another model: {apart}")
        shortest = min(map(len, self.norms.values()))
        if shortest < steps:
            raise RunError(f"{self.run} recorded {shortest} steps, and this run has {steps}")


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
        target = record.norms[path][: len(values)].astype(np.float64)
        apart = np.abs(values - target) / np.maximum(target, SMALLEST_NORM)
        if not apart.max() <= TOLERANCE:
            step = int(np.argmax(apart > TOLERANCE)) + 1
            raise RunError(
                f"{path}: after step {step} its norm is {values[step - 1]:.8g}, and "
                f"{target[step - 1]:.8g} was to be replayed from {record.run}"
            )
        largest = max(largest, float(apart.max()))
    return Replay(run=str(record.run), largest_difference=largest)
