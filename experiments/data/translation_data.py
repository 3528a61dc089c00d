"""A translation data set as rows of token ids, and the raw text that translations are scored on.

A row is the ids of a sentence and EOS, filled up with PAD. What text may hold and a model cannot
take is handled alike for every data set, and counted:

| a line that is | training | validation and test |
| --- | --- | --- |
| empty | its pair is left out | is kept |
| over-long (more than `max_length` ids with EOS) | its pair is left out | its row is cut short |
| undecodable (no UTF-8) | its pair is left out | what is no UTF-8 becomes U+FFFD |

So every reference of a test set is scored against. A pair that is left out is counted once, by the
first of undecodable, empty and over-long that applies. The vocabulary is learned from the training
pairs that are not left out before there is one, source and target together.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.data.catalog import translation_set
from experiments.data.errors import DataCorrupt
from experiments.data.lookup import find
from experiments.data.raw_text import is_utf8, text_of
from experiments.data.translation.parallel_text import Pairs, ParallelText
from experiments.data.vocabulary import Vocabulary
from experiments.errors import RunError
from experiments.special_tokens import EOS, PAD

Texts = tuple[tuple[str, ...], tuple[str, ...]]
_REASONS = ("undecodable", "empty", "over_long")


class TokenPairs(NamedTuple):
    """The pairs of a split. Both sides are as wide as the longest row of either.

    Attributes:
      source: int32 `(N, L)`.
      target: int32 `(N, L)`.
      source_length: int32 `(N,)`, ids of a row with EOS, without PAD.
      target_length: int32 `(N,)`.
    """

    source: np.ndarray
    target: np.ndarray
    source_length: np.ndarray
    target_length: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """The longer of source and target, int32 `(N,)`: what buckets go by."""
        return np.maximum(self.source_length, self.target_length)


@dataclasses.dataclass(frozen=True)
class TranslationData:
    """A data set as it was loaded and encoded.

    Attributes:
      name: the name it was asked for.
      origin: where it came from, for people.
      vocabulary: of both languages.
      splits: `train`, `validation` and `test`.
      texts: sources and references of `validation` and `test`, uncut, in the order of the rows.
      fingerprint: sha256 in hex over the raw text of all splits; `vocabulary.digest` is that of the
        vocabulary.
      counts: `undecodable`, `empty` and `over_long` training pairs, which were left out; the same
        with `evaluation_` before it: validation and test pairs, which were kept.
    """

    name: str
    origin: str
    vocabulary: Vocabulary
    splits: dict[str, TokenPairs]
    texts: dict[str, Texts]
    fingerprint: str
    counts: dict[str, int]


def load_translation(
    name: str,
    *,
    source: str = "auto",
    download: str = "auto",
    dir: str | None = None,
    tfds_dir: str | None = None,
    vocabulary: int | Vocabulary,
    max_length: int = 64,
) -> TranslationData:
    """Loads and encodes a data set.

    Args:
      name: the data set.
      source, download, dir, tfds_dir: see `lookup.find`.
      vocabulary: one, or the number of pieces of one that is learned from the training text.
      max_length: most ids of a row, EOS included.

    Raises:
      RunError: the data cannot be had, see `lookup.find`; the vocabulary's size does not suit the
        text; or no training pair is left.
    """
    text = find(translation_set(name), source=source, download=download, dir=dir, tfds_dir=tfds_dir)
    return encode(text, vocabulary, max_length)


def encode(text: ParallelText, vocabulary: int | Vocabulary, max_length: int) -> TranslationData:
    """Encodes text that was loaded; see `load_translation`."""
    if max_length < 2:
        raise RunError(f"max_length={max_length}: a row needs at least 2 ids, one of them EOS")
    counts = dict.fromkeys((*_REASONS, *(f"evaluation_{reason}" for reason in _REASONS)), 0)
    train = _training_texts(text.splits["train"], counts)
    if not train[0]:
        raise DataCorrupt(f"{text.origin}: no pair of training lines is UTF-8 and not empty")
    texts = {
        split: _evaluation_texts(text.splits[split], counts) for split in ("validation", "test")
    }
    if isinstance(vocabulary, Vocabulary):
        learned = vocabulary
    else:
        learned = Vocabulary.train((*train[0], *train[1]), vocabulary)

    def rows(lines: Sequence[str]) -> list[list[int]]:
        return [[*ids, EOS] for ids in learned.encode(lines)]

    short = []
    for pair in zip(rows(train[0]), rows(train[1]), strict=True):
        if max(map(len, pair)) > max_length:
            counts["over_long"] += 1
        else:
            short.append(pair)
    if not short:
        raise RunError(
            f"max_length={max_length}: every pair of {text.name!r} is longer, nothing is left to "
            "train on"
        )
    splits = {"train": _padded([pair[0] for pair in short], [pair[1] for pair in short])}
    for split, (sources, references) in texts.items():
        sides = rows(sources), rows(references)
        long = sum(max(map(len, pair)) > max_length for pair in zip(*sides, strict=True))
        counts["evaluation_over_long"] += long
        splits[split] = _padded(*([_cut(row, max_length) for row in side] for side in sides))
    return TranslationData(text.name, text.origin, learned, splits, texts, text.fingerprint, counts)


def source_rows(
    vocabulary: Vocabulary, texts: Sequence[str], max_length: int
) -> tuple[np.ndarray, int]:
    """Rows of text that is to be translated, int32, and how many of them were cut: those of more
    than `max_length` ids with EOS."""
    rows = [[*ids, EOS] for ids in vocabulary.encode(texts)]
    short = [_cut(row, max_length) for row in rows]
    return _padded(short, short).source, sum(len(row) > max_length for row in rows)


def _training_texts(pairs: Pairs, counts: dict[str, int]) -> tuple[list[str], list[str]]:
    sources, targets = [], []
    for pair in pairs:
        source, target = map(text_of, pair)
        if not all(map(is_utf8, pair)):
            counts["undecodable"] += 1
        elif not source or not target:
            counts["empty"] += 1
        else:
            sources.append(source)
            targets.append(target)
    return sources, targets


def _evaluation_texts(pairs: Pairs, counts: dict[str, int]) -> Texts:
    counts["evaluation_undecodable"] += sum(not all(map(is_utf8, pair)) for pair in pairs)
    counts["evaluation_empty"] += sum(not all(map(text_of, pair)) for pair in pairs)
    return tuple(text_of(pair[0]) for pair in pairs), tuple(text_of(pair[1]) for pair in pairs)


def _cut(row: list[int], max_length: int) -> list[int]:
    return row if len(row) <= max_length else [*row[: max_length - 1], EOS]


def _padded(sources: Sequence[list[int]], targets: Sequence[list[int]]) -> TokenPairs:
    lengths = [np.array([len(row) for row in rows], np.int32) for rows in (sources, targets)]
    width = max(int(length.max()) for length in lengths)
    padded = [
        np.array([row + [PAD] * (width - len(row)) for row in rows], np.int32)
        for rows in (sources, targets)
    ]
    return TokenPairs(*padded, *lengths)
