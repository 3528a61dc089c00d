"""Reading files out of a Debian package, without unpacking or installing it.

A package is an `ar` archive (deb(5), ar(5)): `!<arch>\\n`, then members of a 60-byte header, the
content, and a newline where its size is odd. Of the header, bytes 0 to 15 are the name and 48 to 57
the size in decimal. The installed files are in the member `data.tar.*`.
"""

import dataclasses
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments.data.errors import DataCorrupt

_MAGIC = b"!<arch>\n"
_HEADER = 60
_DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "data.tar.xz": lzma.decompress,
    "data.tar.gz": gzip.decompress,
    "data.tar": bytes,
}


@dataclasses.dataclass(frozen=True)
class PackageName:
    """What the file name `NAME_VERSION_ARCHITECTURE.deb` says."""

    name: str
    version: str

    @classmethod
    def of(cls, path: Path) -> "PackageName":
        """From a file name; `DataCorrupt` if it is not of that form."""
        parts = path.name.removesuffix(".deb").split("_")
        if len(parts) != 3 or path.suffix != ".deb":
            raise DataCorrupt(f"{path}: expected a file name NAME_VERSION_ARCHITECTURE.deb")
        return cls(parts[0], parts[1].replace("%3a", ":"))


def files(path: Path, folder: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of the installed files below `folder`, a path without a leading slash.

    Raises `DataCorrupt` if the package is damaged or packed in a way that Python cannot read.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(_data_archive(path)), mode="r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None and name.startswith(folder):
                    yield name.removeprefix(folder), content.read()
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        raise DataCorrupt(f"{path}: damaged ({error}); delete it and get it again") from error


def _data_archive(path: Path) -> bytes:
    """The archive of the installed files, decompressed as a whole, which checks all of it."""
    content = path.read_bytes()
    if not content.startswith(_MAGIC):
        raise DataCorrupt(f"{path}: not a Debian package")
    position = len(_MAGIC)
    while header := content[position : position + _HEADER]:
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        size = header[48:58].strip()
        position += _HEADER
        if not size.isdigit() or position + int(size) > len(content):
            raise DataCorrupt(f"{path}: damaged at byte {position}; delete it and get it again")
        if name.startswith("data.tar"):
            if name not in _DECOMPRESS:
                raise DataCorrupt(
                    f"{path}: {name} cannot be read, expected one of {', '.join(_DECOMPRESS)} as "
                    "in Debian's own packages"
                )
            return _DECOMPRESS[name](content[position : position + int(size)])
        position += int(size) + int(size) % 2
    raise DataCorrupt(f"{path}: it has no data.tar")
