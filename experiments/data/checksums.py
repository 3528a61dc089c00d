"""Checksums of original files; a wrong one is an error, never a reason to look elsewhere.

Of files that have no known one, the sha256 of what is there is recorded.
"""

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path

from experiments.data.errors import DataCorrupt
from experiments.data.original import OriginalFile


def verify(path: Path, file: OriginalFile) -> None:
    """Raises `DataCorrupt` if the file at `path` has another checksum than the known one."""
    if file.checksum is None:
        return
    algorithm, expected = file.checksum.split(":")
    found = _digest(path, algorithm, decompress=file.content_checksum)
    if found != expected:
        of = "content" if file.content_checksum else "file"
        raise DataCorrupt(
            f"{path}: wrong checksum: the {algorithm} of the {of} is {found}, expected {expected}; "
            f"it is damaged or another file: delete it, or get it again from {file.url}"
        )


def unknown(files: Mapping[Path, OriginalFile]) -> dict[str, str]:
    """The sha256 of the files that have no known checksum, by their names."""
    return {
        path.name: _digest(path, "sha256", decompress=False)
        for path, file in files.items()
        if file.checksum is None
    }


def _digest(path: Path, algorithm: str, *, decompress: bool) -> str:
    digest = hashlib.new(algorithm)
    try:
        with gzip.open(path) if decompress else path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except (OSError, EOFError, zlib.error) as error:  # a damaged gzip file is an OSError, too
        raise DataCorrupt(f"{path}: cannot be read ({error}); if damaged, delete it") from error
    return digest.hexdigest()
