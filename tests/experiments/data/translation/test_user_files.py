"""The user's own six files."""

import parallel_files
import pytest

from experiments.data import DataCorrupt, DataUnavailable
from experiments.data.catalog import translation_set
from experiments.data.lookup import find

LINES = {
    f"{split}.{language}": [f"{split} {language} {i}".encode() for i in range(3)]
    for split in ("train", "valid", "test")
    for language in ("de", "en")
}


def load():
    return find(translation_set("files"))


def test_line_by_line(data_dir):
    parallel_files.write_user_files(data_dir, LINES)
    # Windows' line ends, and a last line that has none
    (data_dir / "valid.de").write_bytes(b"valid de 0\r\nvalid de 1\r\nvalid de 2")
    assert load().splits == {
        split: tuple((f"{name} de {i}".encode(), f"{name} en {i}".encode()) for i in range(3))
        for split, name in (("train", "train"), ("validation", "valid"), ("test", "test"))
    }


def test_changed_files_are_read_again(data_dir):
    parallel_files.write_user_files(data_dir, LINES)
    first = load()
    assert load() == first
    parallel_files.write_user_files(data_dir, {"test.en": [b"a", b"b", b"c"]})
    second = load()
    assert [target for _, target in second.splits["test"]] == [b"a", b"b", b"c"]
    assert second.fingerprint != first.fingerprint


def test_different_numbers_of_lines_are_refused(data_dir):
    parallel_files.write_user_files(data_dir, LINES | {"valid.en": [b"one", b"two"]})
    message = rf"{data_dir}/valid.de has 3 lines and {data_dir}/valid.en 2: line by line"
    with pytest.raises(DataCorrupt, match=message):
        load()


def test_an_empty_file_is_refused(data_dir):
    parallel_files.write_user_files(data_dir, LINES | {"test.de": [], "test.en": []})
    with pytest.raises(DataCorrupt, match="test split: 0 source and 0 target lines"):
        load()


def test_a_missing_file_is_named_and_nothing_is_downloaded(data_dir):
    parallel_files.write_user_files(data_dir, {"train.de": [b"a"]})
    with pytest.raises(DataUnavailable) as error:
        load()
    text = str(error.value)
    assert f"put train.de, train.en, valid.de, valid.en, test.de, test.en into {data_dir}" in text
    assert "download " not in text and "internet" not in text
