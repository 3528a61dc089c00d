"""Parallel text as it was read: raw lines of a source and a target language, in three splits.

Lines are bytes, because what a file holds need not be UTF-8: what is done about that is decided in
`translation_data.py`, for every data set alike. Packed, each side of each split is one uint8 array
in which every line ends with a newline; so text is cached and fingerprinted as images are.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from experiments.data.errors import DataCorrupt
from experiments.data.fingerprint import fingerprint
from experiments.data.original import Arrays
from experiments.data.raw_text import SPLITS

ARRAY_NAMES = tuple(f"{split}_{side}" for split in SPLITS for side in ("source", "target"))

Pairs = Sequence[tuple[bytes, bytes]]


@dataclasses.dataclass(frozen=True)
class ParallelText:
    """A translation data set as it was loaded; made by `from_arrays`.

    Attributes:
      name: the name it was asked for.
      origin: where it came from, for people.
      splits: source and target line of every pair, by split.
      arrays: the packed text.
      fingerprint: sha256 in hex over that.
    """

    name: str
    origin: str
    splits: dict[str, Pairs]
    arrays: Arrays = dataclasses.field(compare=False)  # their fingerprint is
    fingerprint: str

    @classmethod
    def from_arrays(cls, name: str, origin: str, *arrays: np.ndarray) -> "ParallelText":
        """From packed text; `ValueError` if a split is empty or its sides differ in length."""
        splits: dict[str, Pairs] = {}
        for i, split in enumerate(SPLITS):
            source, target = (array.tobytes().split(b"\n")[:-1] for array in arrays[2 * i :][:2])
            if not source or len(source) != len(target):
                raise ValueError(
                    f"{name}, {split} split: {len(source)} source and {len(target)} target lines"
                )
            splits[split] = tuple(zip(source, target, strict=True))
        return cls(name, origin, splits, arrays, fingerprint(*arrays))

    @property
    def summary(self) -> str:
        """What it holds, in a line."""
        train, validation, test = (len(self.splits[split]) for split in SPLITS)
        return f"{train} training, {validation} validation and {test} test pairs"


def pack(splits: Mapping[str, Pairs]) -> Arrays:
    """The arrays of `ARRAY_NAMES` from the pairs of every split; a newline becomes a space."""

    def packed(lines: Iterable[bytes]) -> np.ndarray:
        content = b"".join(line.replace(b"\n", b" ") + b"\n" for line in lines)
        return np.frombuffer(content, np.uint8)

    return tuple(
        packed(pair[side] for pair in splits[split]) for split in SPLITS for side in (0, 1)
    )


def paired(
    source_place: object, source: Sequence[bytes], target_place: object, target: Sequence[bytes]
) -> Pairs:
    """Lines of two files that translate each other; `DataCorrupt` names both if they do not."""
    if len(source) != len(target):
        raise DataCorrupt(
            f"{source_place} has {len(source)} lines and {target_place} {len(target)}: line by "
            "line, the one has to be the translation of the other"
        )
    return tuple(zip(source, target, strict=True))
