"""Small parallel texts, written as the original files of the true layout."""

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from archives import package

LOHELP_200 = Path(__file__).parent / "lohelp_200.tsv.gz"


def lohelp_200() -> list[tuple[str, str]]:
    """The 200 committed pairs of real text."""
    lines = gzip.decompress(LOHELP_200.read_bytes()).decode().splitlines()
    return [(german, english) for german, english in (line.split("\t") for line in lines)]


def _thousandth(page: str) -> int:
    """Where a page belongs: below 25 testing, below 50 validation, else training."""
    return int(hashlib.sha256(page.encode()).hexdigest(), 16) % 1000


# A page of each split.
LOHELP_PAGES = {
    split: next(
        page
        for page in (f"shared/{i}.html" for i in range(9999))
        if _thousandth(page) in thousandths
    )
    for split, thousandths in (
        ("test", range(25)),
        ("validation", range(25, 50)),
        ("train", range(50, 1000)),
    )
}


def write_lohelp(folder: Path, pages: Mapping[str, tuple[str, str]], version: str) -> None:
    """The two packages, of pages in German and English."""
    folder.mkdir(parents=True, exist_ok=True)
    for side, (name, language) in enumerate((("de", "de"), ("en-us", "en-US"))):
        files = {
            f"usr/share/libreoffice/help/{language}/text/{page}": texts[side]
            for page, texts in pages.items()
        }
        files |= {"usr/share/doc/copyright": "MPL-2.0"}
        path = folder / f"libreoffice-help-{name}_4%3a{version}_all.deb"
        path.write_bytes(package(files))


def write_user_files(folder: Path, lines: Mapping[str, Sequence[bytes]]) -> None:
    """One file per name, every line ended."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in lines.items():
        (folder / name).write_bytes(b"".join(line + b"\n" for line in content))
