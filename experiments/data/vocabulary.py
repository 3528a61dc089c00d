"""A vocabulary of subwords, trained by SentencePiece; of both languages of a translation.

Byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909) as SentencePiece does it (Kudo and
Richardson 2018, arXiv:1808.06226): text is taken as it is, with no tokenizer before it, and a
character that training did not see becomes the bytes of its UTF-8, so that nothing is unknown.
Text is not normalised either: whatever a reference says, the pieces can spell. Runs of spaces
become one.

The first pieces are PAD, UNK, BOS and EOS, then control pieces if any are asked for (MASK is one),
then the 256 bytes. No text is ever encoded as one of these but the bytes. The model is a few
hundred kilobytes and goes into checkpoints as bytes; its digest tells vocabularies apart.
SentencePiece writes the number of threads into the model, so that is always one.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence

import sentencepiece

from experiments.errors import RunError
from experiments.special_tokens import BOS, EOS, PAD, UNK

# What SentencePiece says when the size does not suit the text, with the limit it names.
_TOO_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")
_TOO_LARGE = re.compile(r"size too high \(\d+\)\. Please set it to a value <= (\d+)")
_SILENT = 3
# It learns nothing from longer lines, in bytes.
_LONGEST_LINE = 4192

MASK_PIECE = "<mask>"


class Vocabulary:
    """A trained vocabulary.

    Attributes:
      model: SentencePiece's own serialization.
      digest: sha256 of `model` in hex.
      size: number of pieces, all of the first ones included.

    >>> vocabulary = Vocabulary.train(["ein Haus", "a house"], 274)
    >>> (ids,) = vocabulary.encode(["ein Haus, a house"])
    >>> vocabulary.decode([BOS, *ids, EOS, PAD])
    'ein Haus, a house'
    """

    def __init__(self, model: bytes):
        """From a serialized model; `RunError` if it is none."""
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise RunError(
                f"a vocabulary of {len(model)} bytes is no SentencePiece model ({error})"
            ) from error
        self.model = model
        self.digest = hashlib.sha256(model).hexdigest()
        self.size: int = self._processor.get_piece_size()

    @classmethod
    def train(
        cls, lines: Iterable[str], size: int, control_pieces: Sequence[str] = ()
    ) -> "Vocabulary":
        """Learns exactly `size` pieces from text; equal text gives equal bytes.

        Args:
          lines: the text.
          size: number of pieces, the control pieces and all others included.
          control_pieces: names of what is no text, for the ids from 4 on; `(MASK_PIECE,)` where
            tokens are masked.

        Raises:
          RunError: there is no text, or the size does not suit it; the message says which does.
        """
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_cut(lines),
                model_writer=model,
                model_type="bpe",
                vocab_size=size,
                character_coverage=1.0,
                byte_fallback=True,
                normalization_rule_name="identity",
                pad_id=PAD,
                unk_id=UNK,
                bos_id=BOS,
                eos_id=EOS,
                control_symbols=list(control_pieces),
                num_threads=1,
                minloglevel=_SILENT,
            )
        except RuntimeError as error:
            raise RunError(f"vocabulary of {size} pieces: {_advice(str(error))}") from error
        return cls(model.getvalue())

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The ids of each line, without BOS and EOS; an empty line has none."""
        return self._processor.encode(list(lines))

    def decode(self, ids: Iterable[int]) -> str:
        """The text up to the first EOS. PAD, BOS and control pieces are nothing,
        UNK is a mark of its own."""
        kept = []
        for number in map(int, ids):
            if number == EOS:
                break
            kept.append(number)
        return self._processor.decode(kept)


class UnlearnedVocabulary(Vocabulary):
    """The place of a vocabulary before any text is read: a size, with which nothing is encoded."""

    def __init__(self, size: int):
        self.model, self.digest, self.size = b"", "", size


def _cut(lines: Iterable[str]) -> Iterator[str]:
    """The lines; those too long for SentencePiece in parts, cut at spaces if there are any."""
    for line in lines:
        if len(line.encode()) <= _LONGEST_LINE:
            yield line
        else:
            yield from _parts(line)


def _parts(line: str) -> Iterator[str]:
    part: list[str] = []
    size = 0
    # A character has at most four bytes in UTF-8.
    longest = _LONGEST_LINE // 4
    words = (
        word[start : start + longest]
        for word in line.split()
        for start in range(0, len(word), longest)
    )
    for word in words:
        length = len(word.encode()) + 1
        if part and size + length > _LONGEST_LINE:
            yield " ".join(part)
            part, size = [], 0
        part.append(word)
        size += length
    yield " ".join(part)


def _advice(error: str) -> str:
    if found := _TOO_SMALL.search(error):
        return f"too few for the characters of this text, the smallest possible is {found[1]}"
    if found := _TOO_LARGE.search(error):
        return f"too many for this text, the largest possible is {found[1]}"
    if "sentences_.empty()" in error or "all_chars_count" in error:
        return "there is no text to learn it from"
    return error
