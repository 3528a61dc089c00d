"""The image sets that are committed beside this file: `fashion_small` and `digits`.

`fashion_small` is a class-balanced subset of Fashion-MNIST (Xiao, Rasul and Vollgraf 2017,
arXiv:1708.07747): 5000 training and 2000 test images, 28 x 28; `make_fashion_small.py` says which.

`digits` is the set of 1797 handwritten digits, 8 x 8, that scikit-learn distributes (Alpaydin and
Kaynak 1998, UCI "Optical Recognition of Handwritten Digits"). The first 1437 rows of the file are
for training and the last 360 for testing. Pixel values 0..16 are stretched to 0..255.

Licences: `embedded/*.LICENSE`.
"""

import gzip
import io
import lzma
from pathlib import Path

import numpy as np

from experiments.data.original import Arrays

_FOLDER = Path(__file__).parent / "embedded"
FASHION_SMALL_FILE = _FOLDER / "fashion_small.npz.xz"
DIGITS_FILE = _FOLDER / "digits.csv.gz"
_DIGITS_TRAIN = 1437


def fashion_small() -> Arrays:
    """Training images `(5000, 28, 28, 1)`, labels, test images `(2000, 28, 28, 1)`, labels."""
    with np.load(io.BytesIO(lzma.decompress(FASHION_SMALL_FILE.read_bytes()))) as stored:
        return (
            stored["train_images"],
            stored["train_labels"],
            stored["test_images"],
            stored["test_labels"],
        )


def digits() -> Arrays:
    """Training images `(1437, 8, 8, 1)`, labels, test images `(360, 8, 8, 1)`, labels."""
    rows = np.loadtxt(
        io.BytesIO(gzip.decompress(DIGITS_FILE.read_bytes())), delimiter=",", dtype=np.int64
    )
    images = ((rows[:, :64] * 255 + 8) // 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = rows[:, 64]
    train, test = slice(None, _DIGITS_TRAIN), slice(_DIGITS_TRAIN, None)
    return images[train], labels[train], images[test], labels[test]
