"""The committed data: what it is, where it came from, what it weighs."""

import gzip

import numpy as np

from experiments.data import embedded_sets, idx, load
from experiments.data.make_fashion_small import first_of_each_class


def test_fashion_small():
    data = load("fashion_small")
    assert data.train_images.shape == (5000, 28, 28, 1)
    assert data.test_images.shape == (2000, 28, 28, 1)
    assert np.bincount(data.train_labels).tolist() == [500] * 10
    assert np.bincount(data.test_labels).tolist() == [200] * 10
    assert data.num_classes == 10 and data.origin == "embedded"
    # of the whole set: .2860 and .3530
    assert abs(data.mean[0] - 0.2860) < 0.003
    assert abs(data.std[0] - 0.3530) < 0.003


def test_fashion_small_is_the_stated_part_of_the_package(fashion_package):
    train_images, train_labels, test_images, test_labels = idx.read_folder(fashion_package)
    data = load("fashion_small")
    for images, labels, of_data, labels_of_data, per_class in (
        (train_images, train_labels, data.train_images, data.train_labels, 500),
        (test_images, test_labels, data.test_images, data.test_labels, 200),
    ):
        seen = np.zeros(10, int)
        kept = []
        for index, label in enumerate(labels):
            if seen[label] < per_class:
                kept.append(index)
            seen[label] += 1
        np.testing.assert_array_equal(first_of_each_class(labels, per_class), kept)
        np.testing.assert_array_equal(of_data, images[kept])
        np.testing.assert_array_equal(labels_of_data, labels[kept])


def test_digits():
    data = load("digits")
    assert data.train_images.shape == (1437, 8, 8, 1)
    assert data.test_images.shape == (360, 8, 8, 1)
    lines = gzip.decompress(embedded_sets.DIGITS_FILE.read_bytes()).decode().split()
    for index, line in enumerate(lines):
        *pixels, label = map(int, line.split(","))
        image, stored_label = (
            (data.train_images[index], data.train_labels[index])
            if index < 1437
            else (data.test_images[index - 1437], data.test_labels[index - 1437])
        )
        assert stored_label == label
        assert max(abs(image.ravel() - np.array(pixels) * 255 / 16)) <= 0.5
    assert len(lines) == 1797
    # every class is in the test part, roughly as often as the others
    assert np.bincount(data.test_labels).min() >= 30


def test_size_and_licences():
    folder = embedded_sets.FASHION_SMALL_FILE.parent
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4e6
    notice = (folder / "fashion_small.LICENSE").read_text()
    assert "Copyright (c) 2017 Zalando SE, https://tech.zalando.com" in notice
    assert "MIT License" in notice
    assert "CC BY 4.0" in (folder / "digits.LICENSE").read_text()


def test_nearest_class_mean_learns_something():
    # The labels belong to the images: nearest class mean is far above the 10 % of chance. (It is
    # 67.7 % on the whole Fashion-MNIST.)
    for name, least in (("fashion_small", 0.6), ("digits", 0.8)):
        data = load(name)
        train = data.train_images.reshape(len(data.train_images), -1).astype(float)
        test = data.test_images.reshape(len(data.test_images), -1).astype(float)
        means = np.stack([train[data.train_labels == c].mean(axis=0) for c in range(10)])
        distance = ((test[:, None] - means) ** 2).sum(axis=2)
        assert (distance.argmin(axis=1) == data.test_labels).mean() > least
