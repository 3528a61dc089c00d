"""The user's cache of measured times: each application of a weight is timed once per machine.

One JSON file, `forms.json` in the cache folder of `experiments.data.places`, with an entry for each
device, version of JAX, layout and application. It saves seconds and is never needed: where it
cannot be read or written, a line says so and the measurement is repeated. Writing replaces the
whole file in one step; of two processes that write at the same moment, one may lose its entries,
which then are measured again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import lowrank_jax as lrj
from experiments import files
from experiments.data.places import Places
from experiments.errors import RunError
from experiments.result import hardware


@dataclasses.dataclass(frozen=True)
class Seconds:
    """What one application takes, forward and backward, in its two forms."""

    factored: float
    composed: float

    @classmethod
    def of(cls, entry: Any) -> Seconds | None:
        """From parsed JSON; None if it is not two positive numbers under the two names."""
        try:
            found = cls(float(entry["factored"]), float(entry["composed"]))
        except (KeyError, TypeError, ValueError):
            return None
        values = (found.factored, found.composed)
        return found if all(math.isfinite(v) and v > 0 for v in values) else None


class FormCache:
    """The cache, as far as it concerns one layout on this machine.

    Args:
      layout: of images inside the function that is timed.
      say: where the line goes that tells what is wrong with it.
    """

    def __init__(self, layout: str, say: Callable[[str], None]) -> None:
        machine = hardware()
        device = machine["device_kind"]
        if machine["platform"] == "cpu":  # JAX calls them all `cpu`.
            device = f"{machine['cpu']}, {machine['cores']} cores"
        self._prefix = (
            f"{device} | jax {jax.__version__} | lowrank_jax {lrj.__version__} | {layout} | "
        )
        self._say = say
        self._complained = False
        self._entries = self._read()

    def get(self, signature: str) -> Seconds | None:
        """The times of an application, if there are any."""
        return Seconds.of(self._entries.get(self._prefix + signature))

    def put(self, signature: str, seconds: Seconds) -> None:
        """Keeps the times of an application, beside what other processes have written since."""
        self._entries = self._read() | {self._prefix + signature: dataclasses.asdict(seconds)}
        try:
            files.write_json(_path(), self._entries)
        except (RunError, RuntimeError) as error:
            self._complain(f"{error}; measurements are not kept")

    def _read(self) -> dict[str, Any]:
        try:
            found = files.read_json(_path()) if _path().exists() else {}
            if not isinstance(found, dict):
                raise RunError(f"{_path()} is damaged: expected a JSON object")
        except (RunError, RuntimeError, OSError) as error:
            self._complain(f"{error}; measuring again")
            return {}
        return found

    def _complain(self, line: str) -> None:
        """Once: what is wrong on the first occasion is wrong on the following ones."""
        if not self._complained:
            self._say(f"cache of measured forms: {line}")
            self._complained = True


def _path() -> Path:
    """Raises RuntimeError where there is no home folder."""
    return Places.of(None, None).data_dir / "forms.json"
