"""Scripts on eight CPU devices, in processes of their own: the number of devices is fixed when JAX
starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import quick_compilation


def printed_by(
    script: Path, *arguments: str, imports: tuple[Path, ...] = (), optimized: bool = True
) -> Any:
    """What a script prints as JSON.

    Args:
      script: to be run.
      arguments: of it.
      imports: folders that it imports from, beside its own.
      optimized: whether programs are compiled with all optimizations.
    """
    environment = dict(quick_compilation.environment(8, optimized))
    if imports:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, imports))
    done = subprocess.run(
        [sys.executable, str(script), *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
