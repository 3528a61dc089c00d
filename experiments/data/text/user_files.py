"""`files:GLOB`: the user's own text files; `**` in the pattern stands for any folders.

A file is a document, named by its place below the part of the pattern without wildcards. Its
paragraphs are what blank lines separate; in a file without blank lines, every line is one. The
label is the name of the file's folder, if there are several. The text is read anew each time.

Whole files are held out. Of one or two files that is not possible: they are cut into ten pieces of
consecutive paragraphs, and these are the documents.
"""

import codecs
import glob
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from experiments.data.errors import DataUnavailable
from experiments.data.original import Arrays
from experiments.data.raw_text import lines_of
from experiments.data.text.plain_text import Document, pack, split_by_document

SCHEME = "files:"
_FEWEST_FILES = 3
_PIECES = 10
_WILDCARD = re.compile(r"[*?\[]")


def read(pattern: str) -> Arrays:
    """Packed text of the three splits.

    Raises `DataUnavailable` if no file fits the pattern, one cannot be read, or all together have
    too few paragraphs for three splits.
    """
    documents = list(_documents(pattern))
    with_text = [document for document in documents if document.paragraphs]
    if len(with_text) < _FEWEST_FILES:
        print(
            f"{SCHEME}{pattern}: files with text are only {len(with_text)}, so pieces of "
            "them are held out instead of whole files",
            file=sys.stderr,
        )
        empty = [document for document in documents if not document.paragraphs]
        documents = [*empty, *itertools.chain.from_iterable(map(_pieces, with_text))]
    splits = split_by_document(documents)
    if not all(splits.values()):
        paragraphs = sum(len(document.paragraphs) for document in documents)
        raise DataUnavailable(
            f"{SCHEME}{pattern}: {paragraphs} paragraphs in {len(with_text)} files: training, "
            "validation and testing need three files with text, or three paragraphs, separated by "
            "blank lines"
        )
    return pack(splits)


def labels(pattern: str) -> tuple[str, ...]:
    """The names of the files' folders, sorted, if there are several; no file is read."""
    folders = {_folder(path) for path in _files(pattern)}
    return tuple(sorted(folders)) if len(folders) > 1 else ()


def _files(pattern: str) -> list[Path]:
    found = map(Path, glob.iglob(str(Path(pattern).expanduser()), recursive=True))
    files = sorted({path for path in found if path.is_file()})
    if not files:
        raise DataUnavailable(
            f"{SCHEME}{pattern}: no file fits this pattern (looked for from {Path.cwd()})"
        )
    return files


def _folder(path: Path) -> str:
    return path.absolute().parent.name


def _documents(pattern: str) -> Iterator[Document]:
    known = labels(pattern)
    fixed = Path(pattern).expanduser()
    while _WILDCARD.search(str(fixed)):
        fixed = fixed.parent
    root = fixed.parent if fixed.is_file() else fixed
    for path in _files(pattern):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataUnavailable(f"{path}: cannot be read ({error.strerror or error})") from error
        label = _folder(path) if known else ""
        yield Document(path.relative_to(root).as_posix(), label, tuple(paragraphs(content)))


def paragraphs(content: bytes) -> Iterator[bytes]:
    """The paragraphs of a file.

    >>> list(paragraphs(b"One, which\\ngoes on.\\n \\nTwo.\\n"))
    [b'One, which goes on.', b'Two.']
    >>> list(paragraphs(b"One.\\nTwo.\\n"))
    [b'One.', b'Two.']
    """
    lines = [line.strip() for line in lines_of(content.removeprefix(codecs.BOM_UTF8))]
    blocks = [list(block) for filled, block in itertools.groupby(lines, key=bool) if filled]
    if len(blocks) == 1:
        yield from blocks[0]
    else:
        yield from (b" ".join(block) for block in blocks)


def _pieces(document: Document) -> Iterator[Document]:
    count = len(document.paragraphs)
    for piece in range(min(_PIECES, count)):
        start, end = (count * i // min(_PIECES, count) for i in (piece, piece + 1))
        text = document.paragraphs[start:end]
        yield Document(f"{document.name} piece {piece}", document.label, text)
