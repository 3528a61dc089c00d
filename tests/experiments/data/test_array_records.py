"""Records of a prepared TFDS folder at random, and what is wrong with damaged and other folders."""

import json
import pickle
import resource
from pathlib import Path

import large_sets
import pytest

from experiments.data import DataCorrupt, array_records, tfds_folder
from experiments.data.array_records import ArrayRecords
from experiments.errors import RunError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return large_sets.write(tmp_path / "prepared", train=12, test=4)


def change(folder: Path, **fields: object) -> None:
    info = folder / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | fields))


def in_two_shards(folder: Path) -> None:
    """The training split anew, the first five examples in a shard of their own."""
    from array_record.python.array_record_module import ArrayRecordWriter

    records = list(ArrayRecords.find(folder, "train"))
    next(folder.glob("*-train.*")).unlink()
    for number, part in enumerate((records[:5], records[5:])):
        path = folder / f"imagenet2012-train.array_record-{number:05}-of-00002"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for record in part:
            writer.write(record)
        writer.close()
    splits = json.loads((folder / "dataset_info.json").read_text())["splits"]
    for split in splits:
        if split["name"] == "train":
            split["shardLengths"] = ["5", str(len(records) - 5)]
    change(folder, splits=splits)


def test_any_record_of_any_shard_in_any_process(folder):
    in_two_shards(folder)
    # Read from the beginning, by a reader of its own.
    stored = tfds_folder.read_first(
        folder, "imagenet2012", "train", 12, lambda found: found["file_name"].bytes_list.value[0]
    )
    records = ArrayRecords.find(folder, "train")
    assert len(records) == 12 and records.lengths == (5, 7)
    for number in (11, 4, 5, 0):
        assert stored[number] in records[number]
    assert records.place(4).endswith("train.array_record-00000-of-00002, record 4")
    assert records.place(5).endswith("train.array_record-00001-of-00002, record 0")
    sent = pickle.loads(pickle.dumps(records))
    assert sent == records and sent[7] == records[7]


def test_a_missing_shard(folder):
    in_two_shards(folder)
    (folder / "imagenet2012-train.array_record-00001-of-00002").unlink()
    with pytest.raises(DataCorrupt, match=r"00001-of-00002: not there, and with it 1 of 2 shards"):
        ArrayRecords.find(folder, "train")
    assert len(ArrayRecords.find(folder, "validation")) == 4


def test_tfrecord_folders_cannot_be_read_in_any_order(folder):
    change(folder, fileFormat="tfrecord")
    with pytest.raises(RunError, match=r"prepared as tfrecord.*tfds convert_format.*=array_record"):
        ArrayRecords.find(folder, "train")
    change(folder, alternativeFileFormats=["array_record"])  # As converting in place leaves it.
    assert len(ArrayRecords.find(folder, "train")) == 12


def test_a_missing_split_and_a_damaged_description(folder):
    with pytest.raises(DataCorrupt, match=r"no split 'test', but train, validation"):
        ArrayRecords.find(folder, "test")
    change(folder, splits="none")
    with pytest.raises(DataCorrupt, match=r"dataset_info.json: not understood"):
        ArrayRecords.find(folder, "train")


def test_a_damaged_record_is_named(folder):
    (path,) = folder.glob("*-train.*")
    content = path.read_bytes()
    path.write_bytes(content[:5000] + bytes(200) + content[5200:])
    records = ArrayRecords.find(folder, "train")
    damaged = 0
    for number in range(12):
        try:
            records[number]
        except DataCorrupt as error:
            damaged += 1
            assert str(error).startswith(f"{path}, record {number}: cannot be read")
    assert 1 <= damaged <= 3  # Of about 1000 bytes each.
    path.write_bytes(content[:6000])  # As a copy that was broken off leaves it.
    with pytest.raises(DataCorrupt, match=rf"{path}, record 11: cannot be read"):
        ArrayRecords.find(folder, "train")[11]


def test_as_many_files_may_be_open_as_there_are_shards():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        array_records._allow_open_files(500)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(500, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
