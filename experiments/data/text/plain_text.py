"""Plain text as it was read: documents of raw paragraphs, in three splits.

Paragraphs are bytes, because what a file holds need not be UTF-8: what is done about that is
decided in `../decoded_text.py`, for every data set alike. Packed, a split is one uint8 array of
lines: the name and the label of a document behind a form feed, then its paragraphs.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np

from experiments.data.fingerprint import fingerprint
from experiments.data.original import Arrays
from experiments.data.raw_text import SPLITS

_DOCUMENT = b"\f"
# Of the text of a label, for validation and for testing each.
_HELD_OUT = 0.1
_FEWEST_DOCUMENTS = 3


@dataclasses.dataclass(frozen=True)
class Document:
    """What is held out as a whole.

    Attributes:
      name: tells it from the others of the data set.
      label: what kind of document it is; empty if that is unknown.
      paragraphs: its text. White space of any kind and length is one space.
    """

    name: str
    label: str
    paragraphs: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Bytes of text."""
        return sum(map(len, self.paragraphs))


@dataclasses.dataclass(frozen=True)
class PlainText:
    """A text data set as it was loaded; made by `from_arrays`.

    Attributes:
      name: the name it was asked for.
      origin: where it came from, for people.
      splits: the documents of `train`, `validation` and `test`.
      arrays: the packed text.
      fingerprint: sha256 in hex over that.
    """

    name: str
    origin: str
    splits: dict[str, Sequence[Document]]
    arrays: Arrays = dataclasses.field(compare=False)  # their fingerprint is
    fingerprint: str

    @classmethod
    def from_arrays(cls, name: str, origin: str, *arrays: np.ndarray) -> "PlainText":
        """From packed text, one array for each split; `ValueError` if it is none."""
        splits: dict[str, Sequence[Document]] = {
            split: tuple(unpacked(array)) for split, array in zip(SPLITS, arrays, strict=True)
        }
        return cls(name, origin, splits, arrays, fingerprint(*arrays))

    @property
    def summary(self) -> str:
        """What it holds, in a line."""
        parts = []
        for split in SPLITS:
            documents = self.splits[split]
            megabytes = sum(document.size for document in documents) / 1e6
            parts.append(f"{split} {len(documents)} documents ({megabytes:.2f} MB)")
        labels = {document.label for document in chain(*self.splits.values())} - {""}
        return ", ".join((*parts, f"{len(labels)} labels"))


def pack(splits: Mapping[str, Iterable[Document]]) -> Arrays:
    """The array of each split."""
    return tuple(packed(splits[split]) for split in SPLITS)


def packed(documents: Iterable[Document]) -> np.ndarray:
    """Documents as one array. A paragraph of white space alone is none."""
    lines = []
    for document in documents:
        title = "\t".join(" ".join(word.split()) for word in (document.name, document.label))
        lines.append(_DOCUMENT + title.encode(errors="surrogateescape"))
        lines += filter(None, (b" ".join(text.split()) for text in document.paragraphs))
    return np.frombuffer(b"".join(line + b"\n" for line in lines), np.uint8)


def unpacked(array: np.ndarray) -> list[Document]:
    """The documents of an array; `ValueError` if a paragraph belongs to none."""
    found: list[tuple[bytes, list[bytes]]] = []
    for line in array.tobytes().split(b"\n")[:-1]:
        if line.startswith(_DOCUMENT):
            found.append((line.removeprefix(_DOCUMENT), []))
        elif found:
            found[-1][1].append(line)
        else:
            raise ValueError("packed text begins with a paragraph, expected a document's name")
    documents = []
    for title, paragraphs in found:
        name, _, label = title.decode(errors="surrogateescape").partition("\t")
        documents.append(Document(name, label, tuple(paragraphs)))
    return documents


def split_by_document(documents: Iterable[Document]) -> dict[str, list[Document]]:
    """Whole documents for training, validation and testing, each split in the order of the names.

    Of the text of every label, validation and testing get about a tenth each: in the order of a
    hash of their names, documents go to the one that has less until then, if the tenth is not
    exceeded, and else to training. A label of at least three documents is in every split; labels of
    fewer are split as if they were one. Documents without text are for training. So the splits
    depend on the names, the labels and the sizes of the documents, and not on their order.
    """
    empty: list[Document] = []
    by_label: dict[str, list[Document]] = {}
    for document in documents:
        (by_label.setdefault(document.label, []) if document.size else empty).append(document)
    groups: list[list[Document]] = []
    of_rare_labels: list[Document] = []
    for of_label in by_label.values():
        if len(of_label) < _FEWEST_DOCUMENTS:
            of_rare_labels += of_label
        else:
            groups.append(of_label)
    splits = {"train": empty, "validation": [], "test": []}
    for group in (*groups, of_rare_labels):
        for split, chosen in _split(group).items():
            splits[split] += chosen
    return {split: sorted(splits[split], key=lambda document: document.name) for split in SPLITS}


def _split(documents: Iterable[Document]) -> dict[str, list[Document]]:
    """Splits of documents with text; of fewer than three, nothing is held out."""
    text = sorted(documents, key=_hash)
    if len(text) < _FEWEST_DOCUMENTS:
        return {"train": text}
    train: list[Document] = []
    held_out: dict[str, list[Document]] = {"test": [], "validation": []}
    sizes = dict.fromkeys(held_out, 0)
    most = _HELD_OUT * sum(document.size for document in text)
    for document in text:
        split = min(sizes, key=sizes.__getitem__)
        if sizes[split] + document.size <= most:
            held_out[split].append(document)
            sizes[split] += document.size
        else:
            train.append(document)
    for chosen in held_out.values():
        if not chosen:  # none is as small as a tenth
            smallest = min(train, key=lambda document: (document.size, _hash(document)))
            train.remove(smallest)
            chosen.append(smallest)
    return {"train": train, **held_out}


def _hash(document: Document) -> str:
    return hashlib.sha256(document.name.encode(errors="surrogateescape")).hexdigest()
