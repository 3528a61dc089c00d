"""Tasks: what a batch is, what is minimized and what is measured. One file each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from experiments.errors import RunError
from experiments.tasks.classification import Classification

TASKS: dict[str, Callable[[ConfigDict], Any]] = {"classification": Classification.load}


def load(config: ConfigDict) -> Classification:
    """The task a config names, with its data.

    Raises:
      RunError: the task is unknown, or its data cannot be had.
    """
    if config.task not in TASKS:
        raise RunError(f"unknown task {config.task!r}; known are {', '.join(sorted(TASKS))}")
    return TASKS[config.task](config)
