"""The own cache: `data.dir/NAME/*.npy`, so that an archive is decoded once.

`fingerprint.json` is written last and removed first: a cache without it does not exist. What is
read back must have the fingerprint that was written.
"""

import functools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from experiments.data.embedded_sets import Arrays
from experiments.data.errors import DataCorrupt
from experiments.data.image_data import ImageData, fingerprint

_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_MARK = "fingerprint.json"


def exists(folder: Path) -> bool:
    """Whether a complete cache is in the folder."""
    return (folder / _MARK).is_file()


def read(folder: Path) -> tuple[Arrays, str]:
    """The arrays, and the origin of what was cached.

    Raises `DataCorrupt` if they are not what was written.
    """
    try:
        mark = json.loads((folder / _MARK).read_text())
        expected, origin = mark["fingerprint"], mark["origin"]
        train_images, train_labels, test_images, test_labels = (
            np.load(folder / f"{name}.npy") for name in _ARRAYS
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DataCorrupt(f"{folder}: damaged cache ({error}); delete this folder") from error
    arrays = train_images, train_labels, test_images, test_labels
    found = fingerprint(*arrays)
    if found != expected:
        raise DataCorrupt(
            f"{folder}: damaged cache: its fingerprint is {found}, expected {expected}; "
            "delete this folder"
        )
    return arrays, origin


def write(folder: Path, data: ImageData) -> None:
    """Stores a data set; raises `OSError` if it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).unlink(missing_ok=True)
    for name in _ARRAYS:
        array = getattr(data, name)
        _replace(folder / f"{name}.npy", functools.partial(np.save, arr=array))
    mark = json.dumps({"fingerprint": data.fingerprint, "origin": data.origin}, indent=2)
    _replace(folder / _MARK, lambda out: out.write(mark.encode()))


def _replace(target: Path, write_to: Callable[[IO[bytes]], object]) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as out:
            write_to(out)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
