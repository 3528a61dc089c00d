"""The embedded topics of Python's help: what they are, and that they are made as stated."""

import lzma
import re
import sys
from collections import Counter
from itertools import chain

import numpy as np
import pytest

from experiments.data import DataUnavailable, make_pydoc
from experiments.data.catalog import text_set
from experiments.data.lookup import find
from experiments.data.text import pydoc
from experiments.data.text.plain_text import unpacked


@pytest.fixture(scope="module")
def splits():
    return find(text_set("pydoc")).splits


def test_every_label_is_in_every_split(splits):
    entry = text_set("pydoc")
    for documents in splits.values():
        assert {document.label for document in documents} == {*entry.labels, ""}
    assert set(make_pydoc.TOPICS) == {*entry.labels, ""}
    sizes = {split: sum(d.size for d in documents) for split, documents in splits.items()}
    total = sum(sizes.values())
    assert 300_000 < total < 400_000
    for split in ("validation", "test"):
        assert 0.06 * total < sizes[split] <= 0.1 * total


def test_no_paragraph_is_in_two_topics(splits):
    documents = list(chain(*splits.values()))
    count = Counter(text for document in documents for text in set(document.paragraphs))
    assert max(count.values()) == 1
    names = [document.name for document in documents]
    assert len(set(names)) == len(names)
    # "else" holds what "if" would, and what is left of "compound" is the match statement
    assert {"else", "compound", "match"} & set(names) == {"else", "compound"}
    assert not any(re.fullmatch(rb"\W+", text) and len(text) > 6 for text in count)


def test_every_topic_is_of_one_part():
    topics = " ".join(make_pydoc.TOPICS.values()).split()
    assert len(set(topics)) == len(topics) == 79
    with pytest.raises(KeyError, match="unheard-of"):
        make_pydoc.documents({"unheard-of": "text"})


TABLE = """\
+-------------+----------------+
| Operator    | Description    |
|=============|================|
| "x[index]", | Subscription,  |
| "x(a)"      | call           |
+-------------+----------------+
| "a" | "b"   | Or             |
+-------------+----------------+"""


def test_paragraphs_of_headings_tables_and_code():
    text = f'Calls\n*****\n\nA call\ncalls.\n\n{TABLE}\n\n   call ::= a\n          "()"\n'
    expected = ["Calls", "A call calls.", "Operator Description"]
    expected += ['"x[index]", "x(a)" Subscription, call', '"a" | "b" Or', 'call ::= a "()"']
    assert list(make_pydoc.paragraphs(text)) == expected


def test_a_paragraph_stays_in_the_smallest_topic():
    texts = {"if": "One\n\nTwo", "compound": "Three\n\nTwo\n\nOne", "while": "Two"}
    found = {d.name: d.paragraphs for d in make_pydoc.documents(texts)}
    assert found == {"while": (b"Two",), "if": (b"One",), "compound": (b"Three",)}


@pytest.mark.skipif(sys.version_info[:3] != make_pydoc.VERSION, reason="other topics")
def test_the_file_is_what_is_made_of_these_topics():
    content = lzma.decompress(pydoc.FILE.read_bytes())
    assert unpacked(np.frombuffer(content, np.uint8)) == make_pydoc.documents(make_pydoc.topics)


def test_size_and_licence():
    assert pydoc.FILE.stat().st_size < 1e5
    licence = (pydoc.FILE.parent / "pydoc.LICENSE").read_text()
    assert "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in licence
    assert "Copyright (c) 2001, 2002" in licence and "Changes made" in licence


def test_it_is_nowhere_else():
    with pytest.raises(DataUnavailable, match=r"'pydoc' is embedded; data.source=files does not"):
        find(text_set("pydoc"), source="files")
