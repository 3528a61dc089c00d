"""What a sweep asks for: its runs, and the settled config of each."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from absl import flags

from experiments import arguments, config_keys
from experiments.command_line import read_config
from experiments.sweep_plan import SweepRun, find_sweep, plan_sweep


@functools.cache
def settled(name: str, argument: str = "") -> tuple[list[dict[str, Any]], list[SweepRun]]:
    """The settled configs of a sweep's runs, flattened and in order, and the runs."""
    runs = plan_sweep(find_sweep(name), Path("out"), argument)
    configs = [
        read_config(["test", f"--config={run.config}"], flags.FlagValues(), "")[0] for run in runs
    ]
    return [config_keys.flatten(arguments.settle(config)) for config in configs], runs
