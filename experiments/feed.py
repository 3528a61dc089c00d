"""The feed of a run: the arrays that its compiled programs get, from splits that are on the devices
or from splits that are read as they are used.

`Resident`: every split lies on the devices as a whole, and each dispatch gets all of it.

`Streamed`: a dispatch gets a window of exactly its own batches, of which every process reads the
examples of its own devices, in one and the same global order. The next window is put together, and
goes to the devices, while one is computed with. So the host holds what the stream reads ahead,
which is one window (or a few chunks for each thread or worker, see `ImageStream.read`), and the
window that is put together.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from experiments import mesh as meshes
from experiments.accumulation import micro_batch_size
from experiments.data.example_order import padded_evaluation_indices
from experiments.data.image_stream import ImageStream
from experiments.dispatch import Dispatch
from experiments.windows import (
    HeldOut,
    Window,
    dispatch_places,
    dispatch_shapes,
    held_out_places,
    held_out_size,
    local_rows,
    placed,
    window_places,
)

Item = TypeVar("Item")


class Feed(Protocol):
    """See the module."""

    @property
    def bytes_per_example(self) -> int:
        """What an example of a dispatch takes on the way to the devices; 0: it is there."""

    @property
    def waited(self) -> float | None:
        """Seconds in which data was waited for so far; None where it is there."""

    def abstract(self, cut: Dispatch) -> Any:
        """What a dispatch gets, or its shapes and shardings, to compile for."""

    def windows(self, epoch: int, cuts: Sequence[Dispatch]) -> Iterator[Any]:
        """What each of these dispatches of an epoch gets, in order."""

    def held_out(self, split: str) -> Iterator[Any]:
        """A split that is measured, in one or in several parts."""

    def close(self) -> None:
        """Ends what reads ahead."""


def of(task: Any, mesh: Mesh, parts: int = 1) -> Feed:
    """The feed of a task.

    Args:
      task: has `splits`, arrays or streams, and `eval_batch_size`.
      mesh: of the devices.
      parts: in which a step takes its batch.
    """
    if isinstance(task.splits["train"], ImageStream):
        return Streamed(task.splits, mesh, parts, task.eval_batch_size)
    return Resident(task.splits, mesh)


class Resident:
    """Splits that lie on the devices."""

    bytes_per_example = 0
    waited = None

    def __init__(self, splits: Mapping[str, Any], mesh: Mesh) -> None:
        self._splits, self._place = splits, meshes.replicated(mesh)
        self._placed: dict[str, Any] = {}

    def abstract(self, cut: Dispatch) -> Any:
        return {split: self._arrays(split) for split in self._splits}

    def windows(self, epoch: int, cuts: Sequence[Dispatch]) -> Iterator[Any]:
        return (self.abstract(cut) for cut in cuts)

    def held_out(self, split: str) -> Iterator[Any]:
        yield self._arrays(split)

    def _arrays(self, split: str) -> Any:
        if split not in self._placed:
            self._placed[split] = meshes.put(self._splits[split], self._place)
        return self._placed[split]

    def close(self) -> None:
        pass


class Streamed:
    """Splits that are read as they are used."""

    def __init__(
        self, splits: Mapping[str, ImageStream], mesh: Mesh, parts: int, eval_batch_size: int
    ) -> None:
        self._splits, self._mesh, self._parts = splits, mesh, parts
        self._eval_batch_size = eval_batch_size
        self._reading = contextlib.ExitStack()
        self.waited: float = 0.0

    @property
    def bytes_per_example(self) -> int:
        return self._splits["train"].bytes_per_example

    def abstract(self, cut: Dispatch) -> dict[str, Window]:
        size = micro_batch_size(cut.batch.size, self._parts)
        shapes = dispatch_shapes(self._splits, cut.steps * self._parts, size)
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            dispatch_places(self._splits, self._mesh, size),
        )

    def windows(self, epoch: int, cuts: Sequence[Dispatch]) -> Iterator[dict[str, Window]]:
        stream = self._splits["train"]
        order = stream.order(epoch)
        rows = [self._rows(cut.batch.size) for cut in cuts]
        # The examples that this process reads, of all dispatches.
        wanted = [
            order[positions(cut, self._parts, local)] for cut, local in zip(cuts, rows, strict=True)
        ]
        largest = max(map(np.size, wanted), default=0)
        flat = np.concatenate([part.ravel() for part in wanted] or [order[:0]])
        examples = self._begin(stream.read(flat, epoch, largest))

        def window(cut: Dispatch, local: np.ndarray) -> dict[str, Window]:
            size = micro_batch_size(cut.batch.size, self._parts)
            shape = (cut.steps * self._parts, len(local))
            images, labels = examples.take(shape[0] * shape[1])
            places = window_places(self._mesh, size)
            return {
                "train": Window(
                    placed(images.reshape(*shape, *images.shape[1:]), local, size, 1, places[0]),
                    placed(labels.reshape(shape), local, size, 1, places[1]),
                    # Not by `device_put`, which on several hosts would have them all meet here.
                    jax.make_array_from_callback((), places[2], lambda _: np.int32(cut.example)),
                )
            }

        return self._timed(window(cut, local) for cut, local in zip(cuts, rows, strict=True))

    def held_out(self, split: str) -> Iterator[HeldOut]:
        stream = self._splits[split]
        size = held_out_size(stream, self._mesh, self._eval_batch_size)
        numbers, counted = padded_evaluation_indices(len(stream), size)
        places = held_out_places(self._mesh, size)
        rows = local_rows(places.images, size)
        examples = self._begin(stream.read(numbers[:, rows].ravel(), ahead=len(rows)))

        def batch(counted: np.ndarray) -> HeldOut:
            images, labels = examples.take(len(rows))
            found = HeldOut(images, labels, counted[rows])
            return HeldOut(
                *(placed(x, rows, size, 0, place) for x, place in zip(found, places, strict=True))
            )

        return self._timed(map(batch, counted))

    def close(self) -> None:
        self._reading.close()

    def _rows(self, batch_size: int) -> np.ndarray:
        size = micro_batch_size(batch_size, self._parts)
        return local_rows(meshes.batch_sharding(self._mesh, size), size)

    def _begin(self, chunks: Generator[tuple[np.ndarray, np.ndarray], None, None]) -> _Examples:
        """Reads one stream at a time: what was read before, perhaps not to its end, is closed."""
        self._reading.close()
        self._reading.enter_context(contextlib.closing(chunks))
        return _Examples(chunks)

    def _timed(self, items: Iterator[Item]) -> Iterator[Item]:
        ahead = _one_ahead(items)
        self._reading.enter_context(contextlib.closing(ahead))  # Closed before what it reads from.
        while True:
            began = time.perf_counter()
            item = next(ahead, None)
            self.waited += time.perf_counter() - began
            if item is None:
                return
            yield item


def positions(cut: Dispatch, parts: int, rows: np.ndarray) -> np.ndarray:
    """Where in the order of an epoch the examples are that a process reads for a dispatch.

    Args:
      cut: the dispatch.
      parts: in which each step takes its batch.
      rows: of each part that live on this process's devices.

    Returns:
      Int ``(steps * parts, len(rows))``.

    >>> from experiments.tasks.task import Batch
    >>> positions(Dispatch(0, 2, Batch(4), 8), 1, np.array([2, 3])).tolist()
    [[10, 11], [14, 15]]
    """
    size = micro_batch_size(cut.batch.size, parts)
    starts = cut.example + size * np.arange(cut.steps * parts)
    return starts[:, None] + rows


class _Examples:
    """Examples that come in chunks, to be taken in other numbers."""

    def __init__(self, chunks: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
        self._chunks = chunks
        self._left: tuple[np.ndarray, np.ndarray] | None = None

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The next `count` images and labels, copied into arrays of their own."""
        taken: tuple[np.ndarray, ...] = ()
        found = 0
        while found < count:
            chunk = self._left or next(self._chunks)
            if not taken:
                taken = tuple(np.empty((count, *part.shape[1:]), part.dtype) for part in chunk)
            some = min(count - found, len(chunk[1]))
            for into, part in zip(taken, chunk, strict=True):
                into[found : found + some] = part[:some]
            images, labels = (part[some:] for part in chunk)
            self._left = (images, labels) if len(labels) else None
            found += some
        return taken[0], taken[1]


def _one_ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items, of which the next is made in a thread while one is used."""
    with ThreadPoolExecutor(1, "next-window") as executor:
        future = executor.submit(next, items, None)
        while (item := future.result()) is not None:
            future = executor.submit(next, items, None)
            yield item
