"""The feed of a run that is planned: shapes and places in place of arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments import mesh as meshes
from experiments.accumulation import micro_batch_size
from experiments.data.image_stream import ImageStream
from experiments.dispatch import Dispatch
from experiments.windows import (
    HeldOut,
    dispatch_places,
    dispatch_shapes,
    held_out_places,
    held_out_size,
)


class ShapesFeed:
    """See `experiments.feed.Feed`.

    Args:
      task: with shapes of its data, or streams that are not read.
      mesh: of the devices.
      parts: in which a step takes its batch.
    """

    waited = None

    def __init__(self, task: Any, mesh: Mesh, parts: int) -> None:
        self._task, self._mesh, self._parts = task, mesh, parts

    @property
    def bytes_per_example(self) -> int:
        train = self._task.splits["train"]
        return train.bytes_per_example if isinstance(train, ImageStream) else 0

    def abstract(self, cut: Dispatch) -> Any:
        size = micro_batch_size(cut.batch.size, self._parts)
        splits = self._task.splits
        return self._in_places(
            dispatch_shapes(splits, cut.steps * self._parts, size),
            dispatch_places(splits, self._mesh, size),
        )

    def windows(self, epoch: int, cuts: Sequence[Dispatch]) -> Iterator[Any]:
        return map(self.abstract, cuts)

    def held_out(self, split: str) -> Iterator[Any]:
        found = self._task.splits[split]
        if not isinstance(found, ImageStream):
            yield self._in_places(found, meshes.replicated(self._mesh))
            return
        size = held_out_size(found, self._mesh, self._task.eval_batch_size)
        shapes = HeldOut(
            jax.ShapeDtypeStruct((size, found.image_size, found.image_size, 3), np.uint8),
            jax.ShapeDtypeStruct((size,), np.int32),
            jax.ShapeDtypeStruct((size,), bool),
        )
        yield self._in_places(shapes, held_out_places(self._mesh, size))

    def close(self) -> None:
        pass

    def _in_places(self, shapes: Any, places: Any) -> Any:
        """Shapes with their shardings; one sharding is that of all."""
        if isinstance(places, jax.sharding.Sharding):
            places = jax.tree.map(lambda _: places, shapes)
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            places,
        )
