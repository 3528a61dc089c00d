"""Several processes as one run: who they are, what they agree on, and who writes.

On several hosts the same program runs once on each, and JAX makes their devices one mesh. Arrays,
compiled steps and checkpoints are then common to all, and every process takes the same decisions in
the same order. What may differ between hosts, such as clocks and signals, is agreed on before
anything depends on it; files are written by the first process, and what the others have to say goes
to a folder that is thrown away. With one process all of this is nothing.

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
from jax.experimental import multihost_utils

from experiments.errors import RunError

AUTO = "auto"


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
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"--distributed={text}: {error}") from error


def several() -> bool:
    """Whether there are others."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def wait(moment: str) -> None:
    """Until all processes have come to the moment of this name."""
    if several():
        multihost_utils.sync_global_devices(moment)


def any_says(yes: bool) -> bool:
    """Whether any process says yes: the same answer in all of them."""
    return bool(np.any(multihost_utils.process_allgather(np.asarray(yes)))) if several() else yes


def of_the_first(tree: Any) -> Any:
    """The arrays that the first process has, in all of them."""
    return multihost_utils.broadcast_one_to_all(tree) if several() else tree


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
