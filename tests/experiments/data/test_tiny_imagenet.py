"""Tiny-ImageNet from a fabricated archive of the true layout, and what is wrong with others."""

import re

import fabricated
import numpy as np
import pytest
from fabricated import SMALL_TINY_IMAGENET, WNIDS

from experiments.data import DataCorrupt, DataUnavailable, load, tiny_imagenet
from experiments.data.__main__ import main

IMAGES = fabricated.tiny_imagenet_images()
MEMBERS = fabricated.tiny_imagenet_members(IMAGES)
ARCHIVE = "tiny-imagenet-200.zip"

TEXT = """\
dataset 'tiny_imagenet' is not on this machine and cannot be fetched.
  Looked for:
    prepared TFDS data    TFDS does not have this data set
    original files        ~/.cache/lowrank_jax/{tiny-imagenet-200.zip}: \
not there (nor in ~/tensorflow_datasets/downloads/manual)
    download              http://cs231n.stanford.edu/tiny-imagenet-200.zip: \
not tried (data.download=never)
  What to do (any one):
    1. on a machine with internet: python -m experiments.data fetch tiny_imagenet   (237 MB), \
then copy ~/.cache/lowrank_jax here
    2. or put tiny-imagenet-200.zip into ~/.cache/lowrank_jax   \
[md5:90528d7ca1a48142e341f4ef8d21d0de]
    3. or choose data that needs no download: --config.data.name=fashion_mnist | digits \
(results are then NOT comparable with tiny_imagenet)"""


def test_the_genuine_archive_has_the_published_numbers():
    genuine = tiny_imagenet.TINY_IMAGENET
    assert (genuine.classes, genuine.image_size) == (200, 64)
    assert genuine.classes * genuine.train_per_class == 100_000
    assert genuine.validation_images == 10_000


def assert_is_fabricated(train_images, train_labels, test_images, test_labels):
    """Images up to JPEG's error, in the sorted order of their paths."""
    label = {wnid: number for number, wnid in enumerate(sorted(WNIDS))}
    train = sorted(path for path in IMAGES if path.startswith("train/"))
    validation = sorted(path for path in IMAGES if path.startswith("val/"))
    assert validation[2] == "val/images/val_10.JPEG"
    for paths, images, labels in (
        (train, train_images, train_labels),
        (validation, test_images, test_labels),
    ):
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        assert images.shape == (len(paths), 64, 64, 3)
        for path, image, found in zip(paths, images, labels, strict=True):
            expected = IMAGES[path]
            if expected.ndim == 2:
                assert (image == image[..., :1]).all()
                expected = expected[..., None]
            assert np.abs(image.astype(int) - expected).max() <= 6
            number = int(re.search(r"_(\d+).JPEG", path)[1])
            wnid = path.split("/")[1] if path.startswith("train/") else WNIDS[number % 3]
            assert found == label[wnid]


def test_reads_what_was_written(tmp_path, capsys):
    path = tmp_path / ARCHIVE
    fabricated.write_tiny_imagenet(path, MEMBERS)
    assert_is_fabricated(*tiny_imagenet.read(path, SMALL_TINY_IMAGENET))
    assert sum(image.ndim == 2 for image in IMAGES.values()) == 2
    assert f"{ARCHIVE}: 45 of 45 images decoded, 100 %" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]  # nothing is extracted


@pytest.mark.usefixtures("small_tiny_imagenet")
def test_load_and_the_command(data_dir, tmp_path, register, capsys):
    # TFDS does not have it: such a folder is of something else
    (tmp_path / "tfds" / "tiny_imagenet" / "1.0.0").mkdir(parents=True)
    (tmp_path / "tfds" / "tiny_imagenet" / "1.0.0" / "dataset_info.json").touch()
    fabricated.write_tiny_imagenet(data_dir / ARCHIVE, MEMBERS)
    register("tiny_imagenet", data_dir)
    assert main(["status", "tiny_imagenet"]) == 0
    assert capsys.readouterr().out == f"tiny_imagenet original files in {data_dir}\n"
    assert main(["fetch", "tiny_imagenet"]) == 0
    sizes = "33 training and 12 test images of (64, 64, 3), 3 classes"
    assert sizes in capsys.readouterr().out
    (data_dir / ARCHIVE).unlink()
    data = load("tiny_imagenet")  # from the cache: nothing is decoded twice
    assert capsys.readouterr().err == ""
    assert data.origin == f"original files in {data_dir}"
    assert_is_fabricated(data.train_images, data.train_labels, data.test_images, data.test_labels)


def test_nothing_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LOWRANK_JAX_DATA_DIR")
    monkeypatch.delenv("TFDS_DATA_DIR")
    with pytest.raises(DataUnavailable) as error:
        load("tiny_imagenet", download="never")
    assert str(error.value) == TEXT
    with pytest.raises(DataUnavailable, match="TFDS does not have this data set"):
        load("tiny_imagenet", source="tfds")


def test_another_archive_is_refused_unread(data_dir):
    fabricated.write_tiny_imagenet(data_dir / ARCHIVE, MEMBERS)
    with pytest.raises(DataCorrupt, match=f"{ARCHIVE}: wrong checksum: the md5 .*90528d7c"):
        load("tiny_imagenet", download="never")


def without(*paths):
    return {path: content for path, content in MEMBERS.items() if path not in paths}


def annotated(old, new):
    text = MEMBERS["val/val_annotations.txt"].decode()
    assert old in text
    return MEMBERS | {"val/val_annotations.txt": text.replace(old, new).encode()}


FIRST = f"train/{WNIDS[1]}/images/{WNIDS[1]}_0.JPEG"
THIRD = "val/images/val_3.JPEG"
LINE = f"val_3.JPEG\t{WNIDS[0]}\t0\t10\t40\t62\n"
SMALLER = fabricated.jpeg(np.zeros((64, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (without("wnids.txt"), "wnids.txt is not in the archive"),
        (without("val/val_annotations.txt"), "val/val_annotations.txt is not in the archive"),
        (MEMBERS | {"wnids.txt": b"n1\nn2\n"}, "wnids.txt lists 2 classes, expected 3"),
        (without(FIRST), f"train/{WNIDS[1]}/images holds 10 images, expected 11"),
        (MEMBERS | {FIRST.replace("_0", "_11"): b""}, "images holds 12 images, expected 11"),
        (
            MEMBERS | {"train/n9/images/n9_0.JPEG": MEMBERS[FIRST]},
            "train/n9/images/n9_0.JPEG: its class 'n9' is not in tiny-imagenet-200/wnids.txt",
        ),
        (without(THIRD), "val/images/val_3.JPEG is not in the archive"),
        (annotated(LINE, ""), "val/images/val_3.JPEG has no line in tiny-imagenet-200/val/val_"),
        (
            {path: annotated(LINE, "")[path] for path in without(THIRD)},
            "val/images/ holds 11 images, expected 12",
        ),
        (
            annotated(LINE, "val_3.JPEG\tn9\n"),
            "val/images/val_3.JPEG: its class 'n9' is not in tiny-imagenet-200/wnids.txt",
        ),
        (
            annotated(LINE, "val_3.JPEG n9\n"),
            "val_annotations.txt, line 4: 'val_3.JPEG n9' is not file, tab, class",
        ),
        (MEMBERS | {FIRST: SMALLER}, f"{FIRST}: is 32 x 64 pixels, expected 64 x 64"),
        (MEMBERS | {FIRST: b"nonsense"}, f"{FIRST}: cannot be decoded as a JPEG"),
        (MEMBERS | {THIRD: MEMBERS[THIRD][:-60]}, f"{THIRD}: cannot be decoded as a JPEG"),
    ],
)
def test_what_is_wrong_is_named(members, message, tmp_path):
    path = tmp_path / ARCHIVE
    fabricated.write_tiny_imagenet(path, members)
    with pytest.raises(DataCorrupt, match=re.escape(message)) as error:
        tiny_imagenet.read(path, SMALL_TINY_IMAGENET)
    assert str(error.value).startswith(f"{path}: tiny-imagenet-200/")


def test_damaged_archives_are_refused(tmp_path):
    path = tmp_path / ARCHIVE
    fabricated.write_tiny_imagenet(path, MEMBERS)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:length])
        with pytest.raises(DataCorrupt, match=f"{ARCHIVE}: cannot be read as a zip archive"):
            tiny_imagenet.read(path, SMALL_TINY_IMAGENET)
    flipped = bytearray(whole)
    flipped[whole.index(MEMBERS[THIRD]) + 100] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(DataCorrupt, match=rf"{THIRD}: cannot be decompressed \(Bad CRC-32"):
        tiny_imagenet.read(path, SMALL_TINY_IMAGENET)
