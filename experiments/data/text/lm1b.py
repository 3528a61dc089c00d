"""`lm1b`: English news of the One Billion Word benchmark (Chelba et al. 2014, arXiv:1312.3005).

Shuffled sentences without labels, tokenized by their authors, from a folder that TFDS has prepared;
in the order in which TFDS stores them, which is a shuffled one, too. Of 30 million training
sentences the first million is read, every hundredth for validation; of the test split, the first
10,000. A split is one document.
"""

from pathlib import Path
from typing import Any

from experiments.data import tfds_folder
from experiments.data.original import Arrays
from experiments.data.text.plain_text import Document, pack

NAME = "lm1b"
TRAINING_SENTENCES = 1_000_000
_VALIDATION_EVERY = 100
_TEST_SENTENCES = 10_000


def read_prepared(folder: Path) -> Arrays:
    """Packed text of the three splits, from the folder of a version that TFDS has prepared."""

    def sentence(features: Any) -> bytes:
        return features["text"].bytes_list.value[0]

    def first(split: str, count: int) -> list[bytes]:
        return tfds_folder.read_first(folder, NAME, split, count, sentence)

    training = first("train", TRAINING_SENTENCES)
    sentences = {
        "train": [text for i, text in enumerate(training, 1) if i % _VALIDATION_EVERY],
        "validation": training[_VALIDATION_EVERY - 1 :: _VALIDATION_EVERY],
        "test": first("test", _TEST_SENTENCES),
    }
    return pack({split: [Document(split, "", tuple(text))] for split, text in sentences.items()})
