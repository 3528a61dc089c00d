"""Several processes as one run: who they are, what they agree on, and who writes.

On several hosts the same program runs once on each, and JAX makes their devices one mesh. Arrays,
compiled steps and checkpoints are then common to all, and every process takes the same decisions in
the same order. What may differ between hosts, such as clocks and signals, is agreed on before
anything depends on it; files are written by the first process, and what the others have to say goes
to a folder that is thrown away. With one process all of this is nothing. How they end is said in
`ending.py`.

Source: JAX's documentation, "Introduction to multi-controller JAX".
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # Of its service JAX makes no public name; Orbax has it from here.
from jax.experimental import multihost_utils

from experiments.errors import RunError

AUTO = "auto"

# How long a process may be silent before JAX takes it for dead. Heartbeats come from a thread of
# C++, which goes on while Python compiles, writes or holds its lock: what is to be outlasted is a
# machine that stands still or cannot be reached for a while.
HEARTBEAT_TIMEOUT_SECONDS = 60

_LONG_MS = 3_600_000  # For what others say who are alive; if they are not, this process ends first.


def join(text: str) -> None:
    """Makes this process one of a run; to be called before anything else of JAX.

    Args:
      text: `auto`: JAX asks the cluster (Slurm, Open MPI, Cloud TPU, Kubernetes); or
        ``HOST:PORT,INDEX,COUNT``: where the first process listens, which one this is, counted from
        0, and how many there are.

    Raises:
      RunError: the text is not of this form, or the others cannot be found.
    """
    if text == AUTO:
        arguments: dict[str, Any] = {}
    else:
        parts = text.split(",")
        numbers = [int(part) for part in parts[1:] if part.isdigit()]
        if len(parts) != 3 or len(numbers) != 2 or not 0 <= numbers[0] < numbers[1]:
            raise RunError(
                f"--distributed={text}: expected {AUTO}, or HOST:PORT,INDEX,COUNT with an index "
                "below the count, such as 10.0.0.1:1234,0,2"
            )
        arguments = {
            "coordinator_address": parts[0],
            "process_id": numbers[0],
            "num_processes": numbers[1],
        }
    # It takes SIGTERM for itself, also where nobody asks it: see `experiments.stopping`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"--distributed={text}: {error}") from error


def several() -> bool:
    """Whether there are others."""
    # Who has not joined is alone, and JAX need not be started to know it.
    return service() is not None and jax.process_count() > 1


def index() -> int:
    """Which one this is, counted from 0."""
    return jax.process_index()


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return index() == 0


def service() -> Any:
    """JAX's coordination service, which the first process runs: keys with texts, and barriers, for
    processes to agree without their devices."""
    return distributed.global_state.client


def wait(moment: str) -> None:
    """Until all processes have come to the moment of this name."""
    if several():
        multihost_utils.sync_global_devices(moment)


def any_says(yes: bool) -> bool:
    """Whether any process says yes: the same answer in all of them."""
    return bool(anywhere(np.asarray(yes)))


def anywhere(flags: np.ndarray) -> np.ndarray:
    """Of each of some flags, whether it is set in any process."""
    return multihost_utils.process_allgather(flags).any(0) if several() else flags


def of_the_first(tree: Any) -> Any:
    """The arrays that the first process has, in all of them."""
    return multihost_utils.broadcast_one_to_all(tree) if several() else tree


def text_of_the_first(name: str, text: str) -> str:
    """The text that the first process gives under this name, which is used once, in all of them."""
    if not several():
        return text
    if is_first():
        service().key_value_set(name, text)
    return str(service().blocking_key_value_get(name, _LONG_MS))


def on_host(array: Any) -> np.ndarray:
    """A whole array on this host, wherever its parts are."""
    here = not isinstance(array, jax.Array) or array.is_fully_addressable
    if here or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def gathered(tree: Any) -> Any:
    """A tree of whole arrays, to be computed with by each process alone."""
    return jax.tree.map(on_host, tree) if several() else tree


@contextlib.contextmanager
def output_folder(folder: Path) -> Iterator[Path]:
    """The folder for the first process; one for each of the others that is removed at the end."""
    if is_first():
        yield folder
    else:
        with tempfile.TemporaryDirectory() as aside:
            yield Path(aside)
