"""Checksums of original files; a wrong one is an error, never a reason to look elsewhere."""

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import Protocol

from experiments.data.catalog import OriginalFile
from experiments.data.errors import DataCorrupt


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def verify(path: Path, file: OriginalFile) -> None:
    """Raises `DataCorrupt` unless the file at `path` has the checksum of `file`."""
    algorithm, expected = file.checksum.split(":")
    try:
        with gzip.open(path) if file.content_checksum else path.open("rb") as stream:
            found = _digest(stream, algorithm)
    except (OSError, EOFError, zlib.error) as error:  # a damaged gzip file is an OSError, too
        raise DataCorrupt(f"{path}: cannot be read ({error}); if damaged, delete it") from error
    if found != expected:
        of = "content" if file.content_checksum else "file"
        raise DataCorrupt(
            f"{path}: wrong checksum: the {algorithm} of the {of} is {found}, expected {expected}; "
            f"it is damaged or another file: delete it, or get it again from {file.url}"
        )


def _digest(stream: _Readable, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
