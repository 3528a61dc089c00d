"""The reader of the MNIST family's files."""

import gzip

import numpy as np
import pytest
from fabricated import write_idx_folder

from experiments.data import DataCorrupt, ImageData, idx


def test_reads_what_was_written(tmp_path, fashion_arrays):
    write_idx_folder(tmp_path, fashion_arrays)
    for found, expected in zip(idx.read_folder(tmp_path), fashion_arrays, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_whole_fashion_mnist_has_the_known_statistics(fashion_package):
    data = ImageData.from_arrays(
        "fashion_mnist",
        "package",
        *idx.read_folder(fashion_package),
        num_classes=10,
    )
    assert data.train_images.shape == (60000, 28, 28, 1)
    assert np.bincount(data.train_labels).tolist() == [6000] * 10
    assert np.bincount(data.test_labels).tolist() == [1000] * 10
    assert round(data.mean[0], 4) == 0.2860
    assert round(data.std[0], 4) == 0.3530


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"\0\0\x0d\1\0\0\0\1\0"), "not an IDX file of bytes"),
        (gzip.compress(b""), "not an IDX file of bytes"),
        (gzip.compress(b"\0\0\x08\3\0\0\0\1"), "ends inside its header"),
        (gzip.compress(b"\0\0\x08\1\0\0\0\5abc"), r"holds 3 elements, its header says \(5,\)"),
        (gzip.compress(b"\0\0\x08\1\0\0\0\3abc")[:-9], "cannot be decompressed"),
        (b"no gzip", "cannot be decompressed"),
    ],
    # Names of their own: gzip writes the time, so that the bytes name other tests each second.
    ids=["type", "empty", "header", "size", "cut off", "no gzip"],
)
def test_damaged_files_are_refused(tmp_path, fashion_arrays, content, message):
    write_idx_folder(tmp_path, fashion_arrays)
    (tmp_path / idx.FILE_NAMES[1]).write_bytes(content)
    with pytest.raises(DataCorrupt, match=message) as error:
        idx.read_folder(tmp_path)
    assert idx.FILE_NAMES[1] in str(error.value)
