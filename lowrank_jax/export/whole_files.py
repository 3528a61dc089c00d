"""Writing files so that a kill or a full disk leaves no half file under their names.

Each content goes to a temporary file beside its target and is forced to disk; when all are there,
they take the places of their targets, one after the other. Files of different writes can so stand
side by side where that is cut short; a checksum over all of them finds it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Mapping
from pathlib import Path


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Writes files that belong together; their folders are made.

    Raises:
      OSError: they cannot be written. Until all are on disk, what was there before is untouched; a
        file that cannot take its place after that may leave new and old ones side by side.
    """
    for path in contents:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    # Process numbers alone are not unique where several hosts share a disk.
    mark = f"{os.getpid()}.{secrets.token_hex(4)}"
    temporary = {path: path.with_name(f".{path.name}.{mark}.tmp") for path in contents}
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
