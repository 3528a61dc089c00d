"""What the tasks on single texts have in common: examples of one length, in batches of one size."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from experiments.data.example_order import epoch_permutation, steps_per_epoch
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
