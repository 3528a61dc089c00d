"""A split of photographs that is read as it is used, since it does not fit into memory.

Grain reads ahead: threads of this process decode one chunk of examples each, or worker processes
do. However many there are, the chunks come in the order that was asked for, and what a chunk holds
is a function of seed, epoch and the numbers of its examples (`crops.py`). How much is read ahead is
bounded, and so is the memory of the host, by what a reader asks for and not by the size of the set.

A damaged record or file, and a worker that dies, end the reading with an error that names it.
"""

import contextlib
import dataclasses
import math
import signal
from collections.abc import Generator

import numpy as np
from absl import flags

from experiments.cores import cores
from experiments.data.array_records import ArrayRecords
from experiments.data.errors import DataCorrupt
from experiments.errors import RunError

CHUNK = 16
"""Examples that are decoded, and handed from process to process, at a time."""

Pixels = np.ndarray
Labels = np.ndarray


@dataclasses.dataclass(frozen=True)
class RandomCrops:
    """How images are drawn for training.

    Attributes:
      seed: of the run.
      flip: whether they may be mirrored.
    """

    seed: int
    flip: bool


@dataclasses.dataclass(frozen=True, eq=False)
class ImageStream:
    """A split; see the module.

    Attributes:
      records: of the data set's split that it is part of.
      examples: the numbers of its examples among them, int32.
      num_classes: labels are below it.
      image_size: of the images that networks get.
      augmentation: for training; None: the middle of every image.
      workers: processes that decode; 0: threads of this one.
    """

    records: ArrayRecords
    examples: np.ndarray
    num_classes: int
    image_size: int
    augmentation: RandomCrops | None = None
    workers: int = 0

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def bytes_per_example(self) -> int:
        """Of what is sent to the device."""
        return 3 * self.image_size**2 + 4

    def order(self, epoch: int) -> np.ndarray:
        """The examples of a training epoch in order, as positions in the split: int32 `(N,)`."""
        from experiments.data.example_order import epoch_permutation  # JAX, which no worker needs

        assert self.augmentation is not None
        return np.asarray(epoch_permutation(self.augmentation.seed, epoch, len(self)))

    def decode(self, number: int, epoch: int) -> tuple[Pixels, int]:
        """Image and label of a record: uint8 `(image_size, image_size, 3)`, and an integer.

        Raises:
          DataCorrupt: the record or its image is damaged; names the file.
        """
        # Slow to import, and needed here only.
        from tensorflow_datasets.proto import tf_example_pb2

        from experiments.data.photographs import evaluation_pixels, training_pixels

        record, size, drawn = self.records[number], self.image_size, self.augmentation
        try:
            features = tf_example_pb2.Example.FromString(record).features.feature
            content = features["image"].bytes_list.value[0]
            label = int(features["label"].int64_list.value[0])
            if drawn is None:
                pixels = evaluation_pixels(content, size)
            else:
                pixels = training_pixels(content, size, drawn.seed, epoch, number, drawn.flip)
        except Exception as error:  # Pillow and protobuf raise errors of many classes.
            raise DataCorrupt(
                f"{self.records.place(number)}: no image and label ({error or type(error)}); copy "
                "or prepare that file again"
            ) from error
        if not 0 <= label < self.num_classes:
            raise DataCorrupt(
                f"{self.records.place(number)}: label {label}, expected 0 to {self.num_classes - 1}"
            )
        return pixels, label

    def read(
        self, positions: np.ndarray, epoch: int = 0, ahead: int = CHUNK
    ) -> Generator[tuple[Pixels, Labels], None, None]:
        """The examples at these positions of the split, in this order, chunk by chunk.

        Args:
          positions: int `(n,)`.
          epoch: which the augmentation is a function of.
          ahead: how many examples may be decoded before they are asked for; there are at least a
            few chunks for each thread or worker in any case, see `examples_ahead`.

        Returns:
          An iterator over uint8 `(k, size, size, 3)` and int32 `(k,)`, where k is `CHUNK`, and less
          at the end. It is to be closed, which ends its threads and workers.

        Raises:
          DataCorrupt: see `decode`.
          RunError: a worker process died.
        """
        import grain

        # What the reader of records imports at its first record is no matter for several threads.
        for first in self.examples[positions[:1]]:
            self.records[first]
        chunks = grain.MapDataset.source(_Chunks(self, self.examples[positions], epoch))
        buffers = _buffers(self.workers, ahead)
        dataset = chunks.to_iter_dataset(
            grain.ReadOptions(num_threads=buffers.threads, prefetch_buffer_size=buffers.of_threads)
        )
        if self.workers:
            if not flags.FLAGS.is_parsed():  # Grain has some, and reads them when workers start.
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(
                num_workers=self.workers, per_worker_buffer_size=buffers.of_worker
            )
            dataset = dataset.mp_prefetch(options)
        with contextlib.closing(iter(dataset)) as iterator:
            while True:
                try:
                    chunk = next(iterator)
                except StopIteration:
                    return
                except RuntimeError as error:
                    raise RunError(_of_worker(str(error), self.workers)) from error
                # Out of the memory that is shared with a worker, which is given back at once.
                yield np.array(chunk[0]), np.array(chunk[1])

    def examples_ahead(self, ahead: int) -> int:
        """The most examples that `read` holds decoded, or begun, beside those it has handed out."""
        buffers = _buffers(self.workers, ahead)
        if not self.workers:
            return CHUNK * buffers.of_threads
        # Grain has the same buffer on both sides of a worker's queue, and one chunk between them.
        return CHUNK * self.workers * (buffers.of_threads + 2 * buffers.of_worker + 2)


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """What grain sees as its source: item k is the k-th chunk of examples, decoded."""

    stream: ImageStream
    numbers: np.ndarray
    epoch: int

    def __len__(self) -> int:
        return -(-len(self.numbers) // CHUNK)

    def __getitem__(self, k: int) -> tuple[Pixels, Labels]:
        numbers = self.numbers[k * CHUNK : (k + 1) * CHUNK]
        pixels = np.empty((len(numbers), *2 * (self.stream.image_size,), 3), np.uint8)
        labels = np.empty(len(numbers), np.int32)
        for i, number in enumerate(numbers.tolist()):
            pixels[i], labels[i] = self.stream.decode(number, self.epoch)
        return pixels, labels


@dataclasses.dataclass(frozen=True)
class _Buffers:
    """Sizes of grain's buffers in chunks, in each process that decodes."""

    threads: int
    of_threads: int
    of_worker: int


def _buffers(workers: int, ahead: int) -> _Buffers:
    chunks = math.ceil(ahead / CHUNK)
    if not workers:
        threads = cores()
        return _Buffers(threads, max(2 * threads, chunks), 0)
    return _Buffers(1, 1, max(1, chunks // (2 * workers)))


def _of_worker(found: str, workers: int) -> str:
    """The message for a worker that did not end by an error of its own."""
    for code in signal.Signals:
        number = f"exit code -{code.value}"
        found = found.replace(f"{number}.", f"{number} ({code.name}).")
    return (
        f"one of {workers} data workers died: {found} SIGKILL is mostly the system's, for want of "
        "memory, and SIGBUS a full /dev/shm, through which workers hand over their images: give "
        "fewer data_workers, or 0 to decode in threads; start again to continue from the last "
        "checkpoint"
    )
