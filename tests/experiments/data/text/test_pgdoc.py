"""PostgreSQL's manual: paragraphs and labels of pages, and a fabricated package end to end."""

import hashlib

import archives
import pytest

from experiments.data import DataCorrupt, DataUnavailable
from experiments.data.catalog import text_set
from experiments.data.lookup import find
from experiments.data.text import pgdoc

FOLDER = "usr/share/doc/postgresql-doc-15/html/"


def page(title, above, *body):
    """As DocBook's stylesheets write it, the header with links and a table of contents first."""
    link = f'<a accesskey="u" href="{above}" title="x">Up</a>' if above else ""
    header = (
        '<div class="navheader"><table summary="Navigation header"><tr><th>Not this</th></tr>'
        f'<tr><td><a accesskey="p" href="other.html">Prev</a></td><td>{link}</td></tr></table>'
        "<hr /></div>"
    )
    toc = '<div class="toc"><p>Table of Contents</p><dl><dt><div>not</div>this</dt></dl></div>'
    footer = '<div class="navfooter"><hr /><p>nor this</p></div>'
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<html><head><title>{title}</title></head>'
        f"<body>{header}<div><h1>{title}</h1>{toc}{''.join(body)}</div>{footer}</body></html>"
    )


def manual(sections=6):
    """Two parts of chapters of sections, and what is in no part."""
    pages = {
        "index.html": page("Manual", ""),
        "preface.html": page("Preface", "index.html", "<p>What it is.</p>"),
        "bookindex.html": page("Index", "index.html", '<div class="index"><p>A, 1</p></div>'),
    }
    for part, title in (
        ("tutorial", "Part I.\u00a0Tutorial"),
        ("sql", "Part II. The SQL Language"),
    ):
        pages[f"{part}.html"] = page(title, "index.html")
        pages[f"{part}-chapter.html"] = page("Chapter 1. C", f"{part}.html", "<p>In short.</p>")
        for i in range(sections):
            text = f"<p>Section {i} of the {part} is about this.</p>"
            pages[f"{part}-{i}.html"] = page(f"1.{i}. S", f"{part}-chapter.html", text)
    return pages


def write(data_dir, pages, version="15.1-1", folder=FOLDER):
    (data_dir / "pgdoc").mkdir(parents=True, exist_ok=True)
    path = data_dir / "pgdoc" / f"postgresql-doc-15_{version}_all.deb"
    files = {f"{folder}{name}": text for name, text in pages.items()}
    path.write_bytes(archives.package(files | {f"{folder}logo.svg": "<p>no page</p>"}))
    return path


def load(**arguments):
    return find(text_set("pgdoc"), download="never", **arguments)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("<p>a <b>b</b>\n c</p><p> \n</p><p>d</p>", ["a b c", "d"]),
        ("<p>a &amp; b &lt;c&gt;\u00a0&nbsp;d&#8212;e</p>", ["a & b <c> d—e"]),
        ("<ul><li><p>one</p></li><li>two<br />three</li></ul>", ["one", "two three"]),
        ("<dl><dt><span>name</span></dt><dd>what</dd></dl>", ["name", "what"]),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td><p>c</p></td></tr></table>", ["a b", "c"]),
        ("<pre>SELECT a,\n       b;\n\n  SELECT 1;</pre>", ["SELECT a, b;", "SELECT 1;"]),
        ('<div class="note"><h3>Note</h3>text</div> after', ["Note", "text", "after"]),
        ('x<div class="toc"><div>y</div>z</div>w', ["x", "w"]),
        ("never <p>ended", ["never", "ended"]),
    ],
)
def test_paragraphs_of_a_page(body, expected):
    found = pgdoc.Page(page("T", "index.html", body))
    assert found.paragraphs == ["T", *expected]
    assert (found.title, found.above) == ("T", "index.html")


def test_labels_are_the_parts_and_each_is_in_every_split(data_dir):
    write(data_dir, manual())
    splits = load().splits
    labels = {
        document.name: document.label for documents in splits.values() for document in documents
    }
    for name, label in labels.items():
        part = name.removesuffix(".html").partition("-")[0]
        assert label == {"tutorial": "Tutorial", "sql": "The SQL Language"}.get(part, "")
    assert labels.keys() == manual().keys()
    for documents in splits.values():
        assert {"Tutorial", "The SQL Language"} <= {document.label for document in documents}
    assert {"Tutorial", "The SQL Language"} <= set(text_set("pgdoc").labels)


def test_pages_that_are_above_one_another_have_no_label(data_dir):
    pages = manual() | {
        "a.html": page("A", "b.html"),
        "b.html": page("B", "a.html"),
        "c.html": page("C", "missing.html"),
    }
    write(data_dir, pages)
    labels = {d.name: d.label for documents in load().splits.values() for d in documents}
    assert [labels[f"{name}.html"] for name in "abc"] == ["", "", ""]


def test_text_that_is_no_utf8_is_kept_as_it_is(data_dir):
    write(data_dir, manual() | {"x.html": page("X", "index.html", "<p>caf\udce9</p>")})
    documents = [d for documents in load().splits.values() for d in documents]
    assert [d.paragraphs for d in documents if d.name == "x.html"] == [(b"X", b"caf\xe9")]


def test_the_version_is_recorded_and_another_one_than_the_known_only_warns(data_dir, capsys):
    path = write(data_dir, manual())
    text = load()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"{path.name} sha256:{digest}" in text.origin
    message = capsys.readouterr().err
    assert message.startswith("pgdoc: another version than the one that the committed results")
    assert text.fingerprint in message
    write(data_dir, manual(7), "15.10-1")  # newer than 15.1
    newer = load()
    assert "15.10-1_all.deb" in newer.origin and newer.fingerprint != text.fingerprint


def test_packages_of_something_else_are_refused(data_dir):
    path = write(data_dir, manual(), folder="usr/share/doc/postgresql-doc-14/html/")
    with pytest.raises(DataCorrupt, match=f"{path}: it has no pages in {FOLDER}"):
        load()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataCorrupt, match="damaged at byte"):
        load()


def test_what_to_do_without_the_package(data_dir):
    with pytest.raises(DataUnavailable) as error:
        find(text_set("pgdoc"))
    text = str(error.value)
    folder = data_dir / "pgdoc"
    assert f"1. mkdir -p {folder} && cd {folder} && apt-get download postgresql-doc-15\n" in text
    assert "apt:postgresql-doc-15: there is no apt-get on this machine" in text
    assert "--config.data.name=pydoc" in text
