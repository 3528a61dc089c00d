"""What every task on text has in common: a vocabulary that is kept, and no options of images.

A run learns its vocabulary from the training text once, and keeps it in its folder. A run that
starts from another one takes that one's, since the tables of tokens go by it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.data.vocabulary import Vocabulary
from experiments.errors import RunError
from experiments.finished_run import FinishedRun

FILE_NAME = "vocabulary.model"

# What is found in every text, and needs no telling.
_ORDINARY = ("padded_blocks",)


@dataclasses.dataclass(frozen=True)
class KeepsVocabulary:
    """The part of a task that is about its vocabulary, and about what was found in its text.

    Attributes:
      vocabulary: of the text.
      counts: what was found in the text that a network cannot take, by name.
    """

    vocabulary: Vocabulary
    counts: Mapping[str, int]

    def remarks(self) -> list[str]:
        """What was found in the text, in a line, if there is any to tell."""
        found = [
            f"{count} {name}"
            for name, count in self.counts.items()
            if count and name not in _ORDINARY
        ]
        return [f"text: {', '.join(found)}".replace("_", " ")] if found else []

    def files(self) -> dict[str, bytes]:
        """The vocabulary, to be kept beside the checkpoints."""
        return {FILE_NAME: self.vocabulary.model}

    def description(self) -> dict[str, Any]:
        """The vocabulary that text is encoded with."""
        return {"vocabulary": {"size": self.vocabulary.size, "digest": self.vocabulary.digest}}


def vocabulary_of(config: ConfigDict, folder: Path | None) -> int | Vocabulary:
    """The vocabulary of a run: the one it keeps, or that of its start, or the size of a new one.

    Args:
      config: settled.
      folder: of the run, if there is one.

    Raises:
      RunError: the start is no finished run or has no vocabulary, or it is one of another size.
    """
    place = folder
    if config.start and (folder is None or not (folder / FILE_NAME).exists()):
        place = FinishedRun.read(config.start).folder
        if not (place / FILE_NAME).exists():
            raise RunError(f"{place} cannot be the start of this run: it has no {FILE_NAME}")
    if place is None or not (place / FILE_NAME).exists():
        return int(config.vocabulary_size)
    found = Vocabulary((place / FILE_NAME).read_bytes())
    if found.size != config.vocabulary_size:
        raise RunError(
            f"vocabulary_size={config.vocabulary_size}: {place / FILE_NAME} has {found.size} "
            f"pieces; give vocabulary_size={found.size}"
        )
    return found


def require_text_config(config: ConfigDict, kinds: Sequence[str]) -> None:
    """Raises RunError where a config of text asks for what is for images, or for another kind."""
    for key, value, why in (
        ("protocol", "ours", "that is for images; of translation it is recipe=published"),
        ("accumulate_steps", 1, "batches differ in their tokens; give a smaller batch_size"),
        ("method", "factorize", "what is pruned is convolutions"),
    ):
        if config[key] != value:
            raise RunError(f"{key}={config[key]} with task={config.task}: {why}")
    if config.kind not in kinds:
        raise RunError(
            f"kind={config.kind} with task={config.task}: there are no convolutions; take "
            f"{' or '.join(kinds)}"
        )
