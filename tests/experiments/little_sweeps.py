"""Sweeps for tests: their files, and the command that is given them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from experiments import arguments, files, sweep
from experiments.command_line import read_config
from experiments.sweep_plan import SweepRun

ROOT = Path(__file__).parents[2]
CONFIG = f"{ROOT}/configs/cifar_resnet.py"


def sweep_file(folder: Path, *listed: dict[str, Any], shared: str = "") -> Path:
    """The file of a sweep of runs of `CONFIG` with these arguments, behind what they share."""
    path = folder / "little.py"
    path.write_text(
        f"def get_sweep():\n    return {[(CONFIG + shared, one) for one in listed]!r}\n"
    )
    return path


def begin(run: SweepRun) -> None:
    """Writes the config of a run to its folder, which is what a run does first."""
    config, _ = read_config(["test", f"--config={run.config}"], flags.FlagValues(), "")
    files.write_json(run.folder / "config.json", arguments.settle(config).to_dict())


def started(path: Path, out: Path, *options: str) -> int:
    """Starts the sweep and returns its exit code."""
    return sweep.main([str(path), f"--out={out}", *options])
