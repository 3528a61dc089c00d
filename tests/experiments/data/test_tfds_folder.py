"""Prepared TFDS folders, written by TFDS itself: order, formats, damage. No TensorFlow."""

import io
import json
import struct
import sys

import numpy as np
import prepared_tfds
import pytest

from experiments.data import DataCorrupt, load, tfds_folder
from experiments.data.fingerprint import fingerprint
from experiments.errors import RunError

pytest.importorskip("tensorflow_datasets")


def png(image):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    buffer.seek(0)
    return buffer


def prepare(name, folder, arrays, with_id):
    """Has TFDS prepare `arrays` as the builder of that name does; PNGs are given encoded."""
    train_images, train_labels, test_images, test_labels = arrays

    def features(types):
        image = types.Image(shape=train_images.shape[1:])
        of_all = {"image": image, "label": types.ClassLabel(num_classes=100)}
        return of_all | ({"id": types.Text()} if with_id else {})

    def example(split, index, image, label):
        record = {"image": png(image), "label": int(label)}
        return record | ({"id": f"{split}_{index:05d}"} if with_id else {})

    splits = {
        split: [example(split, i, *row) for i, row in enumerate(zip(*arrays, strict=True))]
        for split, arrays in (
            ("train", (train_images, train_labels)),
            ("test", (test_images, test_labels)),
        )
    }
    return prepared_tfds.prepare(folder, name, "3.0.2", features, splits)


def as_tfrecord(prepared):
    """Rewrites the shards as TFRecord files, as TFDS's default format has them."""
    from array_record.python.array_record_module import ArrayRecordReader

    for path in prepared.glob("*.array_record-*"):
        frames = b""
        for record in ArrayRecordReader(str(path)).read_all():
            frames += struct.pack("<QI", len(record), 0) + record + struct.pack("<I", 0)
        path.with_name(path.name.replace("array_record", "tfrecord")).write_bytes(frames)
        path.unlink()
    path = prepared / "dataset_info.json"
    info = json.loads(path.read_text()) | {"fileFormat": "tfrecord"}
    path.write_text(json.dumps(info))


@pytest.fixture
def fashion_folder(tmp_path, fashion_arrays):
    return prepare("fashion_mnist", tmp_path / "tfds", fashion_arrays, with_id=False)


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_arrays_come_back_in_the_original_order(name, file_format, tmp_path, request):
    arrays = request.getfixturevalue(name.removesuffix("_mnist") + "_arrays")
    order = "hash" if name == "fashion_mnist" else "id"
    folder = prepare(name, tmp_path / "tfds", arrays, with_id=order == "id")
    if file_format == "tfrecord":
        as_tfrecord(folder)
    assert tfds_folder.find(tmp_path / "tfds" / name) == folder
    found = tfds_folder.read(folder, name, order)
    for one, other in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(one, other)


def test_tfds_itself_has_another_order(fashion_folder, fashion_arrays):
    # else the test above would prove nothing about restoring it
    from array_record.python.array_record_module import ArrayRecordReader
    from tensorflow_datasets.proto import tf_example_pb2

    (shard,) = fashion_folder.glob("*-train.*")
    labels = [
        tf_example_pb2.Example.FromString(r).features.feature["label"].int64_list.value[0]
        for r in ArrayRecordReader(str(shard)).read_all()
    ]
    assert sorted(labels) == sorted(fashion_arrays[1].tolist())
    assert labels != fashion_arrays[1].tolist()


def test_load_takes_the_folder_and_says_so(fashion_folder, fashion_arrays, register, tmp_path):
    register("fashion_mnist", tmp_path)  # without the genuine fingerprint
    data = load("fashion_mnist", source="tfds", download="never")
    np.testing.assert_array_equal(data.train_images, fashion_arrays[0])
    assert data.origin.startswith("prepared TFDS data") and "3.0.2" in data.origin
    again = load("fashion_mnist", download="never")
    assert again.fingerprint == data.fingerprint
    assert again.origin == data.origin


def test_load_refuses_a_folder_of_something_else(fashion_folder):
    with pytest.raises(DataCorrupt, match="not the data set 'fashion_mnist' in its original order"):
        load("fashion_mnist", source="tfds")


def test_the_newest_complete_version_is_found(tmp_path):
    folder = tmp_path / "cifar10"
    assert tfds_folder.find(folder) is None
    for version in ("3.0.2", "3.0.10", "incomplete.XYZ_3.0.11"):
        (folder / version).mkdir(parents=True)
        (folder / version / "dataset_info.json").touch()
    (folder / "4.0.0").mkdir()
    assert tfds_folder.find(folder) == folder / "3.0.10"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"splits": []}, "not understood"),
        ({"fileFormat": "riegeli"}, "format 'riegeli'; expected array_record or tfrecord"),
        ({"splits": [{"name": n, "shardLengths": ["31"]} for n in ("train", "test")]}, "says 31"),
    ],
)
def test_foreign_or_incomplete_folders_are_refused(change, message, fashion_folder):
    path = fashion_folder / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataCorrupt, match=message):
        tfds_folder.read(fashion_folder, "fashion_mnist", "hash")


@pytest.mark.parametrize("damage", ["truncate", "garble", "remove"])
def test_damaged_shards_are_refused(damage, fashion_folder):
    as_tfrecord(fashion_folder)
    (shard,) = fashion_folder.glob("*-train.*")
    content = shard.read_bytes()
    if damage == "truncate":
        shard.write_bytes(content[:-7])
    elif damage == "garble":
        shard.write_bytes(content[:40] + bytes(60) + content[100:])
    else:
        shard.unlink()
    with pytest.raises(DataCorrupt, match=r"fashion_mnist-train.tfrecord-\*"):
        tfds_folder.read(fashion_folder, "fashion_mnist", "hash")


@pytest.mark.slow
def test_the_genuine_fashion_mnist_through_tfds_has_the_known_fingerprint(
    fashion_package, tmp_path
):
    from experiments.data import catalog, idx

    arrays = idx.read_folder(fashion_package)
    folder = prepare("fashion_mnist", tmp_path / "tfds", arrays, with_id=False)
    images, labels, test_images, test_labels = tfds_folder.read(folder, "fashion_mnist", "hash")
    found = fingerprint(images, labels, test_images, test_labels)
    assert found == catalog.IMAGE_SETS["fashion_mnist"].fingerprint


def test_a_missing_package_is_named(fashion_folder, monkeypatch):
    for module in ("array_record.python", "array_record.python.array_record_module"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RunError, match=r"needs the package 'array_record.*pip install"):
        tfds_folder.read(fashion_folder, "fashion_mnist", "hash")
