"""Downloading an original file, only after a quick look whether its server answers.

Files of Debian packages (`apt:` addresses) are `apt_download.py`'s.

The look bounds the wait on a machine without a network: a time-out of `requests` covers neither
the name lookup nor several addresses of one host, so the request runs in a thread of its own.
"""

import os
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

import requests

from experiments.data import apt_download, checksums
from experiments.data.errors import DataUnavailable
from experiments.data.original import OriginalFile
from experiments.data.progress import ProgressLines

REACH_SECONDS = 2.5
_STALL_SECONDS = 60.0
_BLOCK_BYTES = 1 << 20


def obstacle(url: str) -> str | None:
    """Why `url` cannot be fetched, found out within `REACH_SECONDS`; None if it can.

    Proxies of the environment are honoured.
    """
    if url.startswith(apt_download.SCHEME):
        return apt_download.obstacle()
    outcome: list[str | None] = []

    def ask() -> None:
        try:
            answer = requests.head(url, timeout=REACH_SECONDS, allow_redirects=True)
            outcome.append(f"HTTP {answer.status_code}" if answer.status_code >= 400 else None)
        except Exception as error:  # whatever it is, the file cannot be had
            elapsed = time.monotonic() - start
            outcome.append(f"{_root_name(error)}: no connection after {elapsed:.1f} s")

    start = time.monotonic()
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    return outcome[0] if outcome else f"Timeout: no connection after {REACH_SECONDS:.1f} s"


def _root_name(error: BaseException) -> str:
    """The name of the error at the bottom of what requests and urllib3 wrap around it."""
    inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
    return _root_name(inner) if isinstance(inner, BaseException) else type(error).__name__


def fetch(file: OriginalFile, url: str, folder: Path) -> Path:
    """Downloads a file from its address into `folder`.

    It is there only once it is complete and verified. Prints progress on stderr.

    Raises:
      DataUnavailable: the connection failed.
      DataCorrupt: the checksum is wrong; nothing is kept.
      OSError: the file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if url.startswith(apt_download.SCHEME):
        return apt_download.fetch(url, folder)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as out:
            _stream(file, url, out)
        checksums.verify(Path(temporary), file)
        target = folder / file.name
        os.replace(temporary, target)
        return target
    finally:
        Path(temporary).unlink(missing_ok=True)


def _stream(file: OriginalFile, url: str, out: IO[bytes]) -> None:
    done, progress = 0, ProgressLines(file.name, file.size)
    try:
        with requests.get(url, stream=True, timeout=_STALL_SECONDS) as answer:
            answer.raise_for_status()
            for block in answer.iter_content(_BLOCK_BYTES):
                out.write(block)
                done += len(block)
                progress.show(done, f"{done / 2**20:.0f} MB")
    except requests.RequestException as error:
        raise DataUnavailable(
            f"broke off after {done} of {file.size} bytes of {file.name} ({_root_name(error)})"
        ) from error
