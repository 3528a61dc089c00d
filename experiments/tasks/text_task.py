"""What the tasks on single texts have in common: a vocabulary, and examples of one length.

A run that starts from another one takes its vocabulary, since the network's table of tokens goes by
it. Otherwise it is learned from the training text.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.data.example_order import epoch_permutation, steps_per_epoch
from experiments.data.vocabulary import Vocabulary
from experiments.errors import RunError
from experiments.result import Data
from experiments.tasks.task import Batch
from experiments.tasks.text_network import TextNetwork

VOCABULARY = "vocabulary.model"
"""The file of a run folder that has its vocabulary."""


@dataclasses.dataclass(frozen=True)
class TextTask(abc.ABC):
    """A task, its data on the host.

    Attributes:
      network: the dense network.
      data: name, origin and fingerprint of what was loaded, and of its vocabulary.
      vocabulary: of the text.
      splits: by split name.
      counts: what was found in the text, by name.
      seed: of the data order.
      batch_size, eval_batch_size: examples per step.
    """

    network: TextNetwork
    data: Data
    vocabulary: Vocabulary
    splits: Mapping[str, Any]
    counts: Mapping[str, int]
    seed: int
    batch_size: int
    eval_batch_size: int

    @abc.abstractmethod
    def sizes(self) -> dict[str, int]:
        """The number of examples of each split."""

    def remarks(self) -> list[str]:
        """What was found in the text that is told, in a line, if there was any."""
        found = [f"{count} {name}" for name, count in self.counts.items() if count]
        return [f"text: {', '.join(found)}".replace("_", " ")] if found else []

    def files(self) -> dict[str, bytes]:
        """The vocabulary, to be kept beside the checkpoints."""
        return {VOCABULARY: self.vocabulary.model}

    def description(self) -> dict[str, Any]:
        """The vocabulary that text is encoded with."""
        return {"vocabulary": {"size": self.vocabulary.size, "digest": self.vocabulary.digest}}

    def batches(self, epoch: int) -> list[Batch]:
        """The shapes of an epoch's batches: the same in each epoch."""
        return [Batch(self.batch_size)] * steps_per_epoch(self.sizes()["train"], self.batch_size)

    def order(self, epoch: int) -> jax.Array:
        """The order of the training examples in an epoch, a function of the seed alone."""
        return epoch_permutation(self.seed, epoch, self.sizes()["train"])

    def require_a_batch(self) -> None:
        """Raises RunError where an epoch has no batch."""
        try:
            self.batches(0)
        except ValueError as error:
            raise RunError(str(error)) from error


def require_text_config(config: ConfigDict) -> None:
    """Raises RunError where a config of text asks for what is for images."""
    for key, value, why in (
        ("protocol", "ours", "the published protocol is one of images"),
        ("accumulate_steps", 1, "a batch's loss is a mean over tokens; give a smaller batch_size"),
        ("method", "factorize", "what is pruned is convolutions"),
    ):
        if config[key] != value:
            raise RunError(f"{key}={config[key]} with task={config.task}: {why}")
    if config.kind not in ("linear", "projections"):
        raise RunError(
            f"kind={config.kind} with task={config.task}: there are no convolutions; take linear "
            "or projections"
        )


def vocabulary_of(config: ConfigDict) -> int | Vocabulary:
    """The vocabulary of a run: that of the run it starts from, or the size of a new one.

    Raises:
      RunError: the start has no vocabulary, or one of another size.
    """
    if not config.start:
        return int(config.vocabulary_size)
    path = Path(config.start) / VOCABULARY
    try:
        found = Vocabulary(path.read_bytes())
    except OSError as error:
        raise RunError(
            f"{config.start} cannot be the start of this run: it has no {VOCABULARY} "
            f"({error.strerror})"
        ) from error
    if found.size != config.vocabulary_size:
        raise RunError(
            f"vocabulary_size={config.vocabulary_size}: {path} has {found.size} pieces; give "
            f"vocabulary_size={found.size}"
        )
    return found
