"""TED talks: the original archive, and the folder that TFDS prepares from the same rows."""

import archives
import pytest
from prepared_tfds import prepare

from experiments.data import DataCorrupt, DataUnavailable, catalog
from experiments.data.catalog import translation_set
from experiments.data.lookup import find

COMPLETE = {
    split: [(f"{split} Satz {i}", f"{split} sentence {i}") for i in range(count)]
    for split, count in (("train", 9), ("dev", 3), ("test", 4))
}
NULLS = [("", "no German"), ("kein Englisch", "__NULL__"), ("_ _ NULL _ _", "no German"), ("", "")]
TFDS_SPLITS = {"train": "train", "validation": "dev", "test": "test"}


def rows(split):
    """Complete rows with others in between."""
    mixed = list(COMPLETE[split])
    for i, pair in enumerate(NULLS):
        mixed.insert(2 * i, pair)
    return mixed


def table(split):
    lines = ["talk_name\ten\tfr\tde"]
    lines += [f"talk\t{english}\tphrase\t{german}" for german, english in rows(split)]
    return ("\n".join(lines) + "\n").encode()


def expected(split):
    pairs = COMPLETE[TFDS_SPLITS[split]]
    return tuple((german.encode(), english.encode()) for german, english in pairs)


@pytest.fixture
def archive(data_dir, register):
    """Writes the archive and makes it the genuine one."""

    def write(files):
        data_dir.mkdir(exist_ok=True)
        (data_dir / "ted_talks.tar.gz").write_bytes(archives.tar(files, "w:gz"))
        register("ted_de_en", data_dir)

    return write


TABLES = {f"all_talks_{split}.tsv": table(split) for split in COMPLETE}


def test_the_archive(archive):
    archive(TABLES)
    text = find(translation_set("ted_de_en"), download="never")
    assert text.splits == {split: expected(split) for split in TFDS_SPLITS}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"all_talks_dev.tsv": b"talk_name\ten\tfr\n"}, "all_talks_dev.tsv has no columns de and"),
        ({"all_talks_test.tsv": b""}, "all_talks_test.tsv has no columns"),
        ({"all_talks_test.tsv": b"de\ten\n"}, "test split: 0 source and 0 target lines"),
    ],
)
def test_tables_of_something_else_are_refused(change, message, archive):
    archive(TABLES | change)
    with pytest.raises(DataCorrupt, match=message):
        find(translation_set("ted_de_en"), download="never")


def test_a_missing_table_is_named(archive):
    archive({name: TABLES[name] for name in list(TABLES)[:2]})
    with pytest.raises(DataCorrupt, match=r"all_talks_test.tsv is not in the archive"):
        find(translation_set("ted_de_en"), download="never")


def test_a_wrong_checksum_is_refused(data_dir):
    data_dir.mkdir()
    (data_dir / "ted_talks.tar.gz").write_bytes(archives.tar(TABLES, "w:gz"))
    with pytest.raises(DataCorrupt, match="wrong checksum: the sha256 of the file"):
        find(translation_set("ted_de_en"), download="never")


def test_a_folder_that_tfds_prepared_is_the_same_data(archive, tmp_path):
    pytest.importorskip("tensorflow_datasets")

    def features(types):
        languages = types.TranslationVariableLanguages(languages=("de", "en", "fr"))
        return {"translations": languages, "talk_name": types.Text()}

    def example(german, english):
        # as tensorflow_datasets' own builder: what is not translated is left out
        texts = {"de": german, "en": english, "fr": "phrase"}
        there = {k: text for k, text in texts.items() if text and "NULL" not in text}
        return {"translations": there, "talk_name": "talk"}

    splits = {name: [example(*row) for row in rows(split)] for name, split in TFDS_SPLITS.items()}
    prepare(tmp_path / "tfds", "ted_multi_translate", "1.1.0", features, splits)
    text = find(translation_set("ted_de_en"), source="tfds")
    assert text.splits == {split: expected(split) for split in TFDS_SPLITS}
    assert "ted_multi_translate/1.1.0" in text.origin
    archive(TABLES)
    assert find(translation_set("ted_de_en"), source="files").fingerprint == text.fingerprint


def test_without_a_network(tmp_path):
    with pytest.raises(DataUnavailable) as error:
        find(translation_set("ted_de_en"))
    assert f"{tmp_path}/tfds/ted_multi_translate/*  (array_record or tfrecord): not there" in str(
        error.value
    )
    assert catalog.TRANSLATION_SETS["ted_de_en"].provider.releases[0].files[0].url in str(
        error.value
    )
