"""What masked and causal language modelling have in common: blocks of text, and a loss per token.

A text is cut into blocks of one length (`experiments/data/text_data.py`), which are shuffled anew
in each epoch. What a model is asked about a block is a function of the seed, the epoch and the
number of the block, whatever the batches are; about held-out blocks it is always asked the same.
What is minimized is the mean cross-entropy over the tokens of a batch that are asked for.

At the end the loss and the accuracy on the test text have the loss of the unigram model beside
them: of guessing every token by how often it is in the training text, plus one. The perplexity is
e to the loss, and left to reports (`experiments/measures.py`).

A new kind is a subclass that says what is asked (`ask`).
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.data.text_data import load_text
from experiments.result import Data
from experiments.state import Variables
from experiments.tasks.held_out import (
    ONE_DEVICE,
    Place,
    cross_entropy_sums,
    over_batches,
    totals,
)
from experiments.tasks.task import Batch, Selection
from experiments.tasks.text_task import TextTask, examples_to_plan_with
from experiments.tasks.vocabulary_kept import require_text_config, vocabulary_of

_ASKING_STREAM = 0xA5C
_HELD_OUT_STREAM = 0xE5A1


class Asked(NamedTuple):
    """What a model is asked, for some blocks.

    Attributes:
      inputs: of the network.
      targets: int32 `(blocks, asked)`, what it should find.
      counted: bool `(blocks, asked)`; the others count for nothing.
    """

    inputs: Any
    targets: Any
    counted: Any


@dataclasses.dataclass(frozen=True)
class LanguageModelling(TextTask):
    """The task; its splits are blocks `(N, length)`, int32, and its examples blocks.

    Attributes:
      first_asked: the first id that can be a target.
    """

    selects: ClassVar[Selection] = Selection("validation", "loss")
    unit: ClassVar[str]
    first_asked: ClassVar[int]

    @abc.abstractmethod
    def ask(self, blocks: jax.Array, keys: jax.Array) -> Asked:
        """What is asked about blocks `(B, length)`, by a key for each of them."""

    @staticmethod
    @abc.abstractmethod
    def build(config: ConfigDict) -> Any:
        """The network of a settled config; the text need not be there."""

    @classmethod
    def load(cls, config: ConfigDict, folder: Path | None = None) -> Self:
        """From a settled config, and what is kept in the folder of the run.

        Raises:
          RunError: the text cannot be had, the vocabulary's size does not suit it, the batch is
            larger than the training text, or the config asks for what is for images.
        """
        require_text_config(config, ("linear", "projections"))
        network = cls.build(config)
        text = load_text(
            **config.data,
            vocabulary=vocabulary_of(config, folder),
            block_length=config.block_length,
        )
        task = cls(
            network=network,
            data=Data(text.name, text.origin, text.fingerprint, text.vocabulary.digest),
            vocabulary=text.vocabulary,
            splits=text.splits,
            counts=text.counts,
            seed=config.seed,
            batch_size=config.batch_size,
            eval_batch_size=config.eval_batch_size,
        )
        task.require_a_batch()
        return task

    @classmethod
    def abstract(cls, config: ConfigDict) -> Self:
        """The task with shapes of blocks in their place; how many there are is not known.

        Raises:
          RunError: the config asks for what is for images.
        """
        require_text_config(config, ("linear", "projections"))
        splits = {
            split: jax.ShapeDtypeStruct((count, config.block_length), jnp.int32)
            for split, count in examples_to_plan_with(config).items()
        }
        return cls.without_text(config, cls.build(config), splits=splits)

    def sizes(self) -> dict[str, int]:
        """The number of blocks of each split."""
        return {split: len(blocks) for split, blocks in self.splits.items()}

    def batch(
        self, arrays: Mapping[str, Any], indices: jax.Array, epoch: jax.Array, shape: Batch
    ) -> Asked:
        """What is asked about these blocks."""
        key = jax.random.fold_in(jax.random.key(self.seed), _ASKING_STREAM)
        keys = _key_of_each(jax.random.fold_in(key, epoch), indices)
        return self.ask(arrays["train"][indices], keys)

    def loss(
        self, params: Any, model_state: Any, batch: Asked, noise: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """Mean cross-entropy per token that is asked for; beside it sums over the batch."""
        variables = {"params": params, **model_state}
        logits = self.network.model.apply(
            *(variables, *batch.inputs), True, rngs={"dropout": noise}
        )
        sums = cross_entropy_sums(logits, batch.targets, batch.counted)
        return sums["loss"] / jnp.maximum(sums["count"], 1), (model_state, sums)

    def evaluate(
        self, params: Any, model_state: Any, split: jax.Array, place: Place = ONE_DEVICE
    ) -> dict[str, jax.Array]:
        """Sums over a held-out split: ``loss``, ``correct`` and ``count``, of tokens."""

        def measure(asked: Asked) -> dict[str, jax.Array]:
            logits = self.network.apply(params, model_state, asked.inputs)
            return cross_entropy_sums(logits, asked.targets, asked.counted)

        return totals(self._over(split, measure, place))

    def logits(self, params: Any, model_state: Any, split: jax.Array) -> jax.Array:
        """Logits of the first batch: `(tokens, V)`."""
        asked = self._held_out(split, jnp.arange(min(len(split), self.eval_batch_size)))
        logits = self.network.apply(params, model_state, asked.inputs)
        return logits.reshape(-1, logits.shape[-1])

    def scores(
        self, variables: Variables, folder: Path, say: Callable[[str], None]
    ) -> dict[str, Any]:
        """The loss of the unigram model."""
        return {"split": "test", "unigram_loss": self.unigram_loss("test")}

    def unigram_loss(self, split: str) -> float:
        """Mean cross-entropy of the unigram model, in nats, over the tokens of a held-out split
        that a network is asked for."""

        def histogram(asked: Asked) -> jax.Array:
            size = self.vocabulary.size
            counted = asked.counted.astype(jnp.int32)
            return jnp.bincount(asked.targets.ravel(), counted.ravel(), length=size)

        blocks = jnp.asarray(self.splits[split])
        asked = np.asarray(jax.jit(lambda blocks: self._over(blocks, histogram).sum(0))(blocks))
        trained = np.bincount(self.splits["train"].ravel(), minlength=len(asked)) + 1.0
        trained[: self.first_asked] = 0  # Where a network is not asked, none is seen.
        probabilities = trained / trained.sum()
        found = np.flatnonzero(asked)
        return float(asked[found] @ -np.log(probabilities[found]) / asked.sum())

    def _over(
        self, split: jax.Array, measure: Callable[[Asked], Any], place: Place = ONE_DEVICE
    ) -> Any:
        """What `measure` makes of what is asked about a held-out split, batch by batch."""

        def batch(indices: jax.Array, valid: jax.Array) -> Any:
            asked = self._held_out(split, indices)
            return measure(asked._replace(counted=asked.counted & valid[:, None]))

        return over_batches(batch, len(split), self.eval_batch_size, place)

    def _held_out(self, split: jax.Array, indices: jax.Array) -> Asked:
        """What is asked about blocks of a held-out split: the same in each epoch and run."""
        key = jax.random.key(_HELD_OUT_STREAM)
        return self.ask(split[indices], _key_of_each(key, indices))


def _key_of_each(key: jax.Array, indices: jax.Array) -> jax.Array:
    return jax.vmap(functools.partial(jax.random.fold_in, key))(indices)
