"""The vocabulary: special ids, round trips of any text, determinism, sizes that do not suit."""

import io

import pytest
import sentencepiece
from parallel_files import lohelp_200

from experiments.data.vocabulary import MASK_PIECE, Vocabulary
from experiments.errors import RunError
from experiments.special_tokens import BOS, EOS, MASK, PAD, UNK


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


def test_a_vocabulary_of_translation_has_no_mask(lines, vocabulary):
    # the digests in the results of translation are of these bytes
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines[:300]),
        model_writer=model,
        model_type="bpe",
        vocab_size=700,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        num_threads=1,
        minloglevel=3,
    )
    assert vocabulary.model == model.getvalue()


def test_control_pieces_come_after_the_special_ids_and_no_text_is_one(lines, vocabulary):
    masked = Vocabulary.train(lines[:300], 700, control_pieces=(MASK_PIECE,))
    assert masked.size == 700
    pieces = sentencepiece.SentencePieceProcessor(model_proto=masked.model)
    assert MASK == 4 and pieces.piece_to_id(MASK_PIECE) == MASK and pieces.is_control(MASK)
    assert pieces.is_byte(MASK + 1)
    (ids,) = masked.encode([f"Klicken Sie {MASK_PIECE} hier."])
    assert min(ids) > MASK
    assert masked.decode(ids) == f"Klicken Sie {MASK_PIECE} hier."
    # one piece less is learned, and the others are the same
    plain = sentencepiece.SentencePieceProcessor(model_proto=vocabulary.model)
    learned = [[p.id_to_piece(i) for i in range(4, 700)] for p in (pieces, plain)]
    assert set(learned[0]) - set(learned[1]) == {MASK_PIECE}
    assert len(set(learned[1]) - set(learned[0])) == 1


def test_long_lines_are_learned_from(lines):
    # SentencePiece leaves out lines of more than 4192 bytes
    text = " ".join(lines[:300])
    assert len(text.encode()) > 3 * 4192
    long, short = Vocabulary.train([text], 700), Vocabulary.train(text.split(), 700)
    assert long.encode(lines[300:]) == short.encode(lines[300:])


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
