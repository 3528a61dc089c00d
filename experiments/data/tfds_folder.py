"""Prepared TFDS folders, read without TensorFlow.

A folder `NAME/VERSION` holds `dataset_info.json` (file format, examples per shard) and the shards,
`NAME-SPLIT.FORMAT-00000-of-00001`, of serialized `tf.train.Example` records; those of image sets
have a PNG in `image` and an integer in `label`. TFDS stores the examples in the order of the md5 of
split name and example number (`tensorflow_datasets.core.hashing`). The order of the original files
is restored from the field `id` where there is one, as in CIFAR (`train_00000`), and else from that
hash.
"""

import hashlib
import io
import itertools
import json
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from experiments.data.errors import DataCorrupt
from experiments.data.original import Arrays
from experiments.errors import RunError

FORMATS = ("array_record", "tfrecord")
Order = Literal["id", "hash"]
Example = TypeVar("Example")


def find(folder: Path) -> Path | None:
    """The newest prepared version in `tfds_dir/NAME`, or None."""
    prepared = [
        path.parent
        for path in folder.glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]
    return max(prepared, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def read(folder: Path, name: str, order: Order) -> Arrays:
    """Training images `(N, H, W, C)`, labels, test images and labels, in the original order.

    Raises as `read_split` does.
    """
    return (*_images(folder, name, "train", order), *_images(folder, name, "test", order))


def _images(folder: Path, name: str, split: str, order: Order) -> tuple[np.ndarray, np.ndarray]:
    def decode(features: Any) -> tuple[np.ndarray, int]:
        from PIL import Image  # slow to import, and needed here only

        with Image.open(io.BytesIO(features["image"].bytes_list.value[0])) as image:
            return np.asarray(image), features["label"].int64_list.value[0]

    decoded = read_split(folder, name, split, order, decode)
    try:
        pixels = np.stack([image for image, _ in decoded])
    except ValueError as error:
        raise DataCorrupt(f"{folder}/{name}-{split}: not images of one size ({error})") from error
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    return pixels, np.asarray([label for _, label in decoded], np.int32)


def read_split(
    folder: Path, name: str, split: str, order: Order, decode: Callable[[Any], Example]
) -> list[Example]:
    """What `decode` makes of every example's features, in the original order.

    Args:
      folder: of a prepared version.
      name: what TFDS calls the data set.
      split: one of its splits.
      order: how the original order is restored.
      decode: gets the features of an example by name, messages of `tf.train.Feature`.

    Raises `DataCorrupt` if the folder is incomplete or in another format, `RunError` if a package
    for reading it is not installed.
    """
    ids: list[bytes] = []

    def decode_and_note_id(features: Any) -> Example:
        ids.extend(features["id"].bytes_list.value)
        return decode(features)

    shards = _Shards.find(folder, name, split)
    examples = list(shards.examples(decode_and_note_id))
    if len(examples) != shards.size or (order == "id" and len(ids) != shards.size):
        raise shards.incomplete(len(examples))
    rank = np.argsort(ids) if order == "id" else _original_positions(split, shards.size)
    return [examples[i] for i in rank]


def read_first(
    folder: Path, name: str, split: str, count: int, decode: Callable[[Any], Example]
) -> list[Example]:
    """What `decode` makes of the first `count` examples, in the order in which TFDS stores them.

    For splits too large to be read as a whole. For the rest see `read_split`.
    """
    shards = _Shards.find(folder, name, split)
    examples = list(itertools.islice(shards.examples(decode), count))
    if len(examples) != min(count, shards.size):
        raise shards.incomplete(len(examples))
    return examples


class _Shards(NamedTuple):
    """The files of a split: their pattern and format, and how many examples they should have."""

    pattern: Path
    file_format: str
    size: int

    @classmethod
    def find(cls, folder: Path, name: str, split: str) -> "_Shards":
        file_format, size = _format_and_size(folder, split)
        return cls(folder / f"{name}-{split}.{file_format}-*-of-*", file_format, size)

    def incomplete(self, count: int) -> DataCorrupt:
        return DataCorrupt(f"{self.pattern}: {count} examples, dataset_info.json says {self.size}")

    def examples(self, decode: Callable[[Any], Example]) -> Iterator[Example]:
        """What `decode` makes of the examples as they are stored."""
        where = self.pattern
        try:
            from tensorflow_datasets.proto import tf_example_pb2  # slow to import

            for path in sorted(where.parent.glob(where.name)):
                for record in _READERS[self.file_format](path):
                    yield decode(tf_example_pb2.Example.FromString(record).features.feature)
        except ImportError as error:
            raise RunError(
                f"{where}: reading prepared TFDS data needs the package {error.name!r}: "
                "pip install 'lowrank_jax[experiments]'"
            ) from error
        except (OSError, ValueError, IndexError, RuntimeError, struct.error) as error:
            raise DataCorrupt(f"{where}: damaged or of another kind ({error})") from error
        except Exception as error:
            # protobuf's DecodeError has no public home that is the same in all releases
            if type(error).__name__ != "DecodeError":
                raise
            raise DataCorrupt(f"{where}: damaged ({error})") from error


def _format_and_size(folder: Path, split: str) -> tuple[str, int]:
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        file_format = info.get("fileFormat", "tfrecord")  # not yet written by early releases
        sizes = {entry["name"]: sum(map(int, entry["shardLengths"])) for entry in info["splits"]}
        size = sizes[split]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataCorrupt(f"{folder}/dataset_info.json: not understood ({error!r})") from error
    if file_format not in FORMATS:
        raise DataCorrupt(
            f"{folder}: prepared in the format {file_format!r}; expected {' or '.join(FORMATS)}"
        )
    return file_format, size


def _original_positions(split: str, size: int) -> np.ndarray:
    """`positions[i]` is where TFDS has put example `i` of the original file."""
    hashes = [hashlib.md5(f"{split}{number}".encode()).digest() for number in range(size)]
    stored = sorted(range(size), key=hashes.__getitem__)
    return np.argsort(stored)


def _array_records(path: Path) -> Iterator[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    try:
        yield from reader.read_all()
    finally:
        reader.close()


def _tf_records(path: Path) -> Iterator[bytes]:
    """Frames of a TFRecord file: length (uint64), its CRC, the record, its CRC.

    The CRCs are not looked at: a PNG carries its own, which are checked when it is decoded.
    """
    with path.open("rb") as file:
        while header := file.read(12):
            (length,) = struct.unpack("<Q4x", header)
            record = file.read(length)
            if len(record) != length or len(file.read(4)) != 4:
                raise ValueError(f"{path.name} ends inside a record")
            yield record


_READERS = {"array_record": _array_records, "tfrecord": _tf_records}
