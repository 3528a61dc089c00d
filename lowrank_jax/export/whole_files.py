"""Writing files so that a kill or a full disk leaves no half file under their names.

Each content goes to a temporary file beside its target and is forced to disk; when all are there,
they take the places of their targets.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Writes files that belong together; their folders are made.

    Raises:
      OSError: they cannot be written; what was there before is still there.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary[path], "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            os.replace(temporary[path], path)
    except BaseException:
        for place in temporary.values():
            with contextlib.suppress(OSError):
                place.unlink(missing_ok=True)
        raise
