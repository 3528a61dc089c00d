"""`pydoc`: the topics of Python's `help()`, sections of its manuals; a third of a megabyte.

`make_pydoc.py` says which, and what their labels are. Licence: `../embedded/pydoc.LICENSE`.
"""

import lzma
from pathlib import Path

import numpy as np

from experiments.data.original import Arrays
from experiments.data.text.plain_text import pack, split_by_document, unpacked

LABELS = (
    "Compound statements",
    "Data model",
    "Expressions",
    "Lexical analysis",
    "Simple statements",
    "Standard library",
)
FILE = Path(__file__).parents[1] / "embedded" / "pydoc.txt.xz"


def read() -> Arrays:
    """Packed text of the three splits."""
    documents = unpacked(np.frombuffer(lzma.decompress(FILE.read_bytes()), np.uint8))
    return pack(split_by_document(documents))
