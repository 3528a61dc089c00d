"""What the tasks on single texts have in common: examples of one length, in batches of one size."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
from ml_collections import ConfigDict

from experiments.data.example_order import epoch_permutation, steps_per_epoch
from experiments.data.vocabulary import UnlearnedVocabulary
from experiments.errors import RunError
from experiments.result import Data
from experiments.tasks.task import Batch
from experiments.tasks.text_network import TextNetwork
from experiments.tasks.vocabulary_kept import KeepsVocabulary


@dataclasses.dataclass(frozen=True)
class TextTask(KeepsVocabulary, abc.ABC):
    """A task, its data on the host.

    Attributes:
      network: the dense network.
      data: name, origin and fingerprint of what was loaded, and of its vocabulary.
      splits: by split name.
      seed: of the data order.
      batch_size, eval_batch_size: examples per step.
    """

    network: TextNetwork
    data: Data
    splits: Mapping[str, Any]
    seed: int
    batch_size: int
    eval_batch_size: int

    @classmethod
    def without_text(cls, config: ConfigDict, network: TextNetwork, **others: Any) -> Self:
        """The task before any text is read: with `splits`, and what else is its own, from
        `others`."""
        return cls(
            network=network,
            data=Data(config.data.name, "shapes alone", "", ""),
            vocabulary=UnlearnedVocabulary(config.vocabulary_size),
            counts={},
            seed=config.seed,
            batch_size=config.batch_size,
            eval_batch_size=config.eval_batch_size,
            **others,
        )

    @abc.abstractmethod
    def sizes(self) -> dict[str, int]:
        """The number of examples of each split."""

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


def examples_to_plan_with(config: ConfigDict) -> dict[str, int]:
    """A number of examples for each split whose text was not read: enough for any program."""
    evaluated = config.eval_batch_size
    return {"train": 64 * config.batch_size, "validation": evaluated, "test": evaluated}
