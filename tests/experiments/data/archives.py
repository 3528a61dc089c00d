"""Archives and Debian packages in memory."""

import gzip
import io
import lzma
import tarfile
from collections.abc import Mapping


def tar(members: Mapping[str, bytes], mode: str) -> bytes:
    """An archive in memory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def ar(members: Mapping[str, bytes]) -> bytes:
    """An `ar` archive as dpkg-deb writes it: ar(5)."""
    content = b"!<arch>\n"
    for name, data in members.items():
        content += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data
        content += b"\n" * (len(data) % 2)
    return content


def package(files: Mapping[str, str], compression: str = ".xz") -> bytes:
    """A Debian package with these files; its control archive has an odd size.

    A surrogate in a text stands for the byte that is no UTF-8 (`errors="surrogateescape"`).
    """
    contents = {name: text.encode(errors="surrogateescape") for name, text in files.items()}
    data = tar({f"./{name}": content for name, content in contents.items()}, "w:")
    data = {".xz": lzma.compress, ".gz": gzip.compress, "": bytes}[compression](data)
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",
        f"data.tar{compression}": data,
    }
    return ar(members)
