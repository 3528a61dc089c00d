"""`ted_de_en`: the German and English of TED talks in 60 languages.

From Qi et al. 2018 (arXiv:1804.06323). A table per split, `all_talks_{train,dev,test}.tsv` in the
archive `ted_talks.tar.gz`: a row is a sentence, a column a language, and what is not translated is
empty or says NULL. Rows that have both languages are kept. TFDS has the same rows as
`ted_multi_translate`, with the translations that are not there left out.
"""

import tarfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.data import tfds_folder
from experiments.data.errors import DataCorrupt
from experiments.data.original import Arrays
from experiments.data.raw_text import SPLITS, lines_of
from experiments.data.translation.parallel_text import pack

_TABLES = {
    "all_talks_train.tsv": "train",
    "all_talks_dev.tsv": "validation",
    "all_talks_test.tsv": "test",
}
_TFDS_NAME = "ted_multi_translate"
_NULL = (b"__NULL__", b"_ _ NULL _ _")


def read_archive(path: Path) -> Arrays:
    """Packed text of the three splits, from the archive.

    Raises `DataCorrupt`, with the table's name, if it is damaged or holds something else.
    """
    splits = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                split = _TABLES.get(Path(member.name).name)
                content = archive.extractfile(member) if member.isfile() else None
                if split is not None and content is not None:
                    splits[split] = _complete(_rows(f"{path}: {member.name}", content.read()))
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataCorrupt(f"{path}: damaged ({error}); delete it and get it again") from error
    if missing := [name for name, split in _TABLES.items() if split not in splits]:
        raise DataCorrupt(f"{path}: {missing[0]} is not in the archive")
    return pack(splits)


def read_prepared(folder: Path) -> Arrays:
    """Packed text of the three splits, from the folder of a version that TFDS has prepared."""

    def translations(features: Any) -> dict[str, bytes]:
        languages = features["translations/language"].bytes_list.value
        texts = features["translations/translation"].bytes_list.value
        return dict(zip((language.decode() for language in languages), texts, strict=True))

    return pack(
        {
            split: _complete(
                tfds_folder.read_split(folder, _TFDS_NAME, split, "hash", translations)
            )
            for split in SPLITS
        }
    )


def _rows(where: str, table: bytes) -> list[dict[str, bytes]]:
    """The two columns, by language."""
    header, *lines = (line.split(b"\t") for line in lines_of(table) or [b""])
    if not {b"de", b"en"} <= set(header):
        raise DataCorrupt(f"{where} has no columns de and en")
    columns = {language: header.index(language.encode()) for language in ("de", "en")}
    return [
        {language: line[i] for language, i in columns.items() if i < len(line)} for line in lines
    ]


def _complete(rows: Iterable[Mapping[str, bytes]]) -> list[tuple[bytes, bytes]]:
    """The pairs of the rows that have both languages."""
    pairs = ((row.get("de", b""), row.get("en", b"")) for row in rows)
    return [
        pair for pair in pairs if all(text and not any(n in text for n in _NULL) for text in pair)
    ]
