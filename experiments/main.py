"""Runs an experiment: `python -m experiments.main --config=configs/NAME.py[:arguments]`.

    --config=FILE[:key=value,…]   the config and its arguments
    --config.KEY=VALUE            overrides of single keys
    --workdir=DIR                 the run folder; by default a folder of its own under runs/
    --distributed=auto            one of several processes of a run, on a cluster that JAX knows, or
    --distributed=HOST:PORT,I,N   the I-th of N processes (from 0), the first of which listens there

The same command continues a run that was interrupted. Exit codes: 0 finished, or stopped by SIGTERM
with a checkpoint saved; 2 a mistake in what was asked for, told in one message. If one of several
processes ends, all of them do, with its code.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from experiments import ending, processes
from experiments.command_line import exit_code, read_config
from experiments.config_keys import OPERATIONAL
from experiments.stopping import Stopped
from experiments.train import train_and_evaluate

USAGE = "Usage: python -m experiments.main --config=configs/NAME.py[:key=value,…] [--workdir=DIR]"


def default_workdir(config: ConfigDict, argument: str, overrides: Sequence[str] = ()) -> Path:
    """runs/NAME, followed by the arguments that make this run differ from others of its kind.

    Args:
      config: names the run and has its seed.
      argument: the text behind the config's file name.
      overrides: flags of the form ``--config.KEY=VALUE``; others are passed over.
    """
    words = [config.name, *filter(None, (word.strip() for word in argument.split(",")))]
    changes = [flag.removeprefix("--config.") for flag in overrides if "--config." in flag]
    words += [change for change in changes if change.partition("=")[0] not in OPERATIONAL]
    if not any(word.startswith("seed=") for word in words):
        words.append(f"seed={config.seed}")
    return Path("runs") / folder_name(words)


def folder_name(words: Sequence[str]) -> str:
    """A name of a folder that is made of words such as arguments.

    >>> folder_name(["cifar_resnet", "depth=20", "data.dir=a/b", "data=files:*.txt"])
    'cifar_resnet-depth20-data.dira_b-datafiles_.txt'
    """
    # What a shell takes for more than a letter would have to be quoted ever after.
    return "-".join(
        re.sub(r"[/:*?\[\]\s]+", "_", word.strip().replace("=", "")) for word in words if word
    )


def run(argv: Sequence[str]) -> None:
    """Parses the command line and trains."""
    # Joined first: what is wrong with the rest of a command line is then told to the others, too.
    values = _flags()
    with contextlib.suppress(flags.Error):  # Told by `_train`.
        values(list(argv), known_only=True)
        if values.distributed:
            processes.join(values.distributed)
    try:
        ending.together(lambda: _train(argv))
    except Stopped as stopped:
        print(stopped)


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "the run folder", flag_values=values)
    flags.DEFINE_string("distributed", "", "as one of several processes", flag_values=values)
    return values


def _train(argv: Sequence[str]) -> None:
    values = _flags()
    config, argument = read_config(argv, values, USAGE)
    named = values.workdir or config.workdir
    workdir = Path(named) if named else default_workdir(config, argument, argv)
    train_and_evaluate(config, workdir)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(sys.argv)))
