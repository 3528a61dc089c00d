"""What the commands share: reading `--config=FILE[:key=value,…]`, one clear line for mistakes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.errors import RunError

MISTAKE = 2
"""Exit code of a command whose user can mend what went wrong."""


def read_config(
    argv: Sequence[str], values: flags.FlagValues, usage: str
) -> tuple[ConfigDict, str]:
    """Parses a command line with a config and further flags.

    Args:
      argv: the command line, program name first.
      values: holds the command's own flags; `--config` and `--config.KEY` are added here.
      usage: shown with mistakes.

    Returns:
      The config, and the argument text behind the file name ('' if there is none).

    Raises:
      RunError: a flag, file, key or value that is not understood.
    """
    config = config_flags.DEFINE_config_file("config", flag_values=values)
    try:
        left = values(list(argv))
    except flags.Error as error:
        raise RunError(f"{error}. {usage}") from error
    except OSError as error:
        raise RunError(f"cannot read the config: {error}. {usage}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"config: {' '.join(str(error).split())}. {usage}") from error
    if len(left) > 1:
        raise RunError(f"unexpected argument {left[1]!r}. {usage}")
    if config.value is None:
        raise RunError(f"no config given. {usage}")
    return config.value, values["config"].config_filename.partition(":")[2]


def exit_code(command: Callable[[], object]) -> int:
    """Runs a command; a `RunError` becomes one message on stderr and exit code 2."""
    try:
        command()
    except RunError as error:
        name = "error" if type(error) is RunError else type(error).__name__
        print(f"{name}: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
