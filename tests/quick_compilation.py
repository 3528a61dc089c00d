"""How programs of tests are compiled: quickly, since they run for moments.

Optimizations are switched off as JAX itself can do it. Kernels are emitted directly, and not
through a compiler of their own (MLIR), and a program is compiled in one piece: for programs as
small as these that halves the time once more. The latter two are flags of XLA, read once when it
starts; XLA refuses flags that it does not know, so they are looked for in its library first.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path

import jaxlib

WITHOUT_OPTIMIZATIONS = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
_FLAGS = {
    "xla_cpu_use_fusion_emitters": "false",
    "xla_cpu_parallel_codegen_split_count": "1",
}


def flags() -> str:
    """Those of XLA, for the variable `XLA_FLAGS`; none that the installed one does not know."""
    library = Path(jaxlib.__file__).with_name("libjax_common.so")
    if not library.is_file():  # Another platform or another version names it otherwise.
        return ""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        known = [name for name in _FLAGS if text.find(name.encode()) >= 0]
    return " ".join(f"--{name}={_FLAGS[name]}" for name in known)


def environment(devices: int, optimized: bool) -> Mapping[str, str]:
    """The environment of a process that compiles for CPU devices.

    Args:
      devices: how many there are.
      optimized: whether as a user's process would, or quickly.
    """
    several = f"--xla_force_host_platform_device_count={devices}"
    found = {name: value for name, value in os.environ.items() if name not in WITHOUT_OPTIMIZATIONS}
    if optimized:
        return found | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": several}
    quick = f"{flags()} {several}"
    return found | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick} | WITHOUT_OPTIMIZATIONS
