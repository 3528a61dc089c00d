"""Tasks: what a batch is, what is minimized and what is measured. One file each.

What the training loop asks of a task is in `task.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.errors import RunError
from experiments.tasks import (
    causal_language_model,
    classification,
    masked_language_model,
    streamed_classification,
    text_classification,
    translation,
)
from experiments.tasks.task import Task


class Entry(NamedTuple):
    """How a task is made from a settled config.

    Attributes:
      load: whole; its second argument is the folder of the run, if there is one, where a task
        finds what it keeps.
      network: its network alone, without data.
      abstract: whole but for its data, of which it has the shapes.
      sizes_known: whether these are as many examples as there really are; otherwise some number.
      begins_with: the parts of the parameters, by the task of the run that a run starts from, which
        are taken from there; those of its own task are taken as a whole.
    """

    load: Callable[[ConfigDict, Path | None], Task]
    network: Callable[[ConfigDict], Any]
    abstract: Callable[[ConfigDict], Task]
    sizes_known: bool = False
    begins_with: Mapping[str, tuple[str, ...]] = {}


TASKS: dict[str, Entry] = {
    "causal_language_model": Entry(
        causal_language_model.CausalLanguageModelling.load,
        causal_language_model.network,
        causal_language_model.CausalLanguageModelling.abstract,
    ),
    "classification": Entry(
        streamed_classification.load,
        classification.network,
        streamed_classification.abstract,
        sizes_known=True,
    ),
    "masked_language_model": Entry(
        masked_language_model.MaskedLanguageModelling.load,
        masked_language_model.network,
        masked_language_model.MaskedLanguageModelling.abstract,
    ),
    "text_classification": Entry(
        text_classification.TextClassification.load,
        text_classification.network,
        text_classification.TextClassification.abstract,
        begins_with={"masked_language_model": ("encoder",)},
    ),
    "translation": Entry(
        translation.Translation.load, translation.network, translation.Translation.abstract
    ),
}


def load(config: ConfigDict, folder: Path | None = None) -> Task:
    """The task a config names, with its data, and what is kept in the folder of the run.

    Raises:
      RunError: the task is unknown, or its data cannot be had.
    """
    return find(config).load(config, folder)


def abstract(config: ConfigDict) -> Task:
    """The task a config names, with the shapes of its data: these are `jax.ShapeDtypeStruct`s, and
    need not be there.

    Raises:
      RunError: the task, its data set or its model is unknown, or it refuses a value.
    """
    return find(config).abstract(config)


def network(config: ConfigDict) -> Any:
    """The dense network of the task a config names; its data need not be there.

    Raises:
      RunError: the task, its data set or its model is unknown, or the model refuses a value.
    """
    return find(config).network(config)


def find(config: ConfigDict) -> Entry:
    """The entry of the task a config names; an unknown name is a `RunError`."""
    if config.task not in TASKS:
        raise RunError(f"unknown task {config.task!r}; known are {', '.join(sorted(TASKS))}")
    return TASKS[config.task]
