"""Make the embedded text `pydoc` from the help topics of CPython 3.11.7, `pydoc_data.topics`.

    python3.11 -m experiments.data.make_pydoc

A topic is a document. Its paragraphs are what blank lines separate, with the lines of each joined
and the rows under headings left out; a row of a table is a paragraph. Because topics are sections
of the manuals and some hold others (`compound` all of `if`), a paragraph stays only in the smallest
topic that has it, and a topic with no paragraph left is none.

The label of a topic is the part of the manuals that it is a section of: chapter 3, 6, 7, 8 or 2 of
the Python Language Reference, or the Python Standard Library. The four topics of chapter 4,
Execution model, are too few to be in every split and have none. Source: CPython lists the topics in
`Doc/tools/extensions/pyspecific.py`, and each is a label in the sources of these manuals,
`Doc/reference` and `Doc/library`.
"""

import itertools
import lzma
import re
import sys
from collections.abc import Iterator
from pydoc_data.topics import topics

from experiments.data.text.plain_text import Document, packed
from experiments.data.text.pydoc import FILE

VERSION = (3, 11, 7)

TOPICS = {
    "Data model": (
        "attribute-access callable-types context-managers customization numeric-types objects "
        "sequence-types specialnames types"
    ),
    "Expressions": (
        "atom-identifiers atom-literals attribute-references await binary bitwise booleans calls "
        "comparisons conversions dict exprlists in lambda lists operator-summary power shifting "
        "slicings subscriptions unary"
    ),
    "Simple statements": (
        "assert assignment augassign break continue del global import nonlocal pass raise return "
        "yield"
    ),
    "Compound statements": "async class compound else for function if try while with",
    "Lexical analysis": "floating id-classes identifiers imaginary integers numbers strings",
    "Standard library": (
        "bltin-code-objects bltin-ellipsis-object bltin-null-object bltin-type-objects debugger "
        "formatstrings specialattrs string-methods truth typesfunctions typesmapping typesmethods "
        "typesmodules typesseq typesseq-mutable"
    ),
    "": "dynamic-features exceptions execmodel naming",
}

_BLANK = re.compile(r"\n\s*\n")
_UNDERLINE = re.compile(r"\s*([*=~^-])\1{2,}\s*")
_BORDER = re.compile(r"\s*[+|][-=+|]{3,}[+|]\s*")


def main() -> None:
    if sys.version_info[:3] != VERSION:
        raise SystemExit(f"run this with Python {'.'.join(map(str, VERSION))}: topics differ")
    content = packed(documents(topics)).tobytes()
    FILE.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    print(f"{FILE}: {FILE.stat().st_size / 1e3:.0f} kB of {len(content) / 1e3:.0f} kB")


def documents(texts: dict[str, str]) -> list[Document]:
    """The documents of texts by topic; `KeyError` if a topic is in no list above."""
    labels = {topic: label for label, listed in TOPICS.items() for topic in listed.split()}
    seen: set[str] = set()
    found = []
    for topic in sorted(texts, key=lambda topic: (len(texts[topic]), topic)):
        kept = []
        for paragraph in paragraphs(texts[topic]):
            if paragraph not in seen:
                seen.add(paragraph)
                kept.append(paragraph.encode())
        if kept:
            found.append(Document(topic, labels[topic], tuple(kept)))
    return sorted(found, key=lambda document: document.name)


def paragraphs(text: str) -> Iterator[str]:
    """What blank lines separate, each on one line.

    >>> list(paragraphs("Lists\\n*****\\n\\n   An array\\n   it is.\\n\\nThe end"))
    ['Lists', 'An array it is.', 'The end']
    """
    for block in _BLANK.split(text):
        lines = [line for line in block.split("\n") if not _UNDERLINE.fullmatch(line)]
        if any(map(_BORDER.fullmatch, lines)):
            yield from _rows(lines)
        elif paragraph := " ".join(" ".join(lines).split()):
            yield paragraph


def _rows(lines: list[str]) -> Iterator[str]:
    """The rows of a table, cell after cell, whose borders are drawn with `+`, `-`, `=` and `|`."""
    row: list[list[str]] = []
    edges: list[int] = []
    for line in lines:
        if _BORDER.fullmatch(line):
            if row:
                yield " ".join(" ".join(" ".join(cell) for cell in zip(*row, strict=True)).split())
            row, edges = [], [i for i, mark in enumerate(line) if mark in "+|"]
        else:
            row.append([line[i + 1 : j] for i, j in itertools.pairwise(edges)])


if __name__ == "__main__":
    main()
