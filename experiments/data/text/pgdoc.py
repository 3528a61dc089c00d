"""`pgdoc`: the manual of PostgreSQL 15, about six megabytes of text on some 1,200 pages.

Debian's package `postgresql-doc-15` (PostgreSQL Licence) has it as HTML, a section a page; a page
is a document. Its paragraphs are those of the page, its headings, the items of lists, rows or cells
of tables and what blank lines separate in listings. Headers, footers and tables of contents are
left out, and so is the index.

The label of a page is the part of the manual that it is in: every page has a link to the one above
it, and a part's own page is directly below the front page. What is in no part (preface, legal
notice, bibliography) has no label.
"""

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

from experiments.data import debian_package
from experiments.data.errors import DataCorrupt
from experiments.data.original import Arrays
from experiments.data.text.plain_text import Document, pack, split_by_document

PACKAGE = "postgresql-doc-15"
LABELS = (
    "Appendixes",
    "Client Interfaces",
    "Internals",
    "Reference",
    "Server Administration",
    "Server Programming",
    "The SQL Language",
    "Tutorial",
)
_FOLDER = f"usr/share/doc/{PACKAGE}/html/"
_FRONT_PAGE = "index.html"

_BLOCKS = frozenset(
    ("p", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "blockquote", "div", "table", "tr")
    + ("ul", "ol", "li", "dl", "dt", "dd")
)
_SPACES = frozenset(("td", "th", "br"))
_LEFT_OUT = frozenset(("navheader", "navfooter", "toc", "index"))
_BLANK = re.compile(r"\n\s*\n")
_PART = re.compile(r"Part [IVX]+\. ")


class Page(HTMLParser):
    """A page of the manual, from its HTML.

    Attributes:
      title: its title.
      above: the name of the page above it, or an empty string.
      paragraphs: its text.

    >>> page = Page("<title>T</title><p>One <b>and</b><ul><li>two</li></ul>three")
    >>> page.title, page.paragraphs
    ('T', ['One and', 'two', 'three'])
    """

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.above = ""
        self.paragraphs: list[str] = []
        self._text: list[str] = []
        self._left_out = 0  # open <div> since one that is left out
        self.feed(html)
        self.close()
        self._end_block()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if attributes.get("accesskey") == "u":
            self.above = attributes.get("href", "")
        if tag == "div" and (
            self._left_out or _LEFT_OUT & set(attributes.get("class", "").split())
        ):
            self._left_out += 1
        self._between(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self.title = " ".join("".join(self._text).split())
            self._text = []
        if tag == "div" and self._left_out:
            self._left_out -= 1
        self._between(tag)

    def handle_data(self, data: str) -> None:
        if not self._left_out:
            self._text.append(data)

    def _between(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._end_block()
        elif tag in _SPACES:
            self._text.append(" ")

    def _end_block(self) -> None:
        for part in _BLANK.split("".join(self._text)):
            if paragraph := " ".join(part.split()):
                self.paragraphs.append(paragraph)
        self._text = []


def read(package: Path) -> Arrays:
    """Packed text of the three splits; `DataCorrupt` if the package is damaged or has no pages."""
    pages = {
        name: Page(content.decode(errors="surrogateescape"))
        for name, content in debian_package.files(package, _FOLDER)
        if name.endswith(".html")
    }
    if not pages:
        raise DataCorrupt(f"{package}: it has no pages in {_FOLDER}")
    return pack(split_by_document(_document(name, pages) for name in pages))


def _document(name: str, pages: Mapping[str, Page]) -> Document:
    text = (text.encode(errors="surrogateescape") for text in pages[name].paragraphs)
    return Document(name, _label(name, pages), tuple(text))


def _label(name: str, pages: Mapping[str, Page]) -> str:
    """The part that a page is in, or an empty string."""
    below = set()  # of a damaged manual, the pages may be above one another
    while name in pages and name not in below and pages[name].above != _FRONT_PAGE:
        below.add(name)
        name = pages[name].above
    title = pages[name].title if name in pages and name not in below else ""
    return _PART.sub("", title) if _PART.match(title) else ""
