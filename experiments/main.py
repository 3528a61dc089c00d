"""Runs an experiment: `python -m experiments.main --config=configs/NAME.py[:arguments]`.

    --config=FILE[:key=value,…]   the config and its arguments
    --config.KEY=VALUE            overrides of single keys
    --workdir=DIR                 the run folder; by default a folder of its own under runs/

The same command continues a run that was interrupted. Exit codes: 0 finished, or stopped by SIGTERM
with a checkpoint saved; 2 a mistake in what was asked for, told in one message.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.arguments import OPERATIONAL, differences, settle
from experiments.errors import RunError
from experiments.train import Stopped, train_and_evaluate


def default_workdir(config: ConfigDict, argument: str) -> Path:
    """runs/NAME, followed by the arguments that make this run differ from others of its kind."""
    words = [config.name, *filter(None, argument.split(","))]
    words += [] if any(word.startswith("seed=") for word in words) else [f"seed={config.seed}"]
    return Path("runs") / "-".join(word.replace("/", "_").replace("=", "") for word in words)


def run(argv: Sequence[str]) -> Path:
    """Parses the command line and trains; returns the run folder."""
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", "", "the run folder", flag_values=values)
    try:
        left = values(list(argv))
    except flags.Error as error:
        raise RunError(f"{error}. {_USAGE}") from error
    except (FileNotFoundError, OSError) as error:
        raise RunError(f"cannot read the config: {error}. {_USAGE}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"config: {' '.join(str(error).split())}") from error
    if len(left) > 1:
        raise RunError(f"unexpected argument {left[1]!r}. {_USAGE}")
    if config.value is None:
        raise RunError(f"no config given. {_USAGE}")
    workdir = values.workdir or config.value.workdir
    argument = values["config"].config_filename.partition(":")[2] if not workdir else ""
    return train_and_evaluate(
        config.value, Path(workdir) if workdir else default_workdir(config.value, argument)
    )


_USAGE = "Usage: python -m experiments.main --config=configs/NAME.py[:key=value,…] [--workdir=DIR]"


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    try:
        run(argv)
    except RunError as error:
        name = "error" if type(error) is RunError else type(error).__name__
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped)
    except KeyboardInterrupt:
        print("interrupted; start again to continue from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
