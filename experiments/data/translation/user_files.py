"""`files`: the user's own text, a sentence a line, in six files in `data.dir`.

Line by line, `*.de` is the source and `*.en` its translation.
"""

from pathlib import Path

from experiments.data.original import Arrays
from experiments.data.raw_text import lines_of
from experiments.data.translation.parallel_text import pack, paired

NAMES = ("train.de", "train.en", "valid.de", "valid.en", "test.de", "test.en")


def read(*paths: Path) -> Arrays:
    """Packed text of the files of `NAMES`; `DataCorrupt` if two do not have equally many lines."""
    lines = [lines_of(path.read_bytes()) for path in paths]
    pairs = [paired(paths[i], lines[i], paths[i + 1], lines[i + 1]) for i in (0, 2, 4)]
    return pack(dict(zip(("train", "validation", "test"), pairs, strict=True)))
