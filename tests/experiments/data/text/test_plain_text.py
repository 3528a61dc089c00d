"""Documents: packed and unpacked, and held out as wholes."""

import hashlib
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.data.raw_text import SPLITS
from experiments.data.text.plain_text import (
    Document,
    PlainText,
    pack,
    packed,
    split_by_document,
    unpacked,
)

NAMES = st.text(st.characters(codec="utf-8"), max_size=8)
PARAGRAPHS = st.lists(st.binary(max_size=20), max_size=5).map(tuple)
DOCUMENTS = st.lists(st.builds(Document, NAMES, NAMES, PARAGRAPHS), max_size=6)


def by_hash(names):
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())


@given(DOCUMENTS)
def test_what_is_packed_comes_back_with_single_spaces(documents):
    expected = [
        Document(
            " ".join(document.name.split()),
            " ".join(document.label.split()),
            tuple(b" ".join(text.split()) for text in document.paragraphs if text.split()),
        )
        for document in documents
    ]
    array = packed(documents)
    assert unpacked(array) == expected
    np.testing.assert_array_equal(packed(expected), array)


def test_names_that_are_no_utf8_come_back():
    name = b"caf\xe9.txt".decode(errors="surrogateescape")
    assert unpacked(packed([Document(name, "", (b"\xff",))])) == [Document(name, "", (b"\xff",))]


def test_text_without_a_document_is_refused():
    arrays = [np.frombuffer(b"a paragraph\n", np.uint8)] * 3
    with pytest.raises(ValueError, match="begins with a paragraph, expected a document's name"):
        PlainText.from_arrays("name", "origin", *arrays)


def test_the_fingerprint_tells_documents_labels_splits_and_order_apart():
    one, two = Document("one", "x", (b"a", b"b")), Document("two", "y", (b"c",))
    texts = (
        {"train": [one, two]},
        {"train": [two, one]},
        {"train": [one], "test": [two]},
        {"train": [one, Document("two", "x", (b"c",))]},
        {"train": [one, Document("three", "y", (b"c",))]},
        {"train": [Document("one", "x", (b"a b",)), two]},
        {"train": [Document("one", "x", (b"a", b"b", b"c"))]},
    )
    empty = dict.fromkeys(SPLITS, ())
    prints = {PlainText.from_arrays("n", "o", *pack(empty | t)).fingerprint for t in texts}
    assert len(prints) == len(texts)


def test_equal_documents_are_dealt_out_in_the_order_of_their_hashes():
    names = [f"page {i}" for i in range(40)]
    splits = split_by_document(Document(name, "", (b"x" * 100,)) for name in names)
    order = by_hash(names)
    assert [document.name for document in splits["test"]] == sorted(order[0:8:2])
    assert [document.name for document in splits["validation"]] == sorted(order[1:8:2])
    assert [document.name for document in splits["train"]] == sorted(order[8:])


def test_a_document_that_is_too_large_to_be_held_out_is_passed_over():
    names = by_hash(f"page {i}" for i in range(20))
    sizes = [500, 40, 30, 300, 30, 40, *[10] * 14]  # a tenth is 108
    documents = [
        Document(name, "", (b"x" * size,)) for name, size in zip(names, sizes, strict=True)
    ]
    splits = split_by_document(documents)
    # Sums of test: 40, 80, 90, 100. Of validation: 30, 60, 70, 80, 90, 100.
    expected = {"test": (1, 5, 8, 10), "validation": (2, 4, 6, 7, 9, 11)}
    for split, places in expected.items():
        assert {document.name for document in splits[split]} == {names[i] for i in places}


@pytest.mark.parametrize("sizes", [(5, 5, 5), (1000, 2, 3), (1, 1000, 1000, 7)])
def test_three_documents_of_a_label_are_enough_for_every_split(sizes):
    documents = [Document(f"d{i}", "label", (b"x" * size,)) for i, size in enumerate(sizes)]
    splits = split_by_document(documents)
    assert [len(splits[split]) for split in ("validation", "test")] == [1, 1]
    smallest = sorted(sizes)[:2]
    assert sorted(d.size for s in ("validation", "test") for d in splits[s]) == smallest


def test_labels_of_one_and_two_documents_are_split_as_if_they_were_one():
    labels = ("a", "a", "b", "c", "c", "d")
    rare = [Document(f"{i}", label, (b"x" * 50,)) for i, label in enumerate(labels)]
    common = [Document(f"common {i}", "e", (b"x" * 50,)) for i in range(10)]
    splits = split_by_document([*rare, *common])
    without_label = [Document(document.name, "", document.paragraphs) for document in rare]
    expected = split_by_document(without_label)
    for split in SPLITS:
        found = {document.name for document in splits[split] if document.label != "e"}
        assert found == {document.name for document in expected[split]}
        assert len(splits[split]) > len(found)
    assert [len(split_by_document(rare[:2])[split]) for split in SPLITS] == [2, 0, 0]


SIZED = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 300)), min_size=1, max_size=40
).map(
    lambda pairs: [
        Document(f"page {i}", label, (b"x" * size,) if size else ())
        for i, (label, size) in enumerate(pairs)
    ]
)


@settings(max_examples=60, deadline=None)
@given(SIZED, st.randoms(use_true_random=False))
def test_splits_are_of_whole_documents_and_do_not_depend_on_their_order(documents, rng):
    splits = split_by_document(documents)
    everything = [document for split in SPLITS for document in splits[split]]
    assert sorted(everything, key=repr) == sorted(documents, key=repr)
    shuffled = random.Random(rng.random()).sample(documents, len(documents))
    assert split_by_document(shuffled) == splits
    for label in "abc":
        sizes = [document.size for document in documents if document.label == label]
        if sum(map(bool, sizes)) < 3:
            continue
        for split in ("validation", "test"):
            held_out = [d.size for d in splits[split] if d.label == label]
            assert held_out and all(held_out)
            # about a tenth: below it, or a single document
            assert sum(held_out) <= sum(sizes) / 10 or len(held_out) == 1


def test_another_label_changes_nothing():
    documents = [Document(f"page {i}", "a", (b"x" * (i + 1),)) for i in range(30)]
    others = [Document(f"other {i}", "b", (b"y" * 10,)) for i in range(7)]
    alone, together = split_by_document(documents), split_by_document([*others, *documents])
    for split in SPLITS:
        assert [d for d in together[split] if d.label == "a"] == alone[split]
