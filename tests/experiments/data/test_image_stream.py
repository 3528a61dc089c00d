"""Streams of photographs: what comes does not depend on who decodes it, and what goes wrong."""

import contextlib
import dataclasses
import multiprocessing
import os
import re
import signal
import threading
import time
from pathlib import Path

import large_sets
import numpy as np
import pytest

from experiments.data import DataCorrupt
from experiments.data.example_order import epoch_permutation
from experiments.data.image_stream import CHUNK, ImageStream
from experiments.data.photographs import evaluation_pixels, training_pixels
from experiments.errors import RunError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared set; who changes it takes another."""
    folder = tmp_path_factory.mktemp("prepared")
    large_sets.write(folder)
    return folder


def streams(folder: Path, validation: float = 0.0, workers: int = 0) -> dict[str, ImageStream]:
    found = large_sets.entry().open(str(folder))
    return found.splits(validation, seed=1, flip=True, workers=workers)


def whole(chunks) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*chunks, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def file_number(stream: ImageStream, position: int) -> int:
    """Which of `large_sets.jpeg` is at a position of a stream."""
    (number,) = re.findall(rb"n(\d{8})\.JPEG", stream.records[int(stream.examples[position])])
    return int(number)


def test_images_and_labels_come_in_the_order_that_is_asked_for(folder):
    splits = streams(folder)
    train, test = splits["train"], splits["test"]
    order = train.order(epoch=3)
    np.testing.assert_array_equal(order, epoch_permutation(1, 3, large_sets.TRAIN))
    images, labels = whole(train.read(order, epoch=3))
    for position, image, label in zip(order, images, labels, strict=True):
        number = file_number(train, position)
        example = int(train.examples[position])
        expected = training_pixels(large_sets.jpeg(number), large_sets.SIZE, 1, 3, example, True)
        np.testing.assert_array_equal(image, expected)
        assert label == large_sets.label(number)
    images, labels = whole(test.read(np.arange(large_sets.TEST)))
    for position, image in enumerate(images):
        content = large_sets.jpeg(file_number(test, position))
        np.testing.assert_array_equal(image, evaluation_pixels(content, large_sets.SIZE))


def test_workers_change_nothing(folder):
    """Neither does it where in an epoch one begins."""
    in_threads, by_workers = (streams(folder, workers=workers)["train"] for workers in (0, 2))
    order = in_threads.order(epoch=2)
    expected = whole(in_threads.read(order, epoch=2))
    for mine, theirs in zip(whole(by_workers.read(order, epoch=2)), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    later = whole(in_threads.read(order[21:], epoch=2))
    for mine, theirs in zip(later, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs[21:])


def test_a_part_is_held_out_and_never_trained_on(folder):
    splits = streams(folder, validation=0.25)
    train, validation = splits["train"].examples, splits["validation"].examples
    assert len(validation) == round(0.25 * large_sets.TRAIN)
    assert sorted([*train, *validation]) == list(range(large_sets.TRAIN))
    assert splits["validation"].augmentation is None
    assert "validation" not in streams(folder)
    found = large_sets.entry().open(str(folder))
    other = found.splits(0.25, seed=2, flip=True, workers=0)["validation"].examples
    assert set(other) != set(validation)
    with pytest.raises(RunError, match=r"validation=0.001 of 52 training images"):
        found.splits(0.001, seed=1, flip=True, workers=0)


def test_what_is_held_is_bounded_by_what_is_read_ahead(folder, monkeypatch):
    """And not by the number of examples: of 5200 never more than the bound are ahead of a slow
    reader, and none is decoded when it has stopped."""
    stream, ahead = streams(folder)["train"], 4 * CHUNK
    decoded, lock = 0, threading.Lock()
    decode = ImageStream.decode

    def counted(self, *arguments):
        nonlocal decoded
        with lock:
            decoded += 1
        return decode(self, *arguments)

    monkeypatch.setattr(ImageStream, "decode", counted)
    positions = np.tile(stream.order(0), 100)
    bound, used, peak = stream.examples_ahead(ahead), 0, 0
    with contextlib.closing(stream.read(positions, ahead=ahead)) as chunks:
        for images, _ in chunks:
            used += len(images)
            time.sleep(0.02)
            peak = max(peak, decoded - used)
            if used >= 20 * CHUNK:
                break
    assert CHUNK <= peak <= bound < len(positions) / 10
    time.sleep(0.2)  # What was begun is finished.
    after = decoded
    time.sleep(0.2)
    assert decoded == after <= used + bound


def test_a_damaged_image_is_named(tmp_path, monkeypatch):
    intact = large_sets.jpeg
    broken = {7: intact(7)[:400], 9: b"no JPEG at all"}
    monkeypatch.setattr(large_sets, "jpeg", lambda n: broken.get(n) or intact(n))
    large_sets.write(tmp_path, train=12, test=2)
    train = large_sets.entry(12, 2).open(str(tmp_path)).splits(0.0, 1, True, 0)["train"]
    for number in broken:
        (position,) = (p for p in range(12) if file_number(train, p) == number)
        with pytest.raises(DataCorrupt, match=rf"00000-of-00001, record {position}: no image and"):
            list(train.read(np.array([position])))


def test_a_label_beyond_the_classes_is_named(folder):
    stream = dataclasses.replace(streams(folder)["test"], num_classes=2)
    with pytest.raises(DataCorrupt, match=r"record \d+: label [23], expected 0 to 1"):
        list(stream.read(np.arange(large_sets.TEST)))


def test_errors_of_workers_are_those_of_threads(folder):
    stream = dataclasses.replace(streams(folder, workers=1)["test"], num_classes=2)
    with pytest.raises(DataCorrupt, match=r"record \d+: label [23], expected 0 to 1"):
        list(stream.read(np.arange(large_sets.TEST)))


def test_a_killed_worker_is_an_error(folder):
    stream = streams(folder, workers=2)["train"]
    positions = np.tile(stream.order(0), 200)
    with contextlib.closing(stream.read(positions)) as chunks:
        next(chunks)
        workers = [p for p in multiprocessing.active_children() if "grain" in p.name]
        assert len(workers) == 2
        os.kill(workers[1].pid, signal.SIGKILL)
        with pytest.raises(RunError, match=r"of 2 data workers died.*exit code -9 \(SIGKILL\)"):
            for _ in chunks:
                pass
    assert not any(worker.is_alive() for worker in workers)


def test_a_set_of_other_sizes_is_another_set(folder):
    with pytest.raises(DataCorrupt, match=r"52 examples in the split 'train'; imagenet2012 has 53"):
        large_sets.entry(train=53).open(str(folder))


def test_the_fingerprint_tells_preparations_apart(folder, tmp_path):
    large_sets.write(tmp_path / "same")
    large_sets.write(tmp_path / "other", test=9)
    same = large_sets.entry().open(str(tmp_path / "same"))
    other = large_sets.entry(test=9).open(str(tmp_path / "other"))
    found = large_sets.entry().open(str(folder))
    assert found.fingerprint == same.fingerprint != other.fingerprint
