"""How many processor cores there are to compute on."""

import os


def cores() -> int:
    """Those that this process may use, where the system tells; a container may allow fewer than
    all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
