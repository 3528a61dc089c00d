"""The own cache: `data.dir/NAME/*.npy`, so that an archive is decoded once.

`fingerprint.json` is written last and removed first: a cache without it does not exist. What is
read back must have the fingerprint that was written.
"""

import dataclasses
import functools
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from experiments.data.errors import DataCorrupt
from experiments.data.fingerprint import fingerprint
from experiments.data.original import Arrays

_MARK = "fingerprint.json"


@dataclasses.dataclass(frozen=True)
class Mark:
    """What a cache says about itself.

    Attributes:
      fingerprint: of the arrays.
      origin: of the data that was cached.
      sha256: of the files it was made from, by name, as far as no checksum of them is known.
    """

    fingerprint: str
    origin: str
    sha256: Mapping[str, str]


def exists(folder: Path) -> bool:
    """Whether a complete cache is in the folder."""
    return (folder / _MARK).is_file()


def read(folder: Path, names: Sequence[str]) -> tuple[Arrays, Mark]:
    """The arrays of these names.

    Raises `DataCorrupt` if they are not what was written.
    """
    try:
        stored = json.loads((folder / _MARK).read_text())
        mark = Mark(stored["fingerprint"], stored["origin"], dict(stored.get("sha256", {})))
        arrays = tuple(np.load(folder / f"{name}.npy") for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise DataCorrupt(f"{folder}: damaged cache ({error}); delete this folder") from error
    found = fingerprint(*arrays)
    if found != mark.fingerprint:
        raise DataCorrupt(
            f"{folder}: damaged cache: its fingerprint is {found}, expected {mark.fingerprint}; "
            "delete this folder"
        )
    return arrays, mark


def write(folder: Path, arrays: Mapping[str, np.ndarray], mark: Mark) -> None:
    """Stores arrays by name; raises `OSError` if they cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).unlink(missing_ok=True)
    for name, array in arrays.items():
        _replace(folder / f"{name}.npy", functools.partial(np.save, arr=array))
    content = json.dumps(dataclasses.asdict(mark), indent=2).encode()
    _replace(folder / _MARK, lambda out: out.write(content))


def _replace(target: Path, write_to: Callable[[IO[bytes]], object]) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as out:
            write_to(out)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
