"""Windows: what a compiled program gets of a split that is not on the devices as a whole.

In training a window is the batches of one dispatch, in evaluation one batch. Both are sharded along
the batch, and the batches of a window are told apart by an axis of their own, so that a step takes
one without any image changing its device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import mesh as meshes
from experiments.data.example_order import shareable_batch
from experiments.data.image_stream import ImageStream


class Window(NamedTuple):
    """Consecutive batches of an epoch; where a step takes its batch in parts, parts of batches.

    Attributes:
      images: uint8 ``(batches, batch, height, width, channels)``.
      labels: int32 ``(batches, batch)``.
      first: int32 scalar: where in the epoch the first batch begins.
    """

    images: Any
    labels: Any
    first: Any

    def batch(self, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images and labels of the batch that begins at `start` of the epoch."""
        number = (start - self.first) // self.labels.shape[1]
        return (
            jax.lax.dynamic_index_in_dim(self.images, number, keepdims=False),
            jax.lax.dynamic_index_in_dim(self.labels, number, keepdims=False),
        )


class HeldOut(NamedTuple):
    """A batch of a split that is measured.

    Attributes:
      images: uint8 ``(batch, height, width, channels)``.
      labels: int32 ``(batch,)``.
      counted: bool ``(batch,)``; False on what the last batch is filled up with.
    """

    images: Any
    labels: Any
    counted: Any


def dispatch_places(splits: Mapping[str, Any], mesh: Mesh, size: int) -> Any:
    """Where the arrays of a dispatch live, whose steps take `size` examples at a time."""
    if isinstance(splits["train"], ImageStream):
        return {"train": window_places(mesh, size)}
    return meshes.replicated(mesh)


def dispatch_shapes(splits: Mapping[str, Any], batches: int, size: int) -> Any:
    """The arrays of a dispatch whose steps take so many batches of `size` examples altogether, or
    their shapes."""
    stream = splits["train"]
    if not isinstance(stream, ImageStream):
        return dict(splits)
    image = (stream.image_size, stream.image_size, 3)
    return {
        "train": Window(
            jax.ShapeDtypeStruct((batches, size, *image), np.uint8),
            jax.ShapeDtypeStruct((batches, size), np.int32),
            jax.ShapeDtypeStruct((), np.int32),
        )
    }


def window_places(mesh: Mesh, size: int) -> Window:
    """Where windows of batches of `size` examples live."""
    of_batch = meshes.batch_sharding(mesh, size)
    of_window = NamedSharding(mesh, PartitionSpec(None, *of_batch.spec))
    return Window(of_window, of_window, meshes.replicated(mesh))


def held_out_size(stream: ImageStream, mesh: Mesh, eval_batch_size: int) -> int:
    """The size of the batches in which a stream is measured: `eval_batch_size` or all there is,
    and where it takes it a few more, so that every device gets as many."""
    return shareable_batch(min(eval_batch_size, len(stream)), meshes.batch_parts(mesh))


def held_out_places(mesh: Mesh, size: int) -> HeldOut:
    """Where batches of `size` examples live."""
    of_batch = meshes.batch_sharding(mesh, size)
    return HeldOut(of_batch, of_batch, of_batch)


def local_rows(sharding: NamedSharding, size: int) -> np.ndarray:
    """Which of the `size` examples of a batch live on devices of this process, ascending: what it
    has to read. In one process these are all of them."""
    pieces = sharding.addressable_devices_indices_map((size,)).values()
    rows = np.arange(size)
    return np.unique(np.concatenate([rows[piece] for piece in pieces]))


def placed(
    local: np.ndarray, rows: np.ndarray, size: int, axis: int, sharding: NamedSharding
) -> jax.Array:
    """The global array of which this process has some examples.

    Args:
      local: those of `rows` along `axis`.
      rows: ascending; what `local_rows` says.
      size: of the global array along `axis`.
      axis: of the examples.
      sharding: of the global array.
    """
    shape = (*local.shape[:axis], size, *local.shape[axis + 1 :])

    def of_device(index: Any) -> np.ndarray:
        first, last, _ = index[axis].indices(size)
        begin, end = np.searchsorted(rows, (first, last))
        return local[(*index[:axis], slice(begin, end), *index[axis + 1 :])]

    return jax.make_array_from_callback(shape, sharding, of_device)
