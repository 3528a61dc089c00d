"""The original archives of CIFAR-10 and CIFAR-100 (Krizhevsky 2009), binary and Python version.

https://www.cs.toronto.edu/~kriz/cifar.html describes both. In either, an image is 3072 bytes:
the red, then the green, then the blue plane of 32 x 32, row by row.

* Binary version: records of the labels (one byte each; CIFAR-100: coarse, fine) and the image.
* Python version: pickled dictionaries with `data` (uint8, N x 3072) and `labels` or `fine_labels`.

Members are read in memory and by their exact names; nothing is extracted, so a path inside an
archive leads nowhere. The pickles go through an unpickler that builds NumPy arrays and plain
containers, and refuses every other global, so that a forged archive cannot run code.
"""

import dataclasses
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from experiments.data.errors import DataCorrupt
from experiments.data.original import Arrays

_IMAGE_BYTES = 3 * 32 * 32

Split = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where an archive keeps what.

    Attributes:
      train_members: paths within the archive, in order.
      test_members: likewise.
      decode: the bytes of a member and a name for messages to images `(N, 3072)` and labels.
    """

    train_members: tuple[str, ...]
    test_members: tuple[str, ...]
    decode: Callable[[bytes, str], Split]


def read(path: Path, layout: Layout) -> Arrays:
    """Training images `(N, 32, 32, 3)`, labels, test images and labels, in file order.

    Raises `DataCorrupt` for an archive that lacks a member or holds something else.
    """
    members = _read_members(path, {*layout.train_members, *layout.test_members})

    def split(names: tuple[str, ...]) -> Split:
        parts = [layout.decode(members[name], f"{path}: {name}") for name in names]
        planes = np.concatenate([images for images, _ in parts])
        images = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), np.concatenate([labels for _, labels in parts])

    return (*split(layout.train_members), *split(layout.test_members))


def _read_members(path: Path, wanted: set[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.name in wanted and member.isreg():
                    file = archive.extractfile(member)
                    assert file is not None  # true of every regular file
                    found[member.name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataCorrupt(f"{path}: cannot be read as a tar.gz archive ({error})") from error
    if missing := sorted(wanted - set(found)):
        raise DataCorrupt(f"{path}: {missing[0]} is not in the archive")
    return found


def _decode_binary(content: bytes, where: str, label_bytes: int) -> Split:
    record = label_bytes + _IMAGE_BYTES
    if not content or len(content) % record:
        raise DataCorrupt(f"{where}: {len(content)} bytes are not whole records of {record}")
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return records[:, label_bytes:], records[:, label_bytes - 1]  # the fine label comes last


def _decode_pickle(content: bytes, where: str, label_key: bytes) -> Split:
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        images, labels = batch[b"data"], np.asarray(batch[label_key])
    except Exception as error:  # malformed pickles raise nearly anything
        raise DataCorrupt(f"{where}: is not a CIFAR batch ({error})") from error
    right = isinstance(images, np.ndarray) and images.dtype == np.uint8
    if not right or images.shape != (len(labels), _IMAGE_BYTES) or labels.dtype.kind != "i":
        raise DataCorrupt(f"{where}: holds no uint8 images of {_IMAGE_BYTES} bytes with labels")
    return images, labels


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain containers; any other global is refused."""

    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: np.ndarray((0,), np.uint8),
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return self._ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"refused to load the global {module_name}.{global_name} from a pickle"
            ) from None


def _binary(members: tuple[tuple[str, ...], tuple[str, ...]], label_bytes: int) -> Layout:
    return Layout(*members, lambda content, where: _decode_binary(content, where, label_bytes))


def _python(members: tuple[tuple[str, ...], tuple[str, ...]], label_key: bytes) -> Layout:
    return Layout(*members, lambda content, where: _decode_pickle(content, where, label_key))


CIFAR10_BINARY = _binary(
    (
        tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
        ("cifar-10-batches-bin/test_batch.bin",),
    ),
    label_bytes=1,
)
CIFAR10_PYTHON = _python(
    (
        tuple(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
        ("cifar-10-batches-py/test_batch",),
    ),
    label_key=b"labels",
)
CIFAR100_BINARY = _binary(
    (("cifar-100-binary/train.bin",), ("cifar-100-binary/test.bin",)), label_bytes=2
)
CIFAR100_PYTHON = _python(
    (("cifar-100-python/train",), ("cifar-100-python/test",)), label_key=b"fine_labels"
)
