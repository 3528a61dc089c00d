"""The feed: windows of streamed splits are the batches of the order, on however many hosts."""

from pathlib import Path
from types import SimpleNamespace

import jax
import large_sets
import numpy as np
import pytest
from eight_devices import printed_by
from tiny_runs import ROOT

from experiments import feed as feeds
from experiments import mesh as meshes
from experiments.data.image_stream import ImageStream
from experiments.dispatch import dispatches
from experiments.feed import Resident, Streamed, positions
from experiments.tasks.task import Batch

MESH = meshes.EVERY_DEVICE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    large_sets.write(folder)
    return folder


@pytest.fixture
def splits(folder: Path) -> dict[str, ImageStream]:
    return large_sets.entry().open(str(folder)).splits(0.0, seed=1, flip=True, workers=0)


def everything(stream: ImageStream, where: np.ndarray, epoch: int) -> tuple[np.ndarray, ...]:
    chunks = list(stream.read(where, epoch))
    return tuple(np.concatenate(arrays) for arrays in zip(*chunks, strict=True))


# An epoch of six batches of eight and one of four, taken up at its second dispatch.
CUTS = dispatches([Batch(8)] * 6 + [Batch(4)], 2)[1:]


@pytest.mark.parametrize("parts", [1, 2])
def test_windows_are_the_batches_of_the_order(splits, parts):
    feed = Streamed(splits, meshes.make(MESH), parts, eval_batch_size=4)
    order, epoch = splits["train"].order(5), 5
    found = list(feed.windows(epoch, CUTS))
    assert len(found) == len(CUTS) == 3
    for cut, arrays in zip(CUTS, found, strict=True):
        window, size = arrays["train"], cut.batch.size // parts
        for start in range(cut.example, cut.example + cut.steps * cut.batch.size, size):
            images, labels = jax.jit(type(window).batch)(window, start)
            expected = everything(splits["train"], order[start : start + size], epoch)
            np.testing.assert_array_equal(images, expected[0])
            np.testing.assert_array_equal(labels, expected[1])
        same = jax.tree.map(
            lambda made, shape: (
                (made.shape, made.dtype, made.sharding)
                == (shape.shape, shape.dtype, shape.sharding)
            ),
            arrays,
            feed.abstract(cut),
        )
        assert all(jax.tree.leaves(same))
    assert feed.waited > 0
    feed.close()


@pytest.mark.parametrize("parts", [1, 2])
def test_two_hosts_read_what_one_host_reads(splits, parts):
    """Each its own rows of every batch; the rows of both, side by side, are those of one."""
    order = splits["train"].order(0)
    for cut in CUTS:
        size = cut.batch.size // parts
        rows = np.arange(size)
        one = everything(splits["train"], order[positions(cut, parts, rows)].ravel(), 0)[0]
        hosts = []
        for half in np.split(rows, 2):
            mine = order[positions(cut, parts, half)]
            images, _ = everything(splits["train"], mine.ravel(), 0)
            hosts.append(images.reshape(*mine.shape, *images.shape[1:]))
        together = np.concatenate(hosts, axis=1)
        np.testing.assert_array_equal(together.reshape(one.shape), one)


def test_a_split_is_measured_in_batches_of_one_shape(splits):
    feed = Streamed(splits, meshes.make(MESH), 1, eval_batch_size=4)
    found = list(feed.held_out("test"))
    assert {part.images.shape[0] for part in found} == {4}
    counted = np.concatenate([part.counted for part in found])
    assert counted.tolist() == [True] * large_sets.TEST + [False] * 2
    images = np.concatenate([part.images for part in found])[counted]
    expected = everything(splits["test"], np.arange(large_sets.TEST), 0)
    np.testing.assert_array_equal(images, expected[0])
    labels = np.concatenate([part.labels for part in found])[counted]
    np.testing.assert_array_equal(labels, expected[1])


def test_a_feed_reads_one_stream_at_a_time(splits):
    """What was not read to its end is closed when another is begun: after a stop, say."""
    feed = Streamed(splits, meshes.make(MESH), 1, eval_batch_size=4)
    unfinished = feed.windows(0, CUTS)
    next(unfinished)
    assert len(list(feed.held_out("test"))) == 3
    assert list(unfinished) == []
    feed.close()


def test_what_is_on_the_devices_is_given_as_it_is():
    arrays = {"train": (np.arange(6), np.arange(3)), "test": np.arange(2)}
    feed = feeds.of(SimpleNamespace(splits=arrays), meshes.make(MESH))
    assert isinstance(feed, Resident) and feed.waited is None and feed.bytes_per_example == 0
    (first, second) = feed.windows(0, CUTS[:2])
    assert jax.tree.all(jax.tree.map(lambda mine, theirs: mine is theirs, first, second))
    np.testing.assert_array_equal(first["train"][0], np.arange(6))
    (test,) = feed.held_out("test")
    np.testing.assert_array_equal(test, np.arange(2))


def test_windows_on_eight_devices(folder):
    script = Path(__file__).with_name("feed_checks.py")
    found = printed_by(script, str(folder), imports=(ROOT, script.parent), optimized=False)
    assert found["images_are_those_of_the_order"]
    assert found["of_a_device"] == [2, 2]  # Of two batches of 16 on four by two devices.
    assert found["held_out_of_a_device"] == 1
    # A step takes its batch without any image changing its device.
    assert found["sent"] == []
