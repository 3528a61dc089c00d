"""The archive of IWSLT'14, fabricated in its true layout."""

import archives
import pytest

from experiments.data import DataCorrupt, DataUnavailable
from experiments.data.catalog import translation_set
from experiments.data.lookup import find

TEST_SETS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")


def training(language, count):
    """Two talks; sentence `i` has the number `i` in it."""
    lines = []
    for talk, numbers in enumerate((range(count // 2), range(count // 2, count))):
        lines += [
            f"<url>http://www.ted.com/talks/{talk}.html</url>",
            "<keywords>talks, water</keywords>",
            "<speaker>kept by the script, hence the same in both</speaker>",
            f"<talkid>{talk}</talkid>",
            f"<title>Titel {language} {talk}</title>",
            f"<description>Was es ist {language} {talk}</description>",
        ]
        lines += [f" Satz {i} in {language} . " for i in numbers]
    return lines


def segments(name, language):
    head = ["<?xml version='1.0'?>", '<doc docid="1">', "<url>x</url>", "<title>not this</title>"]
    return [
        *head,
        f'<seg id="1"> {name} {language} It’s &amp; so </seg>',
        f'<seg id="2">{name} {language} zwei</seg>',
        "</doc>",
    ]


def members(count=60):
    lines = {f"train.tags.de-en.{lang}": training(lang, count) for lang in ("de", "en")}
    for name in TEST_SETS:
        for lang in ("de", "en"):
            lines[f"IWSLT14.{name}.de-en.{lang}.xml"] = segments(name, lang)
    return {f"de-en/{name}": ("\n".join(text) + "\n").encode() for name, text in lines.items()}


def write(data_dir, files):
    folder = data_dir / "iwslt14_de_en"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "de-en.tgz").write_bytes(archives.tar({"de-en/README": b"", **files}, "w:gz"))


def load():
    return find(translation_set("iwslt14_de_en"), download="never")


def test_splits_as_the_script_makes_them(data_dir):
    write(data_dir, members())
    text = load()
    expected = []
    for talk, numbers in enumerate((range(30), range(30, 60))):
        speaker = "<speaker>kept by the script, hence the same in both</speaker>"
        expected += [(speaker, speaker)]
        expected += [(f"Titel de {talk}", f"Titel en {talk}")]
        expected += [(f"Was es ist de {talk}", f"Was es ist en {talk}")]
        expected += [(f"Satz {i} in de .", f"Satz {i} in en .") for i in numbers]
    expected = [(source.encode(), target.encode()) for source, target in expected]
    # NR % 23 of the script's awk counts from one
    assert text.splits["validation"] == tuple(expected[22::23])
    assert text.splits["train"] == tuple(p for i, p in enumerate(expected) if i % 23 != 22)
    assert text.splits["test"] == tuple(
        tuple(f"{name} {language} {rest}".encode() for language in ("de", "en"))
        for name in TEST_SETS
        for rest in ("It's & so", "zwei")
    )


@pytest.mark.parametrize(
    ("source", "target", "kept"),
    [
        ("a b", "a b c", True),
        ("a b", "a b, c", False),  # four tokens, the comma is one
        ("w " * 175, "w " * 175, True),
        ("w " * 176, "w " * 175, False),
        ("", "", False),
        ("a", "", False),
    ],
)
def test_cleaning_of_the_training_text(source, target, kept, data_dir):
    files = members()
    for language, extra in (("de", source), ("en", target)):
        files[f"de-en/train.tags.de-en.{language}"] += f"{extra}\n".encode()
    write(data_dir, files)
    text = load()
    count = len(text.splits["train"]) + len(text.splits["validation"])
    assert count == 66 + kept


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "train.tags.de-en.de",
            lambda content: content + b"mehr\n",
            r"tgz: de-en/train.tags.de-en.de has 67 lines and .*/train.tags.de-en.en 66",
        ),
        (
            "IWSLT14.TED.tst2011.de-en.en.xml",
            lambda content: content.replace(b'<seg id="2">', b"<seg>"),
            r"tst2011.de-en.de.xml has 2 lines and .*tst2011.de-en.en.xml 1",
        ),
        ("IWSLT14.TEDX.dev2012.de-en.de.xml", None, "TEDX.dev2012.de-en.de.xml is not in the arch"),
    ],
)
def test_an_archive_of_something_else_is_refused(name, change, message, data_dir):
    files = members()
    content = files.pop(f"de-en/{name}")
    write(data_dir, files if change is None else files | {f"de-en/{name}": change(content)})
    with pytest.raises(DataCorrupt, match=message):
        load()


def test_a_damaged_archive_is_refused(data_dir):
    write(data_dir, members(2000))
    path = data_dir / "iwslt14_de_en" / "de-en.tgz"
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DataCorrupt, match=r"de-en.tgz: damaged .*delete it and get it again"):
        load()


def test_without_a_network(data_dir):
    with pytest.raises(DataUnavailable, match=r"iwslt14/de-en.tgz: ConnectionError") as error:
        find(translation_set("iwslt14_de_en"))
    assert "--config.data.name=lohelp | numwords" in str(error.value)
