"""Tasks: what a batch is, what is minimized and what is measured. One file each.

What the training loop asks of a task is in `task.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.errors import RunError
from experiments.tasks import classification, translation
from experiments.tasks.task import Task


class Entry(NamedTuple):
    """How a task is made from a settled config: whole, or its network alone, without data."""

    load: Callable[[ConfigDict], Task]
    network: Callable[[ConfigDict], Any]


TASKS: dict[str, Entry] = {
    "classification": Entry(classification.Classification.load, classification.network),
    "translation": Entry(translation.Translation.load, translation.network),
}


def load(config: ConfigDict) -> Task:
    """The task a config names, with its data.

    Raises:
      RunError: the task is unknown, or its data cannot be had.
    """
    return _find(config).load(config)


def network(config: ConfigDict) -> Any:
    """The dense network of the task a config names; its data need not be there.

    Raises:
      RunError: the task, its data set or its model is unknown, or the model refuses a value.
    """
    return _find(config).network(config)


def _find(config: ConfigDict) -> Entry:
    if config.task not in TASKS:
        raise RunError(f"unknown task {config.task!r}; known are {', '.join(sorted(TASKS))}")
    return TASKS[config.task]
