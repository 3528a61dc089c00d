"""`iwslt14_de_en`: talks, translated for the 11th IWSLT campaign (Cettolo et al. 2014).

The archive `de-en.tgz` is split as fairseq's `prepare-iwslt14.sh` does, the usual preparation and
that of arXiv 2105.01029:

* training text is `train.tags.de-en.{de,en}` without the lines that hold an address, an id or
  keywords of a talk, and without the tags around titles and descriptions;
* of it, pairs are kept with 1 to 175 tokens a side, the longer at most 1.5 times the shorter; of
  these, every 23rd is for validation;
* the test set is dev2010, dev2012 (TEDX), tst2010, tst2011 and tst2012, in this order.

The script tokenizes with Moses and lower-cases. Here, text is left as it is, because SentencePiece
takes it so and sacreBLEU scores it so; a token, where they are counted, is a word or a single other
character. So a few pairs at the limits may be others than the script's, and so the validation set.
"""

import gzip
import html
import io
import re
import tarfile
import zlib
from pathlib import Path

from experiments.data.errors import DataCorrupt
from experiments.data.original import Arrays
from experiments.data.raw_text import lines_of
from experiments.data.translation.parallel_text import pack, paired

_TEST_SETS = (
    "IWSLT14.TED.dev2010",
    "IWSLT14.TEDX.dev2012",
    "IWSLT14.TED.tst2010",
    "IWSLT14.TED.tst2011",
    "IWSLT14.TED.tst2012",
)
_MEMBERS = tuple(
    f"de-en/{member}"
    for member in (
        *(f"train.tags.de-en.{language}" for language in ("de", "en")),
        *(f"{name}.de-en.{language}.xml" for name in _TEST_SETS for language in ("de", "en")),
    )
)
_DROPPED_LINE = re.compile(rb"<url>|<talkid>|<keywords>")
_DROPPED_TAG = re.compile(rb"</?(?:title|description)>")
_SEGMENT = re.compile(rb'<seg id="[0-9]*">\s*(.*?)\s*</seg>')
_TOKEN = re.compile(r"\w+|[^\w\s]")
_MOST_TOKENS = 175
_LARGEST_RATIO = 1.5
_VALIDATION_EVERY = 23


def read(archive: Path) -> Arrays:
    """Packed text of the three splits.

    Raises `DataCorrupt`, with the member's name, if the archive is damaged or not this one.
    """
    contents = _contents(archive)
    lines = {
        name: _segments(content) if name.endswith(".xml") else _training_lines(content)
        for name, content in contents.items()
    }
    pairs, *test_sets = (
        paired(f"{archive}: {german}", lines[german], english, lines[english])
        for german, english in zip(_MEMBERS[::2], _MEMBERS[1::2], strict=True)
    )
    clean = [pair for pair in pairs if _is_clean(*pair)]
    return pack(
        {
            "train": [pair for i, pair in enumerate(clean, 1) if i % _VALIDATION_EVERY],
            "validation": clean[_VALIDATION_EVERY - 1 :: _VALIDATION_EVERY],
            "test": [pair for pairs in test_sets for pair in pairs],
        }
    )


def _contents(path: Path) -> dict[str, bytes]:
    """The members of interest, in memory; nothing is extracted."""
    contents = {}
    try:
        # Decompressed as a whole, which checks all of it: there is no checksum to go by.
        content = gzip.decompress(path.read_bytes())
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                name = member.name.removeprefix("./")
                if file is not None and name in _MEMBERS:
                    contents[name] = file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataCorrupt(f"{path}: damaged ({error}); delete it and get it again") from error
    if missing := [name for name in _MEMBERS if name not in contents]:
        raise DataCorrupt(f"{path}: {missing[0]} is not in the archive")
    return contents


def _training_lines(content: bytes) -> list[bytes]:
    return [
        _DROPPED_TAG.sub(b"", line).strip()
        for line in lines_of(content)
        if not _DROPPED_LINE.search(line)
    ]


def _segments(content: bytes) -> list[bytes]:
    """The text of the segments, one a line; typographic apostrophes become plain ones."""
    found = (_SEGMENT.search(line) for line in lines_of(content))
    return [
        html.unescape(match[1].decode(errors="surrogateescape"))
        .replace("’", "'")
        .encode(errors="surrogateescape")
        for match in found
        if match is not None
    ]


def _is_clean(german: bytes, english: bytes) -> bool:
    tokens = sorted(
        len(_TOKEN.findall(line.decode(errors="replace"))) for line in (german, english)
    )
    return tokens[0] >= 1 and tokens[1] <= min(_MOST_TOKENS, _LARGEST_RATIO * tokens[0])
