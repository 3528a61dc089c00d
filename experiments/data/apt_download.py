"""Package files of Debian and its relatives, by `apt-get download`: no root, nothing is installed.

Which file a package has, and its checksum, apt knows from its own lists and checks itself; which
version that is depends on the machine. An address is `apt:PACKAGE`.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from experiments.data.errors import DataUnavailable

SCHEME = "apt:"
_CONNECT_SECONDS = 3
_DOWNLOAD_SECONDS = 300


def obstacle() -> str | None:
    """Why no package file can be had, as far as is known without asking apt; None if one may."""
    return None if shutil.which("apt-get") else "there is no apt-get on this machine"


def fetch(url: str, folder: Path) -> Path:
    """Downloads a package file into `folder`, which holds it only once it is complete.

    Raises:
      DataUnavailable: apt cannot get it, which without a network is known in seconds.
      OSError: the file cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".apt") as scratch:
        _download(url.removeprefix(SCHEME), scratch)
        (package,) = Path(scratch).glob("*.deb")
        target = folder / package.name
        os.replace(package, target)
    return target


def _download(package: str, folder: str) -> None:
    options = ["-o", "Acquire::Retries=0"]
    for protocol in ("http", "https"):
        options += ["-o", f"Acquire::{protocol}::Timeout={_CONNECT_SECONDS}"]
    try:
        subprocess.run(
            ["apt-get", "download", "--quiet", *options, package],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=_DOWNLOAD_SECONDS,
        )
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if line.startswith("E:")]
        reason = said[0].removeprefix("E: ") if said else f"exit code {error.returncode}"
        raise DataUnavailable(f"apt-get: {reason}") from error
    except subprocess.TimeoutExpired as error:
        raise DataUnavailable(f"apt-get: no end after {_DOWNLOAD_SECONDS} s") from error
