"""The IDX files of the MNIST family (http://yann.lecun.com/exdb/mnist/, "file formats").

A file is gzip-compressed: two zero bytes, a type code (8 = uint8), the number of axes, each
axis as a big-endian int32, then the elements in C order.
"""

import gzip
import struct
from pathlib import Path

import numpy as np

from experiments.data.errors import DataCorrupt

FILE_NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_UINT8 = 8


def decode(content: bytes, path: Path) -> np.ndarray:
    """The uint8 array in the uncompressed bytes of an IDX file; `path` is for messages."""
    magic = content[:4]
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != _UINT8:
        raise DataCorrupt(f"{path}: not an IDX file of bytes (it starts with {magic.hex()})")
    start = 4 + 4 * magic[3]
    if len(content) < start:
        raise DataCorrupt(f"{path}: ends inside its header")
    shape = struct.unpack(f">{magic[3]}i", content[4:start])
    elements = np.frombuffer(content, np.uint8, offset=start)
    if elements.size != int(np.prod(shape)):
        raise DataCorrupt(f"{path}: holds {elements.size} elements, its header says {shape}")
    return elements.reshape(shape)


def decompress(path: Path) -> bytes:
    """The uncompressed content of a `.gz` file."""
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataCorrupt(f"{path}: cannot be decompressed ({error})") from error


def read_folder(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images `(N, H, W, 1)`, training labels `(N,)`, test images and test labels.

    All uint8, in file order. Raises `DataCorrupt` for a file that is not what it should be.
    """
    arrays = [decode(decompress(folder / name), folder / name) for name in FILE_NAMES]
    train_images, train_labels, test_images, test_labels = arrays
    return train_images[..., None], train_labels, test_images[..., None], test_labels
