"""Paragraphs to be classified: what is left out, that nothing leaks, and how rows are laid out."""

import numpy as np
import pytest

from experiments.data.catalog import text_set
from experiments.data.decoded_text import decode
from experiments.data.labelled_text import encode, load_labelled_text
from experiments.data.lookup import find
from experiments.data.text.plain_text import Document, PlainText, pack
from experiments.data.vocabulary import MASK_PIECE, Vocabulary
from experiments.errors import RunError
from experiments.special_tokens import BOS, EOS, PAD

LABELS = ("news", "poems")
SPLITS = ("train", "validation", "test")
BAD = b"seven words and a caf\xe9 are eight words"


def line(kind, i):
    return f"Paragraph {i} of the {kind} has eight words, this one.".encode()


def text(**more):
    """Ten paragraphs of each label in every split, and documents `(label, *paragraphs)` more."""
    splits = {}
    for number, split in enumerate(SPLITS):
        splits[split] = [
            Document(label, label, tuple(line(label, 100 * number + i) for i in range(10)))
            for label in LABELS
        ]
        for label, *paragraphs in more.get(split, ()):
            splits[split].append(Document("more", label, tuple(paragraphs)))
    return decode(PlainText.from_arrays("name", "origin", *pack(splits)))


def made(max_length=400, **more):
    return encode(text(**more), LABELS, 320, max_length)


def texts(data, split):
    """What the rows of a split say, by label."""
    rows = data.splits[split]
    found = {label: [] for label in LABELS}
    for ids, label in zip(rows.tokens, rows.labels, strict=True):
        found[data.labels[label]].append(data.vocabulary.decode(ids[1:]))
    return found


def test_rows_are_bos_the_paragraph_and_eos():
    data = made(12, test=[("news", b"one two three four five six seven eight")])
    kept = text(test=[("news", b"one two three four five six seven eight")]).splits
    over_long = dict.fromkeys(SPLITS, 0)
    for split in SPLITS:
        expected = []
        for paragraph in kept[split]:
            ids = [BOS, *data.vocabulary.encode([paragraph.text])[0], EOS]
            over_long[split] += len(ids) > 12
            ids = ids if len(ids) <= 12 else [*ids[:11], EOS]
            expected.append(ids + [PAD] * (12 - len(ids)))
        rows = data.splits[split]
        assert rows.tokens.dtype == rows.labels.dtype == np.int32
        assert rows.tokens.tolist() == expected
        assert [LABELS[i] for i in rows.labels] == [paragraph.label for paragraph in kept[split]]
    assert data.counts["over_long_paragraphs"] == over_long["train"] > 0
    evaluation = over_long["validation"] + over_long["test"]
    assert data.counts["evaluation_over_long_paragraphs"] == evaluation > 0


def test_what_is_left_out_is_counted_by_its_first_reason():
    short = b"This has only seven words in it."
    data = made(
        train=[("news", short, line("news", 3), line("news", 3).upper(), BAD), ("", line("x", 0))],
        validation=[("poems", short, BAD, b"PARAGRAPH 5 of the news has eight words: this one!")],
        test=[
            ("poems", line("poems", 3)),  # in training
            ("poems", line("news", 104)),  # in validation, with another label
            ("poems", line("new", 0), line("new", 0)),  # twice
            ("", short, line("x", 1)),
        ],
    )
    expected = {
        "undecodable_paragraphs": 1,
        "unlabelled_paragraphs": 1,
        "short_paragraphs": 1,
        "duplicate_paragraphs": 2,
        "evaluation_undecodable_paragraphs": 1,
        "evaluation_unlabelled_paragraphs": 2,
        "evaluation_short_paragraphs": 1,
        "evaluation_duplicate_paragraphs": 4,
    }
    assert {reason: count for reason, count in data.counts.items() if count} == expected
    assert [len(data.splits[split].labels) for split in SPLITS] == [20, 21, 21]
    assert texts(data, "validation")["poems"][-1] == BAD.decode(errors="replace")
    assert texts(data, "test")["poems"][-1] == line("new", 0).decode()


def test_text_without_a_label_counts_as_seen():
    data = made(train=[("", line("x", 0))], test=[("news", line("x", 0))])
    assert data.counts["evaluation_duplicate_paragraphs"] == 1


def words(ids, vocabulary):
    """A row's text without case and punctuation."""
    return "".join(c if c.isalnum() else " " for c in vocabulary.decode(ids[1:]).lower()).split()


def test_splits_of_real_text_have_no_document_and_no_paragraph_in_common():
    raw = find(text_set("pydoc"))
    names = [{document.name for document in raw.splits[split]} for split in SPLITS]
    assert not names[0] & names[1] and not names[1] & names[2] and not names[0] & names[2]
    data = load_labelled_text("pydoc", vocabulary=600, max_length=5000)
    assert data.labels == tuple(sorted(data.labels)) and len(data.labels) == 6
    label_of = {
        tuple(text.decode().split()): document.label
        for documents in raw.splits.values()
        for document in documents
        for text in document.paragraphs
    }
    seen = set()
    for split in SPLITS:
        rows = data.splits[split]
        assert np.bincount(rows.labels, minlength=6).min() > 0
        for ids, label in zip(rows.tokens, rows.labels, strict=True):
            said = data.vocabulary.decode(ids[1:])
            assert label_of[tuple(said.split())] == data.labels[label]
            assert len(said.split()) >= 8
            key = tuple(words(ids, data.vocabulary))
            assert key not in seen
            seen.add(key)


def test_a_given_vocabulary_is_taken():
    vocabulary = Vocabulary.train(["other text"] * 9, 280, control_pieces=(MASK_PIECE,))
    data = encode(text(), LABELS, vocabulary, 32)
    assert data.vocabulary is vocabulary
    assert made().vocabulary.digest == encode(text(), LABELS, 320, 32).vocabulary.digest


@pytest.mark.parametrize(
    ("labels", "max_length", "message"),
    [
        (LABELS, 2, "max_length=2: a row needs at least 3 ids, with BOS and EOS"),
        (
            (*LABELS, "songs"),
            32,
            "'name' .origin.: the train split has no paragraph of the label 'songs'; a label needs",
        ),
    ],
)
def test_what_leaves_nothing_is_refused(labels, max_length, message):
    with pytest.raises(RunError, match=message):
        encode(text(), labels, 320, max_length)


def write(folder, name, count):
    (folder / name).mkdir(parents=True)
    for i in range(count):
        content = b"\n\n".join(line(name, 9 * i + j) for j in (0, 1))
        (folder / name / f"{i}.txt").write_bytes(content)


def test_files_in_folders(tmp_path):
    write(tmp_path, "poems", 5)
    write(tmp_path, "news", 3)
    data = load_labelled_text(f"files:{tmp_path}/*/*.txt", vocabulary=300, max_length=32)
    assert data.labels == LABELS
    counts = {split: np.bincount(data.splits[split].labels).tolist() for split in SPLITS}
    assert counts == {"train": [2, 6], "validation": [2, 2], "test": [2, 2]}


def test_folders_of_too_few_files_and_no_folders_are_refused(tmp_path):
    write(tmp_path, "poems", 5)
    with pytest.raises(RunError, match="has no labels, so there is nothing to classify"):
        load_labelled_text(f"files:{tmp_path}/*/*.txt", vocabulary=300, max_length=32)
    write(tmp_path, "news", 1)
    with pytest.raises(RunError, match=r"no paragraph of the label 'news'; .* three documents"):
        load_labelled_text(f"files:{tmp_path}/*/*.txt", vocabulary=300, max_length=32)
