"""`lohelp`: the help of LibreOffice, in German and English; about 35,000 pairs of sentences.

Debian's packages `libreoffice-help-de` and `libreoffice-help-en-us` (MPL-2.0) hold the same HTML
pages, whose paragraphs carry the same ids, so the alignment is exact. Two paragraphs with equally
many sentences are aligned sentence by sentence, others as wholes.

Kept are pairs of 3 to 100 words a side, the longer at most 2.5 times the shorter, that are not
the same and have a word in English. Of German sentences with the same English (but for case and
punctuation), the first is kept. Whole pages are for training, validation or testing, by a hash of
their name; and because user interface text comes back on many pages, validation and test pairs go
whose source or target is in the training text, again but for case and punctuation. That is more
than a quarter of them.
"""

import hashlib
import re
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from experiments.data import debian_package
from experiments.data.debian_package import PackageName
from experiments.data.errors import DataCorrupt
from experiments.data.original import Arrays
from experiments.data.raw_text import SPLITS, words_alone
from experiments.data.translation.parallel_text import pack

_FOLDER = "usr/share/libreoffice/help/{}/text/"
_WORDS = range(3, 101)
_LARGEST_RATIO = 2.5

_PARAGRAPH_TAGS = frozenset(("p", "h1", "h2", "h3", "h4", "h5", "h6", "li"))
_PARAGRAPH_ID = re.compile(r"(par|hd)_id")
_UNSEEN = str.maketrans({"\u00ad": "", "\u200b": ""})  # soft hyphen, zero-width space
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-ZÄÖÜ„\"“(])")
_ABBREVIATION = re.compile(
    r"\b(?:z\. ?B|d\. ?h|u\. ?a|bzw|usw|ca|Nr|vgl|ggf|evtl|inkl|Abb|s|"
    r"etc|e\.g|i\.e|vs|Fig|No|approx)\.$"
)


class Pair(NamedTuple):
    """A German and an English sentence, and the page they are from."""

    page: str
    german: str
    english: str


def read(german: Path, english: Path) -> Arrays:
    """Packed text of the three splits, from the two packages.

    Raises `DataCorrupt` if they are of two versions, damaged, or hold no common pages.
    """
    versions = [PackageName.of(path).version for path in (german, english)]
    if versions[0] != versions[1]:
        raise DataCorrupt(
            f"{german} is of version {versions[0]} and {english.name} of {versions[1]}: expected "
            "the same; delete them and get both again"
        )
    pairs = aligned(_pages(german, "de"), _pages(english, "en-US"))
    if not pairs:
        raise DataCorrupt(f"{german} and {english.name} have no sentences in common")
    return pack(
        {
            split: [(pair.german.encode(), pair.english.encode()) for pair in chosen]
            for split, chosen in split_by_page(pairs).items()
        }
    )


def _pages(package: Path, language: str) -> dict[str, dict[str, str]]:
    """The paragraphs of every page, by their ids."""
    return {
        name: paragraphs(content.decode(errors="replace"))
        for name, content in debian_package.files(package, _FOLDER.format(language))
        if name.endswith(".html")
    }


def paragraphs(html: str) -> dict[str, str]:
    """The text of every paragraph of a page that has an id; of two with one id, the first.

    >>> paragraphs('<p id="par_id1">Klicken Sie<br>auf <b>OK</b>.</p><p>Ende</p>')
    {'par_id1': 'Klicken Sie auf OK.'}
    """
    parser = _ParagraphParser()
    parser.feed(html)
    return parser.found


class _Open:
    """A paragraph that has not ended: tag, id, what it holds, and open tags like its own."""

    def __init__(self, tag: str, id: str):
        self.tag = tag
        self.id = id
        self.text: list[str] = []
        self.inner = 0


class _ParagraphParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: dict[str, str] = {}
        self._open: list[_Open] = []
        self._scripts = 0
        # What holds for macOS stands beside what holds elsewhere, in a span that may hold others.
        self._mac_spans = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "span" and (self._mac_spans or "MAC" in (attributes.get("class") or "").split()):
            self._mac_spans += 1
        if tag in ("script", "style"):
            self._scripts += 1
        if tag == "br" and self._open:
            self._open[-1].text.append(" ")
        id = attributes.get("id") or ""
        if tag in _PARAGRAPH_TAGS and _PARAGRAPH_ID.match(id):
            self._open.append(_Open(tag, id))
        elif self._open and tag == self._open[-1].tag:
            self._open[-1].inner += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "span" and self._mac_spans:
            self._mac_spans -= 1
        if tag in ("script", "style") and self._scripts:
            self._scripts -= 1
        if not self._open or tag != self._open[-1].tag:
            return
        if self._open[-1].inner:
            self._open[-1].inner -= 1
            return
        ended = self._open.pop()
        text = " ".join("".join(ended.text).translate(_UNSEEN).split())
        self.found.setdefault(ended.id, text)

    def handle_data(self, data: str) -> None:
        if self._open and not self._scripts and not self._mac_spans:
            self._open[-1].text.append(data)


def aligned(german: dict[str, dict[str, str]], english: dict[str, dict[str, str]]) -> list[Pair]:
    """The clean pairs of sentences of pages that both languages have, in the order of the pages."""
    pairs = []
    for page in sorted(english):
        for id, english_text in english[page].items():
            german_text = german.get(page, {}).get(id)
            if not german_text:
                continue
            sides = sentences(german_text), sentences(english_text)
            if len(sides[0]) != len(sides[1]):
                sides = [german_text], [english_text]
            pairs += [Pair(page, *pair) for pair in zip(*sides, strict=True) if _is_clean(*pair)]
    return pairs


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph.

    >>> sentences("Das gilt für Nr. A und B. Klicken Sie hier!")
    ['Das gilt für Nr. A und B.', 'Klicken Sie hier!']
    """
    found: list[str] = []
    for part in _SENTENCE_END.split(text):
        if found and _ABBREVIATION.search(found[-1]):
            found[-1] += f" {part}"
        else:
            found.append(part)
    return found


def _is_clean(german: str, english: str) -> bool:
    words = sorted((len(german.split()), len(english.split())))
    return (
        all(number in _WORDS for number in words)
        and words[1] <= _LARGEST_RATIO * words[0]
        and german != english
        and re.search("[A-Za-z]{2}", english) is not None
    )


def split_by_page(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    """The pairs of each split: about 2.5 % of the pages are for testing and for validation each."""
    splits: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for pair in pairs:
        part = int(hashlib.sha256(pair.page.encode()).hexdigest(), 16) % 1000
        split = "test" if part < 25 else "validation" if part < 50 else "train"
        splits[split].append(pair)
    seen = {words_alone(text) for pair in splits["train"] for text in (pair.german, pair.english)}
    for split in ("validation", "test"):
        splits[split] = [
            pair
            for pair in splits[split]
            if words_alone(pair.german) not in seen and words_alone(pair.english) not in seen
        ]
    return {split: _one_for_each_english(chosen) for split, chosen in splits.items()}


def _one_for_each_english(pairs: Iterable[Pair]) -> list[Pair]:
    first: dict[str, Pair] = {}
    for pair in pairs:
        first.setdefault(words_alone(pair.english), pair)
    return list(first.values())
