"""JAX's persistent compilation cache: compiled steps kept in a folder, for runs to come.

A second run of the same program loads it instead of compiling it; `compile_time_s` is then the time
of loading. What JAX takes for the same program includes its own version, the shapes, the compiler's
options and the kind of device. Programs that compile in less than a second are not kept (JAX's
`JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS`).

It is off unless asked for, for three reasons. On many CPUs XLA's loader takes the compiler's tuning
preferences for missing features and prints a page of warnings for each program that it loads (JAX
issue 38445). A folder on a disk shared by different machines can hold code that one of them cannot
run. And whoever can write to the folder can run code in a process that reads it. On an accelerator
it is worth having: compiling is slow there, and a resumed run gets the very program it began with,
instead of one that autotuning may have chosen differently.

An empty folder name leaves alone what JAX was told otherwise (`JAX_COMPILATION_CACHE_DIR`).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from experiments import files

_OPTION = "jax_compilation_cache_dir"


@contextlib.contextmanager
def kept_in(folder: str) -> Iterator[None]:
    """While entered, compiled programs are kept in `folder` and loaded from it; '' does nothing.

    Raises:
      RunError: the folder cannot be written to.
    """
    if not folder:
        yield
        return
    path = Path(folder).expanduser().absolute()
    with files.writing(path):
        # JAX itself would only warn, and compile.
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    before = getattr(jax.config, _OPTION)
    _point_at(str(path))
    try:
        yield
    finally:
        _point_at(before)


def _point_at(folder: str | None) -> None:
    jax.config.update(_OPTION, folder)
    # JAX looks at the setting once, before the first compilation of a process.
    compilation_cache.reset_cache()
