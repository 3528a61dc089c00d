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


def obstacle(url: str) -> str | None:
    """Why a package file cannot be had, as far as is known without the network; None if it can."""
    if shutil.which("apt-get") is None:
        return "there is no apt-get on this machine"
    try:
        _run("--print-uris", url)
    except DataUnavailable as error:
        return str(error)
    return None


def fetch(url: str, folder: Path) -> Path:
    """Downloads a package file into `folder`, which holds it only once it is complete.

    Raises:
      DataUnavailable: apt cannot get it, which without a network is known in seconds.
      OSError: the file cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".apt") as scratch:
        _run("--quiet", url, scratch)
        (package,) = Path(scratch).glob("*.deb")
        target = folder / package.name
        os.replace(package, target)
    return target


def _run(option: str, url: str, folder: str | None = None) -> None:
    command = ["apt-get", "download", option, "-o", "Acquire::Retries=0"]
    command += ["-o", f"Acquire::http::Timeout={_CONNECT_SECONDS}"]
    command += ["-o", f"Acquire::https::Timeout={_CONNECT_SECONDS}", url.removeprefix(SCHEME)]
    try:
        subprocess.run(
            command,
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
