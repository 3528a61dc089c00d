"""Make the embedded subset `fashion_small` from the Debian package `dataset-fashion-mnist`.

    apt-get install dataset-fashion-mnist
    python -m experiments.data.make_fashion_small

Rule: the first 500 training and the first 200 test images of each class, in file order, which
gives 5000 and 2000 images, class-balanced. The arrays are stored as one `.npz` without
compression inside `.xz`, because xz takes 2.6 MB where the zip deflate of NumPy takes 3.1 MB.
The written bytes depend on the xz library; the arrays and their fingerprint do not.
"""

import io
import lzma
from pathlib import Path

import numpy as np

from experiments.data import idx
from experiments.data.embedded_sets import FASHION_SMALL_FILE

PACKAGE_FOLDER = Path("/usr/share/datasets/fashion-mnist")
TRAIN_PER_CLASS = 500
TEST_PER_CLASS = 200


def first_of_each_class(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Indices of the first `per_class` examples of every class, in file order.

    >>> first_of_each_class(np.array([1, 1, 0, 1, 0, 0]), 2).tolist()
    [0, 1, 2, 4]
    """
    of_each = [np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(of_each))


def main() -> None:
    train_images, train_labels, test_images, test_labels = idx.read_folder(PACKAGE_FOLDER)
    train = first_of_each_class(train_labels, TRAIN_PER_CLASS)
    test = first_of_each_class(test_labels, TEST_PER_CLASS)
    archive = io.BytesIO()
    np.savez(
        archive,
        train_images=train_images[train],
        train_labels=train_labels[train].astype(np.uint8),
        test_images=test_images[test],
        test_labels=test_labels[test].astype(np.uint8),
    )
    packed = lzma.compress(archive.getvalue(), preset=9 | lzma.PRESET_EXTREME)
    FASHION_SMALL_FILE.write_bytes(packed)
    print(f"{FASHION_SMALL_FILE}: {len(packed) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
