"""The vocabulary: special ids, round trips of any text, determinism, sizes that do not suit."""

import pytest
from parallel_files import lohelp_200

from experiments.data.vocabulary import Vocabulary
from experiments.errors import RunError
from experiments.special_tokens import BOS, EOS, PAD, UNK


@pytest.fixture(scope="module")
def lines():
    return [text for pair in lohelp_200() for text in pair]


@pytest.fixture(scope="module")
def vocabulary(lines):
    return Vocabulary.train(lines[:300], 700)


def test_size_and_special_ids(vocabulary):
    assert (PAD, UNK, BOS, EOS) == (0, 1, 2, 3)
    assert vocabulary.size == 700
    ids = [number for row in vocabulary.encode(["Klicken Sie hier.", "\0 漢"]) for number in row]
    assert min(ids) > EOS and max(ids) < 700


@pytest.mark.parametrize(
    "text",
    ["", "a", "<s> </s> <unk>", "漢字 and ﬁ ½ ①", "tab\tand\0nul", "e\u0301", "\ufffd", "x\u2028y"],
)
def test_any_text_comes_back_as_it_was(text, vocabulary):
    (ids,) = vocabulary.encode([text])
    assert UNK not in ids
    assert vocabulary.decode(ids) == text


def test_real_text_comes_back(lines, vocabulary):
    unseen = lines[300:]
    rows = vocabulary.encode(unseen)
    assert [vocabulary.decode(ids) for ids in rows] == unseen
    # it has learned something: fewer ids than characters, by far
    assert sum(map(len, rows)) < sum(map(len, unseen)) / 2


def test_rows_are_read_up_to_their_end(vocabulary):
    (ids,) = vocabulary.encode(["Wählen Sie"])
    assert vocabulary.decode([BOS, *ids, EOS, *ids, PAD, PAD]) == "Wählen Sie"
    assert vocabulary.decode([EOS]) == vocabulary.decode([]) == vocabulary.decode([PAD]) == ""


def test_equal_text_gives_equal_bytes_and_other_text_others(lines, vocabulary):
    again = Vocabulary.train(iter(lines[:300]), 700)
    assert (again.model, again.digest) == (vocabulary.model, vocabulary.digest)
    other = Vocabulary.train(lines[1:301], 700)
    assert other.digest != vocabulary.digest


def test_the_model_is_all_there_is(vocabulary, lines):
    restored = Vocabulary(vocabulary.model)
    assert (restored.size, restored.digest) == (vocabulary.size, vocabulary.digest)
    assert restored.encode(lines[:20]) == vocabulary.encode(lines[:20])


@pytest.mark.parametrize(
    ("size", "message"), [(30_000, "the largest possible is"), (100, "the smallest possible is")]
)
def test_the_message_names_a_size_that_works(size, message, lines):
    with pytest.raises(RunError, match=message) as error:
        Vocabulary.train(lines, size)
    limit = int(str(error.value).split()[-1])
    assert Vocabulary.train(lines, limit).size == limit
    with pytest.raises(RunError):
        Vocabulary.train(lines, limit + (1 if size > limit else -1))


@pytest.mark.parametrize("lines", [[], ["", " "]])
def test_no_text(lines):
    with pytest.raises(RunError, match="there is no text to learn it from"):
        Vocabulary.train(lines, 300)


def test_what_is_no_model_is_refused():
    with pytest.raises(RunError, match="a vocabulary of 7 bytes is no SentencePiece model"):
        Vocabulary(b"garbage")
