"""Rows of token ids: lines of every unpleasant kind, what is counted, what identifies the data."""

import numpy as np
import parallel_files
import pytest

from experiments.data import DataCorrupt, DataUnavailable
from experiments.data.translation.parallel_text import ParallelText, pack
from experiments.data.translation_data import encode, load_translation
from experiments.data.vocabulary import Vocabulary
from experiments.errors import RunError
from experiments.special_tokens import EOS, PAD

PAIRS = [(german.encode(), english.encode()) for german, english in parallel_files.lohelp_200()]
SIZE, LENGTH = 600, 40
BAD = b"\xff\xfe nicht UTF-8 \xc3"
LONG = b"Donaudampfschiff " * 60


def text(train=PAIRS[:160], validation=PAIRS[160:180], test=PAIRS[180:]):
    splits = {"train": train, "validation": validation, "test": test}
    return ParallelText.from_arrays("name", "origin", *pack(splits))


def test_rows_are_the_ids_of_the_lines_with_an_end_and_padding():
    data = encode(text(), SIZE, 400)
    for split, pairs in (("train", PAIRS[:160]), ("test", PAIRS[180:])):
        rows = data.splits[split]
        for side, (ids, lengths) in enumerate(
            ((rows.source, rows.source_length), (rows.target, rows.target_length))
        ):
            assert ids.dtype == lengths.dtype == np.int32
            expected = data.vocabulary.encode([pair[side].decode() for pair in pairs])
            assert lengths.tolist() == [len(row) + 1 for row in expected]
            for row, length, want in zip(ids, lengths, expected, strict=True):
                assert row[:length].tolist() == [*want, EOS]
                assert (row[length:] == PAD).all()
        assert rows.source.shape == rows.target.shape == (len(pairs), rows.lengths.max())
        np.testing.assert_array_equal(
            rows.lengths, np.maximum(rows.source_length, rows.target_length)
        )
    assert not any(data.counts.values())


def test_the_vocabulary_is_that_of_the_training_text():
    data = encode(text(), SIZE, LENGTH)
    train = [line.decode() for side in zip(*PAIRS[:160], strict=True) for line in side]
    assert data.vocabulary.digest == Vocabulary.train(train, SIZE).digest
    # nothing of what is scored is in it
    other = encode(text(test=PAIRS[160:180]), SIZE, LENGTH)
    assert other.vocabulary.digest == data.vocabulary.digest
    assert other.fingerprint != data.fingerprint


def test_training_pairs_that_a_model_cannot_take_are_left_out_and_counted():
    bad = [
        (b"", b"a"), (b"a", b"  "), (b"", b""),  # empty: 3
        (BAD, b"a"), (b"a", BAD), (BAD, b""),  # undecodable: 3
        (LONG, b"a"), (b"a", LONG),  # over-long: 2
    ]  # fmt: skip
    data = encode(text(train=[*bad[:4], *PAIRS[:160], *bad[4:]]), SIZE, LENGTH)
    long_of_real = sum(
        max(len(row) + 1 for row in data.vocabulary.encode([a.decode(), b.decode()])) > LENGTH
        for a, b in PAIRS[:160]
    )
    assert (data.counts["empty"], data.counts["undecodable"]) == (3, 3)
    assert data.counts["over_long"] == 2 + long_of_real
    rows = data.splits["train"]
    assert len(rows.source) == 160 - long_of_real
    assert rows.lengths.max() <= LENGTH
    assert rows.lengths.min() > 1
    assert all(data.counts[f"evaluation_{reason}"] == 0 for reason in ("empty", "undecodable"))


def test_every_test_pair_is_kept_and_counted():
    bad = [(b"", b"reference"), (b"source", b""), (BAD, b"reference"), (LONG, b"reference")]
    data = encode(text(test=[*bad, (b"source", LONG), *PAIRS[180:]]), SIZE, 100)
    sources, references = data.texts["test"]
    rows = data.splits["test"]
    assert len(sources) == len(references) == len(rows.source) == 25
    assert data.counts["evaluation_empty"] == 2
    assert data.counts["evaluation_undecodable"] == 1
    assert data.counts["evaluation_over_long"] == 2
    assert sources[2] == "\ufffd\ufffd nicht UTF-8 \ufffd"
    assert references[4] == LONG.decode().strip()  # scored as a whole
    # the row is its beginning, with an end
    whole = data.vocabulary.encode([sources[3]])[0]
    assert rows.source_length[3] == 100
    assert rows.source[3, :100].tolist() == [*whole[:99], EOS]
    assert rows.source_length[0] == rows.target_length[1] == 1
    assert rows.source[0, 0] == EOS


def test_texts_are_in_the_order_of_the_rows():
    data = encode(text(), SIZE, 400)
    for split in ("validation", "test"):
        for lines, ids in zip(data.texts[split], data.splits[split][:2], strict=True):
            assert list(lines) == [data.vocabulary.decode(row) for row in ids]


def test_the_fingerprint_is_of_pairs_in_their_order():
    base = text()
    assert text().fingerprint == base.fingerprint
    swapped = [PAIRS[1], PAIRS[0], *PAIRS[2:160]]
    moved = [(a + b"", b) for a, b in PAIRS[:159]] + [(PAIRS[159][0] + b" ", PAIRS[159][1])]
    sides = [(b, a) for a, b in PAIRS[:160]]
    prints = {text(train=train).fingerprint for train in (swapped, moved, sides, PAIRS[:159])}
    assert len(prints | {base.fingerprint}) == 5


def test_files_of_the_user_with_such_lines(data_dir):
    lines = {}
    for name, pairs in (
        ("train", [*PAIRS[:160], (BAD, b"x"), (b"", b"")]),
        ("valid", PAIRS[160:180]),
        ("test", [*PAIRS[180:], (BAD, b"x")]),
    ):
        for side, language in enumerate(("de", "en")):
            lines[f"{name}.{language}"] = [pair[side] for pair in pairs]
    parallel_files.write_user_files(data_dir, lines)
    data = load_translation("files", vocabulary=SIZE, max_length=400)
    expected = {"undecodable": 1, "empty": 1, "evaluation_undecodable": 1}
    assert {reason: n for reason, n in data.counts.items() if n} == expected
    again = load_translation("files", vocabulary=SIZE, max_length=400)  # from the cache
    assert (again.fingerprint, again.counts) == (data.fingerprint, data.counts)
    assert again.vocabulary.digest == data.vocabulary.digest


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"name": "numword"},
            DataUnavailable,
            "unknown data set 'numword' .did you mean 'numwords'",
        ),
        ({"name": "cifar10"}, DataUnavailable, "'cifar10' is for another task: choose one of numw"),
        ({"name": "numwords", "source": "files"}, DataUnavailable, "'numwords' is embedded"),
        ({"name": "numwords", "source": "web"}, RunError, "data.source='web': choose one of auto"),
    ],
)
def test_wrong_names_are_one_line(arguments, error, message):
    with pytest.raises(error, match=message) as raised:
        load_translation(vocabulary=400, **arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 1}, "max_length=1: a row needs at least 2 ids"),
        ({"max_length": 2}, "max_length=2: every pair of 'name' is longer"),
        ({"vocabulary": 99_999}, "the largest possible is"),
    ],
)
def test_settings_that_leave_nothing(change, message):
    settings = {"vocabulary": SIZE, "max_length": LENGTH} | change
    with pytest.raises(RunError, match=message):
        encode(text(), **settings)


def test_text_without_one_good_pair_is_refused():
    with pytest.raises(DataCorrupt, match="no pair of training lines is UTF-8 and not empty"):
        encode(text(train=[(BAD, b"a"), (b"", b"a")]), SIZE, LENGTH)
