"""Image classification: batches from uint8 images on the device, cross-entropy, accuracy. Sets
that do not fit there are for `streamed_classification.py`.

Under `protocol=ours` a validation split is held out of the
training images and the data set's own statistics normalise; `published` trains on everything,
normalises by what the code published for the model does, ImageNet's statistics or constants for
the data set, and keeps the partial last batch of an epoch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from experiments import models
from experiments.data import (
    ImageData,
    ImageSet,
    Statistics,
    image_set,
    load,
    split_validation,
    validation_size,
)
from experiments.data.example_order import epoch_permutation, steps_per_epoch
from experiments.data.image_data import IMAGENET
from experiments.data.pipeline import (
    ImagePipeline,
    evaluation_batch,
    training_batch,
)
from experiments.errors import RunError
from experiments.result import Data
from experiments.tasks.dense_network import DenseNetwork
from experiments.tasks.held_out import (
    ONE_DEVICE,
    Place,
    cross_entropy_sums,
    over_batches,
    totals,
)
from experiments.tasks.task import Batch, Selection
from lowrank_jax.linen.normalization import efficient_batch_norm


@dataclasses.dataclass(frozen=True)
class Network(DenseNetwork):
    """The dense network of a task: how to make it and how to apply it, data apart.

    Attributes:
      model: from images ``(batch, image_size, image_size, 3)`` to logits.
      ordinary_model: the one that ratios are relative to. It is another one where convolutions
        were made separable, so that they can be decomposed.
    """

    image_size: int

    @classmethod
    def of(cls, config: ConfigDict, num_classes: int, image_size: int) -> Network:
        """The network of a settled config, for images of a data set.

        Raises:
          RunError: the model is unknown, or refuses a value.
        """

        def build(kind: str | None) -> nn.Module:
            normed = {"factor_norm": True} if config.factor_norm and kind is not None else {}
            return models.build(
                {**config.model, **normed},
                num_classes,
                kind=kind,
                precision=config.precision,
                remat=config.remat,
            )

        return cls(build(config.kind), build(None), image_size)

    def init(self, key: jax.Array) -> Any:
        """The dense variables of the model: ``params`` and what else it keeps."""
        return self.model.init(key, jnp.zeros(self.example(1).shape), False)

    def example(self, batch_size: int) -> jax.ShapeDtypeStruct:
        """The shape of the model's input."""
        shape = (batch_size, self.image_size, self.image_size, 3)
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def random_inputs(self, key: jax.Array, batch_size: int) -> jax.Array:
        """Input of the shape of `example`, to time the model with."""
        example = self.example(batch_size)
        return jax.random.normal(key, example.shape, example.dtype)

    def apply(self, params: Any, model_state: Any, images: jax.Array) -> Any:
        """Logits in evaluation mode."""
        return self.model.apply({"params": params, **model_state}, images, False)


@dataclasses.dataclass(frozen=True)
class Classification:
    """The task, its data on the host.

    Attributes:
      network: the dense network.
      pipeline: how stored images become the network's input.
      data: name, origin and fingerprint of what was loaded.
      splits: uint8 images and int32 labels by split name; always ``train`` and ``test``, and
        ``validation`` if one is held out.
      seed: of the data order and the augmentation.
      batch_size, eval_batch_size: examples per step.
      batch_norm_parts: see `lowrank_jax.linen.normalization.batch_norm_of_parts`.
      partial_batch: whether the last, smaller batch of an epoch is trained on.
      selects: how the best epoch is found; ``None``: no selection.
    """

    network: Network
    pipeline: ImagePipeline
    data: Data
    splits: dict[str, tuple[np.ndarray, np.ndarray]]
    seed: int
    batch_size: int
    eval_batch_size: int
    batch_norm_parts: int
    partial_batch: bool
    selects: Selection | None
    unit: ClassVar[str] = "examples"

    @classmethod
    def load(cls, config: ConfigDict, folder: Path | None = None) -> Classification:
        """From a settled config; a run keeps nothing that is needed for it.

        Raises:
          RunError: the data cannot be had, the batch is larger than the training set, or the
            augmentation leaves nothing of an image.
        """
        data = load(**config.data)
        return cls._of(
            config,
            _split(data, config),
            Statistics(data.mean, data.std),
            Data(data.name, data.origin, data.fingerprint),
        )

    @classmethod
    def abstract(cls, config: ConfigDict) -> Classification:
        """The task with the shapes of the images in their place; they need not be there.

        Raises:
          RunError: as `load`, but for what only the images tell.
        """
        entry = image_set(config.data.name)
        assert isinstance(entry, ImageSet)  # A large one has another form of the task.
        # No shape depends on what images are normalised by.
        statistics = Statistics((0.5,) * entry.train_shape[-1], (0.25,) * entry.train_shape[-1])
        data = Data(entry.name, "shapes alone", "")
        return cls._of(config, _abstract_splits(entry, config), statistics, data)

    @classmethod
    def _of(
        cls, config: ConfigDict, splits: dict[str, Any], statistics: Statistics, data: Data
    ) -> Classification:
        published = config.protocol == "published"
        on = "validation" if "validation" in splits else ("test" if published else None)
        try:
            steps_per_epoch(len(splits["train"][1]), config.batch_size)
        except ValueError as error:
            raise RunError(str(error)) from error
        entry = image_set(config.data.name)
        assert isinstance(entry, ImageSet)  # No other can be loaded.
        _require_something_left(config, entry.image_size)
        require_equal_parts(config)
        mean, std = _statistics(config, entry, statistics)
        pipeline = ImagePipeline(
            mean=mean,
            std=std,
            size=entry.image_size,
            crop_padding=config.augment.crop,
            flip=config.augment.flip and entry.mirror_symmetric,
            cutout=config.augment.cutout,
        )
        return cls(
            network=network(config),
            pipeline=pipeline,
            data=data,
            splits=splits,
            seed=config.seed,
            batch_size=config.batch_size,
            eval_batch_size=config.eval_batch_size,
            batch_norm_parts=config.batch_norm_parts,
            partial_batch=published,
            selects=Selection(on, "accuracy") if on else None,
        )

    @property
    def train_examples(self) -> int:
        return len(self.splits["train"][1])

    def sizes(self) -> dict[str, int]:
        """The number of images of each split."""
        return {split: len(labels) for split, (_, labels) in self.splits.items()}

    def remarks(self) -> tuple[()]:
        """Images have none."""
        return ()

    def files(self) -> dict[str, bytes]:
        """Nothing is to be kept of them."""
        return {}

    def description(self) -> dict[str, Any]:
        """How many classes there are, and what images are normalised to."""
        return {
            "classes": image_set(self.data.name).num_classes,
            "images": {
                "size": self.pipeline.size,
                "mean": [float(mean) for mean in self.pipeline.mean],
                "std": [float(std) for std in self.pipeline.std],
            },
        }

    def usage(self) -> str:
        """From images to logits."""
        size = self.pipeline.size
        return (
            "    logits = model.apply(variables, images, False)\n"
            f"images: float32 (batch, {size}, {size}, 3), normalised by the mean and std that are "
            'in lrj.export.read_manifest(…)["metadata"]'
        )

    def batches(self, epoch: int) -> list[Batch]:
        """The shapes of an epoch's batches, in order: the same in each epoch."""
        full = [Batch(self.batch_size)] * steps_per_epoch(self.train_examples, self.batch_size)
        rest = self.train_examples % self.batch_size
        return [*full, Batch(rest)] if self.partial_batch and rest else full

    def order(self, epoch: int) -> jax.Array:
        """The order of the training examples in an epoch, a function of the seed alone."""
        return epoch_permutation(self.seed, epoch, self.train_examples)

    def stored_images(self, count: int) -> np.ndarray:
        """The first test images, uint8 ``(count, height, width, channels)``."""
        return self.splits["test"][0][:count]

    def batch(
        self, arrays: Mapping[str, Any], indices: jax.Array, epoch: jax.Array, shape: Batch
    ) -> Any:
        """An augmented training batch."""
        images, labels = arrays["train"]
        return training_batch(images, labels, indices, self.seed, epoch, self.pipeline)

    def loss(
        self, params: Any, model_state: Any, batch: Any, noise: jax.Array
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        """Mean cross-entropy; beside it the new model state and sums of metrics over the batch.
        Nothing in these networks is random."""
        images, labels = batch
        with efficient_batch_norm(self.batch_norm_parts):
            logits, model_state = self.network.model.apply(
                {"params": params, **model_state}, images, True, mutable=list(model_state)
            )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels)
        sums = {"loss": jnp.sum(losses), "correct": correct, "count": jnp.int32(len(labels))}
        return jnp.mean(losses), (model_state, sums)

    def evaluate(
        self, params: Any, model_state: Any, split: Any, place: Place = ONE_DEVICE
    ) -> dict[str, jax.Array]:
        """Sums over one split, every example counted once.

        Args:
          params, model_state: of the model.
          split: images and labels on the device.
          place: of a batch.

        Returns:
          ``loss`` and ``correct`` summed, and ``count``.
        """

        return totals(self._over(params, model_state, split, cross_entropy_sums, place))

    def logits(self, params: Any, model_state: Any, split: Any) -> jax.Array:
        """Logits (examples, classes) of a split, in order."""
        logits = self._over(params, model_state, split, lambda logits, *_: logits)
        return logits.reshape(-1, logits.shape[-1])[: len(split[1])]

    def _over(
        self,
        params: Any,
        model_state: Any,
        split: Any,
        measure: Callable[..., Any],
        place: Place = ONE_DEVICE,
    ) -> Any:
        """What `measure` makes of logits, labels and validity, batch by batch."""
        images, labels = split

        def batch(indices: jax.Array, valid: jax.Array) -> Any:
            pixels, targets = evaluation_batch(images, labels, indices, self.pipeline)
            return measure(self.network.apply(params, model_state, pixels), targets, valid)

        return over_batches(batch, len(labels), self.eval_batch_size, place)

    def scores(self, variables: Any, folder: Path, say: Callable[[str], None]) -> None:
        """There are none beside accuracy and loss."""


def network(config: ConfigDict) -> Network:
    """The network of a settled config; the images need not be there.

    Raises:
      RunError: the data set or the model is unknown, or the model refuses a value.
    """
    entry = image_set(config.data.name)
    return Network.of(config, entry.num_classes, entry.image_size)


def _statistics(config: ConfigDict, entry: ImageSet, own: Statistics) -> Statistics:
    """What images are normalised by: published constants only under the published protocol."""
    if config.protocol == "published":
        if models.find(config.model.name).statistics == "imagenet":
            return IMAGENET
        if entry.published_statistics is not None:
            return entry.published_statistics
    return own


def _require_something_left(config: ConfigDict, size: int) -> None:
    for key, most in (("crop", size - 1), ("cutout", 2 * size - 1)):
        if config.augment[key] > most:
            raise RunError(
                f"augment.{key}={config.augment[key]} with images of {size} pixels: nothing may be "
                f"left of them; at most {most}"
            )


def require_equal_parts(config: ConfigDict) -> None:
    """Raises RunError where what batch norm sees at once cannot be cut into its parts."""
    parts, size = config.batch_norm_parts, config.batch_size // config.accumulate_steps
    if size % parts:
        raise RunError(
            f"batch_norm_parts={parts} does not divide the {size} examples that the network sees "
            "at once: choose a divisor"
        )


def _split(data: ImageData, config: ConfigDict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    test = (data.test_images, data.test_labels)
    if config.validation == 0:
        return {"train": (data.train_images, data.train_labels), "test": test}
    train, held_out = split_validation(data, config.validation, config.seed)
    return {
        "train": (data.train_images[train], data.train_labels[train]),
        "validation": (data.train_images[held_out], data.train_labels[held_out]),
        "test": test,
    }


def _abstract_splits(entry: ImageSet, config: ConfigDict) -> dict[str, Any]:
    """The shapes of what `_split` gives."""

    def shapes(count: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        images = jax.ShapeDtypeStruct((count, *entry.train_shape[1:]), jnp.uint8)
        return images, jax.ShapeDtypeStruct((count,), jnp.int32)

    train, test = entry.train_shape[0], entry.test_shape[0]
    if config.validation == 0:
        return {"train": shapes(train), "test": shapes(test)}
    held_out = validation_size(entry.name, train, config.validation)
    return {
        "train": shapes(train - held_out),
        "validation": shapes(held_out),
        "test": shapes(test),
    }
