"""Text classification: what a paragraph is from, of a few classes (a chapter, a part, a folder).

The paragraphs of a document are all in one split, so nothing of a text that is tested was trained
on (`experiments/data/labelled_text.py`). With `start` the encoder and the vocabulary are those of a
pre-trained run, and what comes behind the encoder is new; with none, all of it is.

The best epoch is told by the validation accuracy; the score is that of the final network on the
test set. Beside it stands how often the most frequent class of the training set is right there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.data.catalog import text_set
from experiments.data.labelled_text import load_labelled_text
from experiments.result import Data
from experiments.special_tokens import BOS, EOS, PAD
from experiments.state import Variables
from experiments.tasks import vocabulary_kept
from experiments.tasks.held_out import (
    ONE_DEVICE,
    Place,
    cross_entropy_sums,
    over_batches,
    totals,
)
from experiments.tasks.task import Batch, Selection
from experiments.tasks.text_network import Rows, TextNetwork
from experiments.tasks.text_task import TextTask, examples_to_plan_with
from experiments.tasks.vocabulary_kept import require_text_config, vocabulary_of


class Labelled(NamedTuple):
    """Paragraphs with their classes: tokens `(N, length)` and labels `(N,)`, int32."""

    tokens: Any
    labels: Any


def network(config: ConfigDict) -> TextNetwork:
    """The network of a settled config; the text need not be there.

    Raises:
      RunError: the data set has no classes, or the model is unknown or refuses a value.
    """
    classes = len(text_set(config.data.name).labels)
    return TextNetwork.of(
        config, config.max_length, vocabulary=config.vocabulary_size, classes=classes
    )


@dataclasses.dataclass(frozen=True)
class TextClassification(TextTask):
    """The task; its splits are `Labelled`, and its examples paragraphs.

    Attributes:
      labels: the names of the classes, in order.
    """

    labels: tuple[str, ...]
    selects: ClassVar[Selection] = Selection("validation", "accuracy")
    unit: ClassVar[str] = "examples"

    @classmethod
    def load(cls, config: ConfigDict, folder: Path | None = None) -> TextClassification:
        """From a settled config, and what is kept in the folder of the run.

        Raises:
          RunError: the text cannot be had or has no classes, the vocabulary's size does not suit
            it, the batch is larger than the training set, or the config asks for what is for
            images.
        """
        require_text_config(config, ("linear", "projections"))
        made = network(config)
        text = load_labelled_text(
            **config.data,
            vocabulary=vocabulary_of(config, folder),
            max_length=config.max_length,
        )
        task = cls(
            network=made,
            data=Data(text.name, text.origin, text.fingerprint, text.vocabulary.digest),
            vocabulary=text.vocabulary,
            labels=text.labels,
            splits={name: Labelled(*rows) for name, rows in text.splits.items()},
            counts=text.counts,
            seed=config.seed,
            batch_size=config.batch_size,
            eval_batch_size=config.eval_batch_size,
        )
        task.require_a_batch()
        return task

    @classmethod
    def abstract(cls, config: ConfigDict) -> TextClassification:
        """The task with shapes of paragraphs in their place; how many there are is not known.

        Raises:
          RunError: the data set has no classes, or the config asks for what is for images.
        """
        require_text_config(config, ("linear", "projections"))
        splits = {
            split: Labelled(
                jax.ShapeDtypeStruct((count, config.max_length), jnp.int32),
                jax.ShapeDtypeStruct((count,), jnp.int32),
            )
            for split, count in examples_to_plan_with(config).items()
        }
        labels = text_set(config.data.name).labels
        return cls.without_text(config, network(config), splits=splits, labels=labels)

    def sizes(self) -> dict[str, int]:
        """The number of paragraphs of each split."""
        return {split: len(rows.labels) for split, rows in self.splits.items()}

    def description(self) -> dict[str, Any]:
        """The vocabulary that text is encoded with, and the classes."""
        return {**super().description(), "classes": list(self.labels)}

    def usage(self) -> str:
        """From token ids to logits."""
        return (
            "    logits = model.apply(variables, tokens, False)\n"
            f"tokens: ids of {vocabulary_kept.FILE_NAME} in the run folder, int32 (batch, at most "
            f"{self.network.length}), BOS ({BOS}) first and EOS ({EOS}) last, filled up with PAD "
            f"({PAD}); classes in order: {', '.join(self.labels)}"
        )

    def batch(
        self, arrays: Mapping[str, Labelled], indices: jax.Array, epoch: jax.Array, shape: Batch
    ) -> Labelled:
        """These paragraphs."""
        tokens, labels = arrays["train"]
        return Labelled(tokens[indices], labels[indices])

    def loss(
        self, params: Any, model_state: Any, batch: Labelled, noise: jax.Array
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """Mean cross-entropy; beside it sums over the batch."""
        variables = {"params": params, **model_state}
        logits = self.network.model.apply(variables, batch.tokens, True, rngs={"dropout": noise})
        sums = cross_entropy_sums(logits, batch.labels, jnp.ones_like(batch.labels, bool))
        return sums["loss"] / sums["count"], (model_state, sums)

    def evaluate(
        self, params: Any, model_state: Any, split: Labelled, place: Place = ONE_DEVICE
    ) -> dict[str, jax.Array]:
        """Sums over a split, every paragraph counted once: ``loss``, ``correct``, ``count``."""

        def batch(indices: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
            logits = self.network.apply(params, model_state, Rows(split.tokens[indices]))
            return cross_entropy_sums(logits, split.labels[indices], valid)

        return totals(over_batches(batch, len(split.labels), self.eval_batch_size, place))

    def logits(self, params: Any, model_state: Any, split: Labelled) -> jax.Array:
        """Logits (examples, classes) of a split, in order."""

        def batch(indices: jax.Array, valid: jax.Array) -> jax.Array:
            return self.network.apply(params, model_state, Rows(split.tokens[indices]))

        examples = len(split.labels)
        logits = over_batches(batch, examples, self.eval_batch_size)
        return logits.reshape(-1, logits.shape[-1])[:examples]

    def scores(
        self, variables: Variables, folder: Path, say: Callable[[str], None]
    ) -> dict[str, Any]:
        """The accuracy of guessing the most frequent class."""
        frequent = np.bincount(self.splits["train"].labels).argmax()
        return {
            "split": "test",
            "majority_accuracy": float(np.mean(self.splits["test"].labels == frequent)),
        }
