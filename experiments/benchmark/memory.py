"""Memory of this process, as the system counts it: the same for every framework.

On Linux from `/proc/self/status`: `VmRSS` is what is resident now, `VmHWM` the most that ever was,
since the process began or since `forget_peak`. Elsewhere nothing is known, and that is said (None).
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def resident_bytes() -> int | None:
    """Bytes resident now; None where the system does not tell."""
    return _read("VmRSS")


def peak_bytes() -> int | None:
    """The most that was resident; None where the system does not tell."""
    return _read("VmHWM")


def forget_peak() -> bool:
    """Lets the peak begin anew, at what is in use now; whether the system did so.

    What was freed, as by a compiler that is done, is given back to the system first: the C library
    keeps it otherwise, and it would count as resident.
    """
    with contextlib.suppress(AttributeError, OSError):  # Only glibc has it.
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR.write_text("5")  # See proc(5).
    except OSError:
        return False
    return True


def _read(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None
