"""LibreOffice's help: paragraphs, sentences, cleaning, splits, and both packages end to end."""

import hashlib
from pathlib import Path

import parallel_files
import pytest
from parallel_files import LOHELP_PAGES as PAGES

from experiments.data import DataCorrupt, DataUnavailable
from experiments.data.catalog import translation_set
from experiments.data.lookup import find
from experiments.data.translation import lohelp
from experiments.data.translation.lohelp import Pair


def load(**arguments):
    return find(translation_set("lohelp"), download="never", **arguments)


def page(*paragraphs):
    body = "".join(f'<p id="par_id{i}" class="x">{text}</p>\n' for i, text in enumerate(paragraphs))
    return f"<html><head><title>t</title></head><body>{body}</body></html>"


@pytest.fixture
def packages(data_dir):
    pages = {
        PAGES["train"]: (
            page("Erste Seite hier. Ein zweiter Satz folgt.", "Nur auf dieser Seite."),
            page("First page right here. A second sentence follows.", "Only on this page."),
        ),
        PAGES["validation"]: (
            page("Noch eine neue Seite.", "Ein zweiter Satz folgt!"),
            page("Yet another new page.", "It is found in training."),
        ),
        PAGES["test"]: (
            page("Das wird am Ende geprüft.", "Kommt im Training vor."),
            page("This is tested in the end.", "only on THIS page"),
        ),
    }
    parallel_files.write_lohelp(data_dir / "lohelp", pages, "1.0")
    return data_dir / "lohelp"


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ('<p id="par_id1">a <b>b</b>\n c</p>', "a b c"),
        ('<h2 id="hd_id1">a<br>b</h2>', "a b"),
        ('<p id="par_id1">a &amp; b &lt;c&gt;&nbsp;d</p>', "a & b <c> d"),
        ('<p id="par_id1">co\u00adop\u200b</p>', "coop"),
        ('<p id="par_id1">a<script>if (x) { y }</script> b<style>z</style></p>', "a b"),
        (
            '<p id="par_id1">press <span class="MAC">Cmd<span>+</span>C</span>'
            '<span class="WIN">Ctrl+C</span> now</p>',
            "press Ctrl+C now",
        ),
        ('<li id="par_id1">a<ul><li>b</li></ul>c</li>', "abc"),
        ('<p id="par_id1">first</p><p id="par_id1">again</p>', "first"),
    ],
)
def test_the_text_of_a_paragraph(html, expected):
    assert list(lohelp.paragraphs(html).values()) == [expected]


def test_paragraphs_without_a_fitting_id_or_an_end_are_none():
    assert lohelp.paragraphs('<p>a</p><p id="bm_id1">b</p><div id="par_id2">c</div>') == {}
    assert lohelp.paragraphs('<p id="par_id1">never ended') == {}
    inner = '<li id="par_id1">a <p id="par_id2">b</p> c</li>'
    assert lohelp.paragraphs(inner) == {"par_id1": "a c", "par_id2": "b"}


def test_alignment_by_page_and_id_and_sentence():
    german = {
        "p": {
            "1": "Das ist eins. Das ist zwei.",
            "2": "Nur ein einziger Satz.",
            "3": "Fehlt dort.",
        },
        "q": {"1": "Seite nur auf Deutsch."},
    }
    english = {
        "p": {"2": "Only one. It is two.", "1": "This is one. This is two.", "4": "Not in German."},
    }
    assert lohelp.aligned(german, english) == [
        Pair("p", "Nur ein einziger Satz.", "Only one. It is two."),
        Pair("p", "Das ist eins.", "This is one."),
        Pair("p", "Das ist zwei.", "This is two."),
    ]


@pytest.mark.parametrize(
    ("german", "english", "kept"),
    [
        ("eins zwei drei", "one two three", True),
        ("eins zwei", "one two three", False),
        ("w " * 100, "word " * 100, True),
        ("w " * 101, "word " * 100, False),
        ("a b c d", "one two three four five six seven eight nine ten", True),
        ("a b c d", "one two three four five six seven eight nine ten eleven", False),
        ("one two three", "one two three", False),
        ("eins zwei drei", "1 2 3", False),
    ],
)
def test_cleaning(german, english, kept):
    pairs = lohelp.aligned({"p": {"1": german.strip()}}, {"p": {"1": english.strip()}})
    assert len(pairs) == kept


def test_one_german_sentence_for_each_english_one():
    pairs = [
        Pair(PAGES["train"], "Klicken Sie auf OK.", "Click the OK button."),
        Pair(PAGES["train"], "Drücken Sie auf OK.", "Click the OK button!"),
    ]
    assert lohelp.split_by_page(pairs)["train"] == pairs[:1]


def test_packages_to_splits(packages):
    text = load()
    assert text.splits == {
        "train": (
            (b"Erste Seite hier.", b"First page right here."),
            (b"Ein zweiter Satz folgt.", b"A second sentence follows."),
            (b"Nur auf dieser Seite.", b"Only on this page."),
        ),
        "validation": ((b"Noch eine neue Seite.", b"Yet another new page."),),
        "test": (("Das wird am Ende geprüft.".encode(), b"This is tested in the end."),),
    }


def test_versions_are_recorded_and_another_one_than_the_known_only_warns(packages, capsys):
    text = load()
    for path in packages.glob("*.deb"):
        assert f"{path.name} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" in text.origin
    message = capsys.readouterr().err
    assert message.startswith("lohelp: another version than the one that the committed results")
    assert text.fingerprint in message


def test_the_cache_is_of_the_packages_that_are_there(packages, data_dir, monkeypatch):
    first = load()
    monkeypatch.setattr(lohelp, "_pages", None)  # whoever reads packages now, fails
    assert load() == first
    monkeypatch.undo()
    german = ("Ein ganz anderer Satz.", "Noch ein anderer Satz.", "Das ist der dritte Satz.")
    pages = {
        name: (page(text), page(f"Another sentence, number {i}."))
        for i, (name, text) in enumerate(zip(PAGES.values(), german, strict=True))
    }
    parallel_files.write_lohelp(data_dir / "lohelp", pages, "1.10")  # newer than 1.0
    second = load(dir=str(data_dir))
    assert second.fingerprint != first.fingerprint
    assert "1.10_all.deb" in second.origin
    for path in packages.glob("*.deb"):
        path.unlink()
    assert load(dir=str(data_dir)).fingerprint == second.fingerprint


def test_two_versions_are_refused(packages):
    path = next(packages.glob("*-de_*"))
    path.rename(path.with_name(path.name.replace("1.0", "1.1")))
    with pytest.raises(DataCorrupt, match=r"-de_4%3a1.1_all.deb is of version 4:1.1 and.*4:1.0"):
        load()


def test_packages_of_nothing_are_refused(data_dir):
    parallel_files.write_lohelp(data_dir / "lohelp", {"a.html": ("<p>x</p>", "<p>x</p>")}, "1")
    with pytest.raises(DataCorrupt, match="have no sentences in common"):
        load()


def test_what_to_do_without_packages(data_dir):
    with pytest.raises(DataUnavailable) as error:
        find(translation_set("lohelp"))
    folder = data_dir / "lohelp"
    text = str(error.value)
    assert (
        f"1. mkdir -p {folder} && cd {folder} && apt-get download libreoffice-help-de "
        "libreoffice-help-en-us\n"
    ) in text
    assert "apt:libreoffice-help-de: there is no apt-get on this machine" in text
    assert f"or put libreoffice-help-de_*.deb, libreoffice-help-en-us_*.deb into {folder}\n" in text
    assert "--config.data.name=numwords" in text


def test_the_genuine_packages_have_the_known_pairs(tmp_path, capsys):
    packages = Path.home() / ".cache" / "lowrank_jax" / "lohelp"
    if not list(packages.glob("*4%3a7.4.7-1+deb12u14_all.deb")):
        pytest.skip("needs `python -m experiments.data fetch lohelp`")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "lohelp").symlink_to(packages)
    text = load(source="files")
    sizes = {split: len(pairs) for split, pairs in text.splits.items()}
    assert sizes == {"train": 34_059, "validation": 939, "test": 723}
    assert capsys.readouterr().err == ""
