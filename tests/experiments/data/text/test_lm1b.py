"""The One Billion Word benchmark, from a folder that TFDS prepared."""

import hashlib

import pytest
from prepared_tfds import prepare

from experiments.data import DataCorrupt, DataUnavailable
from experiments.data.catalog import text_set
from experiments.data.labelled_text import load_labelled_text
from experiments.data.lookup import find
from experiments.data.text import lm1b
from experiments.errors import RunError

SPLITS = {split: [f"{split} sentence {i} ." for i in range(n)] for split, n in
          (("train", 450), ("test", 40))}  # fmt: skip


@pytest.fixture
def prepared(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    splits = {split: [{"text": text} for text in texts] for split, texts in SPLITS.items()}
    return prepare(tmp_path / "tfds", "lm1b", "1.1.0", lambda types: {"text": types.Text()}, splits)


def stored(split):
    """The order in which TFDS stores what its builder names 0, 1, 2, ..."""
    texts = SPLITS[split]
    order = sorted(range(len(texts)), key=lambda i: hashlib.md5(f"{split}{i}".encode()).digest())
    return [texts[i].encode() for i in order]


def test_the_first_sentences_and_every_hundredth_for_validation(prepared, monkeypatch):
    monkeypatch.setattr(lm1b, "TRAINING_SENTENCES", 420)
    monkeypatch.setattr(lm1b, "_TEST_SENTENCES", 30)
    text = find(text_set("lm1b"), download="never")
    training = stored("train")[:420]
    found = {split: documents[0].paragraphs for split, documents in text.splits.items()}
    assert found["validation"] == tuple(training[i] for i in (99, 199, 299, 399))
    assert found["train"] == tuple(s for i, s in enumerate(training) if i % 100 != 99)
    assert found["test"] == tuple(stored("test")[:30])
    assert {len(documents) for documents in text.splits.values()} == {1}
    assert text.origin.startswith("the first 1000000 training sentences of prepared TFDS data ")
    assert text.origin.endswith("lm1b/1.1.0")


def test_all_of_a_small_folder(prepared):
    text = find(text_set("lm1b"), source="tfds")
    assert sum(len(d.paragraphs) for ds in text.splits.values() for d in ds) == 490
    assert find(text_set("lm1b"), download="never").fingerprint == text.fingerprint  # cached


def test_a_missing_shard_is_an_error(prepared):
    next(prepared.glob("*-test.*")).unlink()
    with pytest.raises(DataCorrupt, match=r"lm1b-test.array_record-.*: 0 examples, .* says 40"):
        find(text_set("lm1b"))


def test_there_is_nothing_to_classify():
    with pytest.raises(RunError, match="'lm1b' has no labels, so there is nothing to classify"):
        load_labelled_text("lm1b", vocabulary=300, max_length=32)


@pytest.mark.parametrize("source", ["auto", "files"])
def test_nothing_is_downloaded(source, tmp_path):
    with pytest.raises(DataUnavailable) as error:
        find(text_set("lm1b"), source=source)
    assert str(error.value) == "\n".join(
        (
            "dataset 'lm1b' is not on this machine and cannot be fetched.",
            "  Looked for:",
            f"    prepared TFDS data    {tmp_path}/tfds/lm1b/*  (array_record or tfrecord): "
            + ("not tried (data.source=files)" if source == "files" else "not there"),
            "  What to do (any one):",
            "    1. on a machine with internet and TensorFlow: tfds build lm1b "
            "--file_format=array_record   (1709 MB), then copy its folder here",
            "    2. or choose data that needs no download: --config.data.name=pydoc (results are "
            "then NOT comparable with lm1b)",
        )
    )
