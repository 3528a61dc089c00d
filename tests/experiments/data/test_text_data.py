"""Blocks of token ids: against a stream in plain Python, text of every unpleasant kind, counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.data import DataCorrupt, DataUnavailable, text_data
from experiments.data.catalog import text_set
from experiments.data.decoded_text import decode
from experiments.data.lookup import find
from experiments.data.text.plain_text import Document, PlainText, pack
from experiments.data.text_data import encode, load_text
from experiments.data.vocabulary import MASK_PIECE, Vocabulary
from experiments.errors import RunError
from experiments.special_tokens import BOS, EOS, MASK, PAD

SIZE = 400
BAD = b"caf\xe9 au lait"
SPLITS = ("train", "validation", "test")
WORDS = b"the quick brown fox jumps over the lazy dog and then it sleeps for a long while".split()
TRAIN = [b" ".join(WORDS[i % 7 :][: 3 + i % 11]) for i in range(60)]


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.train([t.decode() for t in TRAIN], 300, control_pieces=(MASK_PIECE,))


def text(train=TRAIN, validation=(b"a dog",), test=(b"a fox",)):
    """Paragraphs of one document a split, or lists of paragraphs of several documents."""

    def documents(paragraphs):
        several = paragraphs and not isinstance(paragraphs[0], bytes)
        return [
            Document(f"{i}", "", tuple(p))
            for i, p in enumerate(paragraphs if several else [paragraphs])
        ]

    splits = dict(zip(SPLITS, map(documents, (train, validation, test)), strict=True))
    return decode(PlainText.from_arrays("name", "origin", *pack(splits)))


def rows_of(vocabulary, paragraphs, block_length):
    """The rows as the issue states them, in plain Python."""
    stream = []
    for paragraph in paragraphs:
        stream += [*vocabulary.encode([paragraph])[0], EOS]
    rows = []
    while stream:
        row, stream = [BOS, *stream[: block_length - 1]], stream[block_length - 1 :]
        rows.append(row + [PAD] * (block_length - len(row)))
    return rows


PARAGRAPHS = st.lists(
    st.text("ab <mask>\u00e9", min_size=1).map(lambda t: " ".join(t.split())).filter(bool),
    min_size=1,
    max_size=9,
)


@settings(max_examples=40, deadline=None)
@given(PARAGRAPHS, st.integers(2, 20), st.integers(1, 4))
def test_rows_are_cut_from_the_stream_of_paragraphs(vocabulary, paragraphs, block_length, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_data, "_AT_ONCE", at_once)
        found = encode(text(test=[p.encode() for p in paragraphs]), vocabulary, block_length)
    rows = found.splits["test"]
    assert rows.dtype == np.int32 and found.vocabulary is vocabulary
    assert rows.tolist() == rows_of(vocabulary, paragraphs, block_length)
    assert not (rows == MASK).any()
    assert found.counts["padded_blocks"] == sum(
        bool(r[-1, -1] == PAD) for r in found.splits.values()
    )


def test_held_out_paragraphs_that_were_trained_on_are_left_out(vocabulary):
    """Long ones; of names and headings, others are the same by right."""
    sentence = b"the quick brown fox jumps over a dog"
    again = b"The quick brown fox jumps over: a dog!"
    found = encode(
        text(train=(*TRAIN, sentence, b"a dog"), test=(again, b"a dog", b"another fox")),
        vocabulary,
        64,
    )
    assert found.counts["evaluation_duplicate_paragraphs"] == 1
    rows = rows_of(vocabulary, ["a dog", "another fox"], 64)
    assert found.splits["test"].tolist() == rows


def test_real_text_is_all_there():
    data = load_text("pydoc", vocabulary=600, block_length=128)
    raw = find(text_set("pydoc"))
    for split, rows in data.splits.items():
        stream = rows[:, 1:].ravel()
        stream = stream[stream != PAD].tolist()
        ends = [i for i, id in enumerate(stream) if id == EOS]
        texts = [
            data.vocabulary.decode(stream[a + 1 : b])
            for a, b in zip([-1, *ends], ends, strict=False)
        ]
        expected = [p.decode() for document in raw.splits[split] for p in document.paragraphs]
        assert texts == expected
        assert (rows[:, 0] == BOS).all() and (rows[:-1] != PAD).all()
    assert (data.name, data.origin, data.fingerprint) == ("pydoc", "embedded", raw.fingerprint)


def test_a_vocabulary_of_a_size_is_learned_from_the_training_text_and_has_a_mask():
    data = encode(text(test=(b"something quite different",)), SIZE - 100, 16)
    lines = [line.decode() for line in TRAIN]
    expected = Vocabulary.train(lines, SIZE - 100, control_pieces=(MASK_PIECE,))
    assert data.vocabulary.digest == expected.digest


def test_what_a_model_cannot_take_is_counted(vocabulary):
    data = encode(
        text(
            train=[[BAD, *TRAIN[:20]], [], TRAIN[20:], [b" ", b""], [BAD, BAD]],
            validation=[[b"a dog", BAD], []],
            test=[[BAD]],
        ),
        vocabulary,
        16,
    )
    expected = {"empty_documents": 3, "undecodable_paragraphs": 3}
    expected |= {"evaluation_undecodable_paragraphs": 2}
    assert {reason: data.counts[reason] for reason in expected} == expected
    lines = [line.decode() for line in TRAIN]
    assert data.splits["train"].tolist() == rows_of(vocabulary, lines, 16)
    replaced = "caf\ufffd au lait"
    assert data.splits["validation"].tolist() == rows_of(vocabulary, ["a dog", replaced], 16)
    assert data.splits["test"].tolist() == rows_of(vocabulary, [replaced], 16)


def test_text_shorter_than_a_block_is_one_padded_row(vocabulary):
    data = encode(text(), vocabulary, 5000)
    assert [data.splits[split].shape for split in SPLITS] == [(1, 5000)] * 3
    assert data.counts["padded_blocks"] == 3
    row = data.splits["test"][0]
    assert vocabulary.decode(row[1:]) == "a fox"
    assert (row[len(vocabulary.encode(["a fox"])[0]) + 2 :] == PAD).all()


@pytest.mark.parametrize(
    ("change", "block_length", "message"),
    [
        ({}, 1, "block_length=1: a row needs at least 2 ids"),
        ({"validation": ()}, 16, r"'name' \(origin\): the validation split has no text"),
        ({"test": [[], [b" "]]}, 16, "test split has no text; .*'empty_documents': 2"),
        ({"train": (BAD,)}, 16, "train split has no text; .*'undecodable_paragraphs': 1"),
    ],
)
def test_what_leaves_nothing_is_refused(change, block_length, message, vocabulary):
    with pytest.raises(RunError, match=message):
        encode(text(**change), vocabulary, block_length)


def test_a_size_that_does_not_suit_the_text():
    with pytest.raises(RunError, match="the largest possible is"):
        encode(text(), 99_999, 16)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pydocs", "unknown data set 'pydocs' .did you mean 'pydoc'.*: choose one of pydoc, pgdoc"),
        (
            "numwords",
            "'numwords' is for another task: choose one of pydoc, pgdoc, lm1b, files:GLOB",
        ),
        ("files", "'files' is for another task: .* files:GLOB"),
    ],
)
def test_wrong_names_are_one_line(name, message):
    with pytest.raises(DataUnavailable, match=message) as raised:
        load_text(name, vocabulary=SIZE, block_length=16)
    assert "\n" not in str(raised.value)


def test_files_with_such_text(tmp_path):
    contents = {f"{i}.txt": b"\n\n".join(TRAIN[i : i + 20]) for i in range(12)}
    contents |= {"bad.txt": BAD, "empty.txt": b"", "worse.txt": b"\xff\xfe\n\n" + BAD}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    data = load_text(f"files:{tmp_path}/*", vocabulary=300, block_length=32)
    counts = data.counts
    assert counts["empty_documents"] == 1
    assert counts["undecodable_paragraphs"] + counts["evaluation_undecodable_paragraphs"] == 3


def test_a_cache_that_is_no_text_is_refused(data_dir, monkeypatch):
    from experiments.data import cache
    from experiments.data.fingerprint import fingerprint

    array = np.frombuffer(b"a paragraph\n", np.uint8)
    mark = cache.Mark(fingerprint(array, array, array), "origin", {})
    cache.write(data_dir / "pgdoc", dict.fromkeys(SPLITS, array), mark)
    with pytest.raises(DataCorrupt, match="begins with a paragraph"):
        load_text("pgdoc", vocabulary=SIZE, block_length=16)
