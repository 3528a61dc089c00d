"""Where `load` looks, in which order, and what it says when there is nothing."""

import errno
import os
import re
import threading

import fabricated
import numpy as np
import pytest
import requests

from experiments.data import DataCorrupt, DataUnavailable, cache, load, names
from experiments.errors import RunError

CIFAR10_TEXT = """\
dataset 'cifar10' is not on this machine and cannot be fetched.
  Looked for:
    prepared TFDS data    ~/tensorflow_datasets/cifar10/*  (array_record or tfrecord): not there
    original files        ~/.cache/lowrank_jax/{cifar-10-binary.tar.gz, cifar-10-python.tar.gz}: \
not there (nor in ~/tensorflow_datasets/downloads/manual)
    download              https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz: DOWNLOAD
  What to do (any one):
    1. on a machine with internet: python -m experiments.data fetch cifar10   (162 MB), \
then copy ~/.cache/lowrank_jax here
    2. or put cifar-10-binary.tar.gz into ~/.cache/lowrank_jax   \
[sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd]
    3. or put cifar-10-python.tar.gz into ~/.cache/lowrank_jax   \
[md5:c58f30108f718f92721af3b95e74349a]
    4. or choose data that needs no download: --config.data.name=fashion_mnist | digits \
(results are then NOT comparable with cifar10)"""


def test_names():
    images = ("fashion_small", "digits", "fashion_mnist", "cifar10", "cifar100", "tiny_imagenet")
    translation = ("numwords", "lohelp", "iwslt14_de_en", "ted_de_en", "files")
    large = ("imagenet2012", "imagenette")
    assert names() == (*images, *large, *translation, "pydoc", "pgdoc", "lm1b")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LOWRANK_JAX_DATA_DIR")
    monkeypatch.delenv("TFDS_DATA_DIR")
    return tmp_path


def test_nothing_there_and_no_network(home):
    with pytest.raises(DataUnavailable) as error:
        load("cifar10")
    found = re.sub(r"after \d\.\d s", "after T s", str(error.value))
    # the fixture's refusal has no further reason inside
    assert found == CIFAR10_TEXT.replace("DOWNLOAD", "ConnectionError: no connection after T s")
    assert list(home.iterdir()) == []


def test_the_innermost_reason_is_named(monkeypatch):
    from urllib3.exceptions import MaxRetryError, NameResolutionError

    def refuse(*_, **__):
        reason = NameResolutionError("host", None, OSError())
        raise requests.ConnectionError(MaxRetryError(None, "url", reason))

    monkeypatch.setattr(requests.Session, "request", refuse)
    with pytest.raises(
        DataUnavailable, match=r"gz: NameResolutionError: no connection after \d\.\d s"
    ):
        load("cifar100")


def test_a_network_that_swallows_packets_is_given_up(monkeypatch):
    from experiments.data import download

    assert download.REACH_SECONDS <= 5.0  # the promise is six seconds in all
    release = threading.Event()
    monkeypatch.setattr(requests.Session, "request", lambda *_, **__: release.wait(60))
    monkeypatch.setattr(download, "REACH_SECONDS", 0.2)
    with pytest.raises(DataUnavailable, match=r"gz: Timeout: no connection after 0.2 s"):
        load("cifar10")
    release.set()


def test_download_never_is_not_tried(home, monkeypatch):
    asked = []
    monkeypatch.setattr(requests.Session, "request", lambda *_, **__: asked.append(1))
    with pytest.raises(DataUnavailable) as error:
        load("cifar10", download="never")
    expected = CIFAR10_TEXT.replace("DOWNLOAD", "not tried (data.download=never)")
    assert str(error.value) == expected
    assert not asked


def test_fashion_mnist_advises_the_package_first():
    with pytest.raises(DataUnavailable) as error:
        load("fashion_mnist", download="never")
    assert "  1. apt-get install dataset-fashion-mnist\n" in str(error.value)
    assert "fashion_small | digits" in str(error.value)


def test_source_tfds_tries_nothing_else(home, cifar10_arrays, register):
    archives = home / ".cache" / "lowrank_jax"
    fabricated.write_cifar10_binary(archives / "cifar-10-binary.tar.gz", cifar10_arrays)
    register("cifar10", archives)
    with pytest.raises(DataUnavailable) as error:
        load("cifar10", source="tfds")
    assert str(error.value).count("not tried (data.source=tfds)") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifar11"}, "unknown data set 'cifar11' .did you mean 'cifar10'.*choose one of"),
        ({"name": "zebra"}, "unknown data set 'zebra': choose one of fashion_small, digits"),
        ({"name": "numwords"}, "data set 'numwords' is for another task: choose one of fashion_sm"),
        ({"name": "digits", "source": "web"}, "data.source='web': choose one of auto, tfds"),
        ({"name": "digits", "download": "yes"}, "data.download='yes': choose one of auto, never"),
        ({"name": "digits", "source": "files"}, "'digits' is embedded; data.source=files"),
        ({"name": "cifar10", "source": "embedded"}, "'cifar10' is not embedded"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message):
    with pytest.raises(RunError, match=message) as error:
        load(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("version", ["binary", "python"])
def test_either_archive_gives_the_same_data(version, data_dir, cifar10_arrays, register):
    write = {
        "binary": fabricated.write_cifar10_binary,
        "python": fabricated.write_cifar10_python,
    }[version]
    write(data_dir / f"cifar-10-{version}.tar.gz", cifar10_arrays)
    register("cifar10", data_dir)
    data = load("cifar10", download="never")
    for found, expected in zip(
        (data.train_images, data.train_labels, data.test_images, data.test_labels),
        cifar10_arrays,
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)
    assert data.train_labels.dtype == np.int32
    assert data.origin == f"original files in {data_dir}"
    # the cache is now enough, and says where the data was from
    (data_dir / f"cifar-10-{version}.tar.gz").unlink()
    again = load("cifar10", download="never")
    assert (again.fingerprint, again.origin) == (data.fingerprint, data.origin)
    np.testing.assert_array_equal(again.train_images, data.train_images)
    with pytest.raises(DataUnavailable):
        load("cifar10", source="files", download="never")


@pytest.mark.parametrize("place", ["argument", "manual", "system"])
def test_other_folders_of_original_files(place, tmp_path, fashion_arrays, register):
    folder = {
        "argument": tmp_path / "mine" / "fashion_mnist",
        "manual": tmp_path / "tfds" / "downloads" / "manual" / "fashion_mnist",
        "system": tmp_path / "system" / "fashion_mnist",
    }[place]
    fabricated.write_idx_folder(folder, fashion_arrays)
    register("fashion_mnist", folder)
    argument = str(tmp_path / "mine") if place == "argument" else None
    data = load("fashion_mnist", download="never", dir=argument)
    np.testing.assert_array_equal(data.train_images, fashion_arrays[0])


@pytest.mark.parametrize("download", ["auto", "never"])
def test_a_wrong_checksum_is_an_error_and_not_passed_over(download, data_dir, cifar10_arrays):
    # The second archive would be right; it must not be tried.
    fabricated.write_cifar10_binary(data_dir / "cifar-10-binary.tar.gz", cifar10_arrays)
    fabricated.write_cifar10_python(data_dir / "cifar-10-python.tar.gz", cifar10_arrays)
    with pytest.raises(DataCorrupt, match=r"binary.tar.gz: wrong checksum: the sha256 .*c4a38c50"):
        load("cifar10", download=download)


def test_the_checksum_of_fashion_mnist_is_of_the_content(data_dir, fashion_package):
    import gzip
    import shutil

    folder = data_dir / "fashion_mnist"
    shutil.copytree(fashion_package, folder)
    labels = folder / "train-labels-idx1-ubyte.gz"
    content = gzip.decompress(labels.read_bytes())
    labels.write_bytes(gzip.compress(content, 1))  # other bytes, the same content
    data = load("fashion_mnist", download="never")
    assert data.train_images.shape == (60000, 28, 28, 1)
    labels.write_bytes(gzip.compress(content[:-1] + b"\0"))
    with pytest.raises(DataCorrupt, match="wrong checksum: the sha256 of the content"):
        load("fashion_mnist", source="files")
    labels.write_bytes(b"damaged")
    with pytest.raises(DataCorrupt, match="cannot be read"):
        load("fashion_mnist", source="files")


def test_a_cache_from_another_machine_is_used(data_dir, cifar10_arrays, register, tmp_path):
    fabricated.write_cifar10_binary(tmp_path / "cifar-10-binary.tar.gz", cifar10_arrays)
    register("cifar10", tmp_path)
    data = load("cifar10", dir=str(tmp_path))
    data_dir.mkdir()
    os.rename(tmp_path / "cifar10", data_dir / "cifar10")
    assert load("cifar10").fingerprint == data.fingerprint


def cached(data_dir, cifar10_arrays, register):
    fabricated.write_cifar10_binary(data_dir / "cifar-10-binary.tar.gz", cifar10_arrays)
    register("cifar10", data_dir)
    return load("cifar10")


@pytest.mark.parametrize("damage", ["flip a bit", "truncate", "remove", "garble the mark"])
def test_a_damaged_cache_is_refused(damage, data_dir, cifar10_arrays, register):
    cached(data_dir, cifar10_arrays, register)
    folder = data_dir / "cifar10"
    path = folder / "test_images.npy"
    content = bytearray(path.read_bytes())
    if damage == "flip a bit":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:1000])
    elif damage == "remove":
        path.unlink()
    else:
        (folder / "fingerprint.json").write_text("{}")
    with pytest.raises(DataCorrupt, match=f"{folder}: damaged cache.*delete this folder"):
        load("cifar10")


def test_an_interrupted_cache_does_not_exist(data_dir, cifar10_arrays, register, monkeypatch):
    cached(data_dir, cifar10_arrays, register)
    folder = data_dir / "cifar10"
    data = load("cifar10")
    calls = []

    def replace(*paths):
        calls.append(paths)
        if len(calls) == 3:
            raise KeyboardInterrupt
        os.rename(*paths)

    monkeypatch.setattr(cache.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        cache.write(folder, dict(enumerate(data.arrays)), cache.Mark(data.fingerprint, "", {}))
    assert not cache.exists(folder)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_full_disk_is_one_line(data_dir, cifar10_arrays, register, monkeypatch):
    fabricated.write_cifar10_binary(data_dir / "cifar-10-binary.tar.gz", cifar10_arrays)
    register("cifar10", data_dir)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(RunError, match=r"cannot write the data cache .No space left") as error:
        load("cifar10")
    assert "\n" not in str(error.value)
    assert not cache.exists(data_dir / "cifar10")


def test_a_folder_that_may_not_be_written_is_no_obstacle(
    data_dir, cifar10_arrays, register, monkeypatch, capsys
):
    fabricated.write_cifar10_binary(data_dir / "cifar-10-binary.tar.gz", cifar10_arrays)
    register("cifar10", data_dir)

    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(cache.tempfile, "mkstemp", forbidden)
    assert len(load("cifar10").train_images) == len(cifar10_arrays[0])
    assert "data not cached (Permission denied)" in capsys.readouterr().err
