"""Plain text as strings, and a vocabulary of its training text.

What files may hold and a model cannot take is handled alike for every data set, and counted:

| count | what it counts |
| --- | --- |
| `empty_documents` | documents without text, of all splits |
| `undecodable_paragraphs` | training paragraphs that are no UTF-8, which are left out |
| `evaluation_undecodable_paragraphs` | the same of validation and test: U+FFFD is put for it |
"""

import dataclasses
from collections import Counter
from typing import NamedTuple

from experiments.data.catalog import text_set
from experiments.data.lookup import find
from experiments.data.raw_text import SPLITS, is_utf8, text_of
from experiments.data.text.plain_text import PlainText
from experiments.data.vocabulary import MASK_PIECE, Vocabulary

FEWEST_WORDS = 8
"""A paragraph of fewer words is a heading or a name, of which others are the same by right."""


class Paragraph(NamedTuple):
    """A paragraph and the label of its document, empty if it has none."""

    text: str
    label: str


@dataclasses.dataclass(frozen=True)
class DecodedText:
    """A text data set as it was loaded and decoded.

    Attributes:
      name: the name it was asked for.
      origin: where it came from, for people.
      splits: the paragraphs of `train`, `validation` and `test`, in the order of the documents.
      fingerprint: sha256 in hex over the raw text of all splits.
      counts: see the module.
    """

    name: str
    origin: str
    splits: dict[str, list[Paragraph]]
    fingerprint: str
    counts: Counter[str]

    def vocabulary(self, size_or_vocabulary: int | Vocabulary) -> Vocabulary:
        """The given one, or a new one of this size, with MASK, learned from the training text."""
        if isinstance(size_or_vocabulary, Vocabulary):
            return size_or_vocabulary
        texts = (paragraph.text for paragraph in self.splits["train"])
        return Vocabulary.train(texts, size_or_vocabulary, control_pieces=(MASK_PIECE,))


def load_decoded(
    name: str, *, source: str, download: str, dir: str | None, tfds_dir: str | None
) -> DecodedText:
    """Finds and decodes a data set; arguments and errors are those of `lookup.find`."""
    return decode(
        find(text_set(name), source=source, download=download, dir=dir, tfds_dir=tfds_dir)
    )


def decode(text: PlainText) -> DecodedText:
    """Decodes text that was loaded."""
    counts = Counter(
        empty_documents=0, undecodable_paragraphs=0, evaluation_undecodable_paragraphs=0
    )
    splits: dict[str, list[Paragraph]] = {}
    for split in SPLITS:
        splits[split] = []
        for document in text.splits[split]:
            counts["empty_documents"] += not document.paragraphs
            for raw in document.paragraphs:
                if not is_utf8(raw):
                    counts[f"{prefix(split)}undecodable_paragraphs"] += 1
                    if split == "train":
                        continue
                if paragraph := text_of(raw):
                    splits[split].append(Paragraph(paragraph, document.label))
    return DecodedText(text.name, text.origin, splits, text.fingerprint, counts)


def prefix(split: str) -> str:
    """What the names of the counts of a split begin with."""
    return "" if split == "train" else "evaluation_"
