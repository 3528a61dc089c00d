"""Paragraphs to be classified: rows of token ids, and what kind of document each is from.

A row is BOS, the ids of a paragraph and EOS; of an over-long one, the first that fit between these.
Documents are held out as wholes, and paragraphs that would give themselves away, or are no text to
speak of, are left out of every split and counted:

| count | paragraphs |
| --- | --- |
| `unlabelled_paragraphs` | of documents without a label |
| `short_paragraphs` | of fewer than 8 words |
| `duplicate_paragraphs` | which but for case and punctuation occurred before: earlier in their \
split, or in the training text; test paragraphs also in the validation text |
| `over_long_paragraphs` | that were cut, not left out |

Counts of validation and test have `evaluation_` before them. The first reason that applies counts.
For the rest see `decoded_text.py`.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.data.catalog import text_set
from experiments.data.decoded_text import (
    FEWEST_WORDS,
    DecodedText,
    Paragraph,
    load_decoded,
    prefix,
)
from experiments.data.raw_text import SPLITS, words_alone
from experiments.data.vocabulary import Vocabulary
from experiments.errors import RunError
from experiments.special_tokens import BOS, EOS, PAD

_REASONS = ("unlabelled", "short", "duplicate", "over_long")


class LabelledRows(NamedTuple):
    """The paragraphs of a split.

    Attributes:
      tokens: int32 `(N, max_length)`.
      labels: int32 `(N,)`, indices into `LabelledText.labels`.
    """

    tokens: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class LabelledText:
    """A data set as it was loaded and encoded.

    Attributes:
      name: the name it was asked for.
      origin: where it came from, for people.
      vocabulary: of its text, or the one that was given.
      labels: the names of the labels, sorted; each is in every split.
      splits: `train`, `validation` and `test`.
      fingerprint: sha256 in hex over the raw text of all splits; `vocabulary.digest` is that of the
        vocabulary.
      counts: see the module.
    """

    name: str
    origin: str
    vocabulary: Vocabulary
    labels: tuple[str, ...]
    splits: dict[str, LabelledRows]
    fingerprint: str
    counts: dict[str, int]


def load_labelled_text(
    name: str,
    *,
    source: str = "auto",
    download: str = "auto",
    dir: str | None = None,
    tfds_dir: str | None = None,
    vocabulary: int | Vocabulary,
    max_length: int,
) -> LabelledText:
    """Loads a data set and makes a row of every paragraph.

    Args:
      name: the data set; `files:GLOB` for text files, see `text/user_files.py`.
      source, download, dir, tfds_dir: see `lookup.find`.
      vocabulary: one, or the number of pieces of one that is learned from the training text.
      max_length: ids of a row, BOS and EOS included.

    Raises:
      RunError: the data cannot be had, see `lookup.find`; it has no labels, or one that is not in
        every split; the vocabulary's size does not suit the text; or a row is too short.

    >>> load_labelled_text("pydoc", vocabulary=1000, max_length=64).labels[:2]
    ('Compound statements', 'Data model')
    """
    labels = text_set(name).labels
    text = load_decoded(name, source=source, download=download, dir=dir, tfds_dir=tfds_dir)
    return encode(text, labels, vocabulary, max_length)


def encode(
    text: DecodedText, labels: tuple[str, ...], vocabulary: int | Vocabulary, max_length: int
) -> LabelledText:
    """Makes rows of text that was loaded; see `load_labelled_text`."""
    if max_length < 3:
        raise RunError(f"max_length={max_length}: a row needs at least 3 ids, with BOS and EOS")
    counts = Counter(text.counts)
    for split in SPLITS:
        counts.update({f"{prefix(split)}{reason}_paragraphs": 0 for reason in _REASONS})
    chosen = _chosen(text, labels, counts)
    for split, label in itertools.product(SPLITS, labels):
        if not any(paragraph.label == label for paragraph in chosen[split]):
            raise RunError(
                f"data set {text.name!r} ({text.origin}): the {split} split has no paragraph of "
                f"the label {label!r}; a label needs at least three documents that have paragraphs "
                f"of {FEWEST_WORDS} words; left out or changed: {dict(+counts) or 'nothing'}"
            )
    learned = text.vocabulary(vocabulary)
    splits = {}
    for split in SPLITS:
        ids = learned.encode([paragraph.text for paragraph in chosen[split]])
        long = sum(len(row) > max_length - 2 for row in ids)
        counts[f"{prefix(split)}over_long_paragraphs"] += long
        splits[split] = LabelledRows(
            _padded(ids, max_length),
            np.array([labels.index(paragraph.label) for paragraph in chosen[split]], np.int32),
        )
    return LabelledText(
        text.name, text.origin, learned, labels, splits, text.fingerprint, dict(counts)
    )


def _chosen(
    text: DecodedText, labels: tuple[str, ...], counts: Counter[str]
) -> dict[str, list[Paragraph]]:
    """The paragraphs of each split that are not left out."""
    chosen: dict[str, list[Paragraph]] = {}
    seen: set[str] = set()
    for split in SPLITS:
        chosen[split] = []
        for paragraph in text.splits[split]:
            words = words_alone(paragraph.text)
            if paragraph.label not in labels:
                reason = "unlabelled"
            elif len(paragraph.text.split()) < FEWEST_WORDS:
                reason = "short"
            elif words in seen:
                reason = "duplicate"
            else:
                reason = None
                chosen[split].append(paragraph)
            if reason is not None:
                counts[f"{prefix(split)}{reason}_paragraphs"] += 1
            seen.add(words)
    return chosen


def _padded(rows: Sequence[list[int]], max_length: int) -> np.ndarray:
    tokens = np.full((len(rows), max_length), PAD, np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        kept = [BOS, *ids[: max_length - 2], EOS]
        row[: len(kept)] = kept
    return tokens
