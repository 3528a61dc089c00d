"""What the commands share: reading `--config=FILE[:key=value,…]`, one clear line for mistakes."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

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
        found = config.value
        getattr(found, "items", None)  # A file that could not be loaded tells so when it is used.
    except RunError:
        raise
    except flags.Error as error:
        raise RunError(f"{error}. {usage}") from error
    except Exception as error:  # A config file is a program: anything may come out of it.
        raise RunError(f"cannot read the config: {_described(error)}. {usage}") from error
    if len(left) > 1:
        raise RunError(f"unexpected argument {left[1]!r}. {usage}")
    if found is None:
        raise RunError(f"no config given. {usage}")
    flag: Any = values["config"]
    name, _, argument = flag.config_filename.partition(":")
    if not isinstance(found, ConfigDict):
        raise RunError(f"{name}: get_config returned a {type(found).__name__}, not a ConfigDict")
    return found, argument


def _described(error: Exception) -> str:
    """An error of a config file in one line, with the place in the file where it has one."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError | SyntaxError):  # Their text names the file.
        return text
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if frame.name in ("<module>", "get_config")]
    if inside:
        place = f"{inside[-1].filename}, line {inside[-1].lineno}"
        return f"{place}: {type(error).__name__}: {text}"
    if isinstance(error, AttributeError | KeyError):
        return "it has no key " + text.strip("\"'")
    return text


def exit_code(command: Callable[[], object]) -> int:
    """Runs a command; a `RunError` becomes one message on stderr and exit code 2."""
    try:
        command()
        sys.stdout.flush()
    except RunError as error:
        name = "error" if type(error) is RunError else type(error).__name__
        print(f"{name}: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # Whoever read the output, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # For the flush at exit.
        return 128 + signal.SIGPIPE
    return 0
