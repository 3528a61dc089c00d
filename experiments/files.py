"""Writing files of a run folder so that a crash or a full disk never leaves half a file.

The content goes to a temporary file beside the target, is forced to disk, and takes the target's
place in one step. Every failure is a `RunError` that names the file and the reason.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import RunError
from lowrank_jax.export.whole_files import write_whole


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an `OSError` raised while writing `path` into a `RunError` that names it."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RunError(f"cannot write {os.fspath(path)}: {reason}") from error


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a whole file, or leaves what was there before.

    Raises:
      RunError: if the file cannot be written.
    """
    with writing(path):
        write_whole({Path(path): content})


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """`write_bytes` for text, in UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON; see `plain` for what becomes of arrays and NaN."""
    write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file; a missing, unreadable or broken one is a `RunError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RunError(f"cannot read {os.fspath(path)}: {reason}") from error
    except ValueError as error:
        raise RunError(f"{os.fspath(path)} is not valid JSON ({error})") from error


def plain(value: Any) -> Any:
    """`value` in JSON's own types: arrays become lists, NaN and infinities null.

    Python numbers are kept as they are; single-precision arrays keep nine significant digits,
    which identify a float32 exactly.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    array = np.asarray(value)
    if array.dtype.kind in "biu":
        return array.tolist()
    if array.dtype == np.float64:
        return plain(array.tolist())
    short = [float(f"{item:.9g}") for item in array.astype(np.float32).ravel()]
    return plain(np.reshape(short, array.shape).tolist())
