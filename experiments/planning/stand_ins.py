"""Devices that are not there: as many CPU devices as a mesh asks for, in a process of their own.

How many devices there are is decided when JAX starts, so the command runs once more in a new
process. Nothing is trained on them: programs are compiled for them.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence

from experiments import mesh as meshes

_FLAG = "--xla_force_host_platform_device_count"


def devices_of(mesh: str) -> int | None:
    """How many devices a mesh asks for; None where it takes what there is, or is none.

    Raises:
      RunError: the text is not of the form of a mesh.

    >>> devices_of("data:2,fsdp:4"), devices_of("data:-1")
    (8, None)
    """
    sizes = meshes.parse(mesh).values()
    return math.prod(sizes) if min(sizes) >= 1 else None


def run_on(devices: int, module: str, arguments: Sequence[str]) -> int:
    """Runs a command on so many CPU devices; its exit code."""
    environment = dict(os.environ)
    environment.pop("JAX_NUM_CPU_DEVICES", None)  # It says the same in other words.
    others = re.sub(rf"{_FLAG}=\S*", "", environment.get("XLA_FLAGS", ""))
    environment["XLA_FLAGS"] = f"{others} {_FLAG}={devices}".strip()
    environment["JAX_PLATFORMS"] = "cpu"
    return subprocess.call([sys.executable, "-m", module, *arguments], env=environment)
