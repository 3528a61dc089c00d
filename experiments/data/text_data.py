"""A text data set as blocks of token ids, for models that predict tokens from those around them.

The stream of a split is the ids of every paragraph and an EOS, one paragraph after the other, in
the order of the documents. A row is BOS and the next `block_length - 1` ids of the stream; the last
row is filled up with PAD. What text may hold and a model cannot take: `decoded_text.py`. A held-out
paragraph that but for case and punctuation is in the training text as well is left out.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable

import numpy as np

from experiments.data.decoded_text import FEWEST_WORDS, DecodedText, Paragraph, load_decoded
from experiments.data.raw_text import SPLITS, words_alone
from experiments.data.vocabulary import Vocabulary
from experiments.errors import RunError
from experiments.special_tokens import BOS, EOS, PAD

# Paragraphs that are encoded at once, so that few ids are Python objects at a time.
_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True)
class TextData:
    """A data set as it was loaded and encoded.

    Attributes:
      name: the name it was asked for.
      origin: where it came from, for people.
      vocabulary: of its text, or the one that was given.
      splits: int32 `(N, block_length)` of `train`, `validation` and `test`.
      fingerprint: sha256 in hex over the raw text of all splits; `vocabulary.digest` is that of the
        vocabulary.
      counts: `empty_documents`; `undecodable_paragraphs` for training, which were left out, and
        `evaluation_undecodable_paragraphs`, which were kept; `evaluation_duplicate_paragraphs`,
        which were left out; `padded_blocks`, the last rows that were filled up.
    """

    name: str
    origin: str
    vocabulary: Vocabulary
    splits: dict[str, np.ndarray]
    fingerprint: str
    counts: dict[str, int]


def load_text(
    name: str,
    *,
    source: str = "auto",
    download: str = "auto",
    dir: str | None = None,
    tfds_dir: str | None = None,
    vocabulary: int | Vocabulary,
    block_length: int,
) -> TextData:
    """Loads a data set and cuts it into blocks.

    Args:
      name: the data set; `files:GLOB` for text files, see `text/user_files.py`.
      source, download, dir, tfds_dir: see `lookup.find`.
      vocabulary: one, or the number of pieces of one that is learned from the training text.
      block_length: ids of a row, BOS included.

    Raises:
      RunError: the data cannot be had, see `lookup.find`; a split has no text; the vocabulary's
        size does not suit the text; or a row is too short.

    >>> data = load_text("pydoc", vocabulary=1000, block_length=64)
    >>> data.splits["train"].shape[1], data.splits["train"].dtype.name
    (64, 'int32')
    """
    text = load_decoded(name, source=source, download=download, dir=dir, tfds_dir=tfds_dir)
    return encode(text, vocabulary, block_length)


def encode(text: DecodedText, vocabulary: int | Vocabulary, block_length: int) -> TextData:
    """Cuts text that was loaded into blocks; see `load_text`."""
    if block_length < 2:
        raise RunError(f"block_length={block_length}: a row needs at least 2 ids, one of them BOS")
    paragraphs, repeated = _without_repetitions(text)
    counts = {**text.counts, "evaluation_duplicate_paragraphs": repeated, "padded_blocks": 0}
    for split in SPLITS:
        if not paragraphs[split]:
            raise RunError(
                f"data set {text.name!r} ({text.origin}): the {split} split has no text; left out "
                f"or changed: {dict(+Counter(counts)) or 'nothing'}"
            )
    learned = text.vocabulary(vocabulary)
    splits = {}
    for split in SPLITS:
        stream = _stream(learned, (paragraph.text for paragraph in paragraphs[split]))
        splits[split] = _blocks(stream, block_length)
        counts["padded_blocks"] += int(splits[split][-1, -1] == PAD)
    return TextData(text.name, text.origin, learned, splits, text.fingerprint, counts)


def _without_repetitions(text: DecodedText) -> tuple[dict[str, list[Paragraph]], int]:
    """The paragraphs of each split, and how many held-out ones are left out."""
    trained = {words_alone(paragraph.text) for paragraph in text.splits["train"]}

    def is_new(paragraph: Paragraph) -> bool:
        short = len(paragraph.text.split()) < FEWEST_WORDS
        return short or words_alone(paragraph.text) not in trained

    kept = {
        split: paragraphs if split == "train" else [*filter(is_new, paragraphs)]
        for split, paragraphs in text.splits.items()
    }
    return kept, sum(len(text.splits[split]) - len(kept[split]) for split in SPLITS)


def _stream(vocabulary: Vocabulary, paragraphs: Iterable[str]) -> np.ndarray:
    parts, remaining = [], iter(paragraphs)
    while batch := list(itertools.islice(remaining, _AT_ONCE)):
        rows = vocabulary.encode(batch)
        parts.append(np.array([id for ids in rows for id in (*ids, EOS)], np.int32))
    return np.concatenate(parts)


def _blocks(stream: np.ndarray, block_length: int) -> np.ndarray:
    width = block_length - 1
    rows = -(-len(stream) // width)
    blocks = np.full((rows, block_length), PAD, np.int32)
    blocks[:, 0] = BOS
    filled = np.pad(stream, (0, rows * width - len(stream)), constant_values=PAD)
    blocks[:, 1:] = filled.reshape(rows, width)
    return blocks
