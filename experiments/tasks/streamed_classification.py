"""Image classification of sets that do not fit into memory: the same task, whose images come as
they are used.

Training images are random resized crops, mirrored or not, and the network is measured on the middle
of an image (`experiments/data/crops.py`). Both are cut out on the host and come as uint8; what is
left to the step is to normalise them, by the statistics that all published code uses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.data import LargeImages, LargeImageSet, image_set
from experiments.data.example_order import steps_per_epoch
from experiments.data.pipeline import ImagePipeline, normalise
from experiments.errors import RunError
from experiments.result import Data
from experiments.tasks.classification import Classification, network, require_equal_parts
from experiments.tasks.held_out import ONE_DEVICE, Place, cross_entropy_sums
from experiments.tasks.task import Batch, Selection
from experiments.windows import HeldOut, Window


def load(config: ConfigDict, folder: Path | None = None) -> Classification:
    """The classification task of a settled config, in memory or streamed, as its data set is.

    Raises:
      RunError: see `Classification.load` and `StreamedClassification.open`.
    """
    entry = image_set(config.data.name)
    if isinstance(entry, LargeImageSet):
        return StreamedClassification.open(config, entry)
    return Classification.load(config, folder)


def abstract(config: ConfigDict) -> Classification:
    """The same with shapes in place of images; these need not be there.

    Raises:
      RunError: as `load`, but for what only the images tell.
    """
    entry = image_set(config.data.name)
    if isinstance(entry, LargeImageSet):
        return StreamedClassification.of(config, entry.abstract())
    return Classification.abstract(config)


@dataclasses.dataclass(frozen=True)
class StreamedClassification(Classification):
    """The task; its splits are `experiments.data.image_stream.ImageStream`, and the arrays of a
    dispatch a `Window`."""

    splits: dict[str, Any]

    @classmethod
    def open(cls, config: ConfigDict, entry: LargeImageSet) -> Self:
        """From a settled config.

        Raises:
          RunError: the data cannot be had, the batch is larger than the training set, or the config
            asks for an augmentation that there is not.
        """
        _require_known_augmentation(config)  # Before anything is looked for.
        return cls.of(config, entry.open(config.data.tfds_dir))

    @classmethod
    def of(cls, config: ConfigDict, found: LargeImages) -> Self:
        """From a settled config and a set that was found, or its sizes alone.

        Raises:
          RunError: as `open`, but for the data.
        """
        _require_known_augmentation(config)
        require_equal_parts(config)
        entry = found.entry
        published = config.protocol == "published"
        splits = found.splits(
            config.validation, config.seed, config.augment.flip, config.data_workers
        )
        try:
            steps_per_epoch(len(splits["train"]), config.batch_size)
        except ValueError as error:
            raise RunError(str(error)) from error
        on = "validation" if "validation" in splits else ("test" if published else None)
        return cls(
            network=network(config),
            pipeline=ImagePipeline(*entry.statistics, entry.image_size, crop_padding=0, flip=False),
            data=Data(entry.name, found.origin, found.fingerprint),
            splits=splits,
            seed=config.seed,
            batch_size=config.batch_size,
            eval_batch_size=config.eval_batch_size,
            partial_batch=published,
            batch_norm_parts=config.batch_norm_parts,
            selects=Selection(on, "accuracy") if on else None,
        )

    @property
    def train_examples(self) -> int:
        return len(self.splits["train"])

    def sizes(self) -> dict[str, int]:
        """The number of images of each split."""
        return {split: len(stream) for split, stream in self.splits.items()}

    def order(self, epoch: int) -> jax.Array:
        """Examples are taken as they come: the stream has them in the order of the epoch."""
        return jnp.arange(self.train_examples, dtype=jnp.int32)

    def stored_images(self, count: int) -> np.ndarray:
        """The middle of the first test images, uint8 ``(count, size, size, 3)``."""
        test = self.splits["test"]
        numbers = test.examples[:count].tolist()
        return np.stack([test.decode(number, epoch=0)[0] for number in numbers])

    def batch(
        self, arrays: Mapping[str, Any], indices: jax.Array, epoch: jax.Array, shape: Batch
    ) -> Any:
        """The training batch that begins at the first of these places in the epoch."""
        window: Window = arrays["train"]
        images, labels = window.batch(indices[0])
        return normalise(images, self.pipeline), labels

    def evaluate(
        self, params: Any, model_state: Any, split: HeldOut, place: Place = ONE_DEVICE
    ) -> dict[str, jax.Array]:
        """Sums over one batch of a split, every example counted once: ``loss``, ``correct`` and
        ``count``."""
        split = place.put(split)
        logits = self.logits(params, model_state, split)
        return cross_entropy_sums(logits, split.labels, split.counted)

    def logits(self, params: Any, model_state: Any, split: HeldOut) -> jax.Array:
        """Logits (batch, classes) of one batch of a split, in order."""
        return self.network.apply(params, model_state, normalise(split.images, self.pipeline))


def _require_known_augmentation(config: ConfigDict) -> None:
    name = config.data.name
    if config.data.source not in ("auto", "tfds"):
        raise RunError(f"data.source={config.data.source} with data={name}: give auto or tfds")
    for key in ("crop", "cutout"):
        if config.augment[key]:
            raise RunError(
                f"augment.{key}={config.augment[key]} with data={name}: its photographs are "
                f"cropped at random as a part of their area; give augment.{key}=0"
            )
