"""`files:GLOB`: documents, labels and pieces of the user's own files."""

import os

import pytest

from experiments.data import DataUnavailable
from experiments.data.__main__ import main
from experiments.data.catalog import data_set, text_set
from experiments.data.lookup import find
from experiments.errors import RunError


@pytest.fixture
def folder(tmp_path):
    """Ten files in each of two folders, and one elsewhere."""
    for name in ("poems", "news"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(10):
            text = f"{name} {i},\r\nfirst.\r\n \r\n\r\nSecond of {name} {i}."
            (tmp_path / "mine" / name / f"{i}.txt").write_bytes(text.encode())
    (tmp_path / "mine" / "notes.md").write_text("not this")
    return tmp_path / "mine"


def documents(pattern):
    splits = find(text_set(f"files:{pattern}")).splits
    return {document.name: document for chosen in splits.values() for document in chosen}


@pytest.mark.parametrize("pattern", ["*/*.txt", "**/*.txt", "[np]*/?.txt"])
def test_a_file_is_a_document_and_its_folder_the_label(pattern, folder):
    found = documents(folder / pattern)
    assert found.keys() == {f"{name}/{i}.txt" for name in ("poems", "news") for i in range(10)}
    for name, document in found.items():
        label, file = name.split("/")
        number = file.removesuffix(".txt")
        first, second = f"{label} {number}, first.", f"Second of {label} {number}."
        assert document.paragraphs == (first.encode(), second.encode())
        assert document.label == label
    assert text_set(f"files:{folder / pattern}").labels == ("news", "poems")


def test_splits_hold_out_files_of_every_label_and_do_not_depend_on_the_place(folder, monkeypatch):
    splits = find(text_set(f"files:{folder}/*/*.txt")).splits
    for split, count in (("train", 8), ("validation", 1), ("test", 1)):
        labels = [document.label for document in splits[split]]
        assert sorted(labels) == ["news"] * count + ["poems"] * count
    monkeypatch.chdir(folder)
    first = find(text_set(f"files:{folder}/*/*.txt"))
    assert find(text_set("files:*/*.txt")).fingerprint == first.fingerprint
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find(text_set("files:~/mine/*/*.txt")).fingerprint == first.fingerprint


def test_files_of_one_folder_have_no_label(folder):
    found = documents(folder / "news" / "*.txt")
    assert found.keys() == {f"{i}.txt" for i in range(10)}
    assert {document.label for document in found.values()} == {""}
    with pytest.raises(RunError, match=r"files:.*has no labels.*several folders"):
        _ = text_set(f"files:{folder}/news/*.txt").labels


def test_files_are_read_anew_and_nothing_is_cached(folder, data_dir):
    entry = text_set(f"files:{folder}/**/*.txt")
    first = find(entry)
    (folder / "news" / "3.txt").write_text("changed")
    second = find(entry)
    assert second.fingerprint != first.fingerprint
    assert first.origin == second.origin == f"files that fit {folder}/**/*.txt"
    assert not data_dir.exists()


def test_lines_are_paragraphs_where_there_are_no_blank_lines(folder):
    (folder / "news" / "0.txt").write_bytes(b"\xef\xbb\xbf\n\none\n two \nthree\n\n")
    assert documents(f"{folder}/news/*.txt")["0.txt"].paragraphs == (b"one", b"two", b"three")


@pytest.mark.parametrize(("files", "paragraphs"), [(1, 50), (2, 25), (1, 12), (1, 3)])
def test_one_or_two_files_are_cut_into_pieces_of_consecutive_paragraphs(
    files, paragraphs, tmp_path, capsys
):
    for i in range(files):
        lines = [f"file {i} paragraph {j}" for j in range(paragraphs)]
        (tmp_path / f"{i}.txt").write_text("\n\n".join(lines))
    (tmp_path / "empty.txt").touch()
    splits = find(text_set(f"files:{tmp_path}/*.txt")).splits
    assert f"files with text are only {files}, so pieces of them" in capsys.readouterr().err
    together = sorted((d for s in splits.values() for d in s), key=lambda d: d.name)
    pieces = [document for document in together if document.name != "empty.txt"]
    expected = [f"file {i} paragraph {j}".encode() for i in range(files) for j in range(paragraphs)]
    assert [text for piece in pieces for text in piece.paragraphs] == expected
    assert len(pieces) == files * min(10, paragraphs)
    sizes = [len(piece.paragraphs) for piece in pieces]
    assert max(sizes) - min(sizes) <= 1
    assert all(any(document.size for document in chosen) for chosen in splits.values())


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([], r"no file fits this pattern \(looked for from "),
        ([b""], "0 paragraphs in 0 files: training, validation and testing need three files"),
        ([b"a\n\nb", b""], "2 paragraphs in 1 files: training, validation"),
        ([b"a", b"b"], "2 paragraphs in 2 files"),
    ],
)
def test_too_little_text_is_refused(contents, message, tmp_path):
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.txt").write_bytes(content)
    with pytest.raises(DataUnavailable, match=message):
        find(text_set(f"files:{tmp_path}/*.txt"))


def test_a_file_that_cannot_be_read_is_named(folder, monkeypatch):
    path = folder / "news" / "4.txt"
    read_bytes = type(path).read_bytes

    def refuse(self):
        if self == path:
            raise PermissionError(13, os.strerror(13))
        return read_bytes(self)

    monkeypatch.setattr(type(path), "read_bytes", refuse)
    with pytest.raises(DataUnavailable, match=f"{path}: cannot be read .Permission denied"):
        find(text_set(f"files:{folder}/*/*.txt"))


def test_other_sources_do_not_have_them(folder):
    entry = data_set(f"files:{folder}/*/*.txt")
    assert find(entry, source="files", download="never").fingerprint == find(entry).fingerprint
    with pytest.raises(DataUnavailable, match="does not have it: use auto or files"):
        find(entry, source="tfds")


def test_status_and_fetch(folder, capsys):
    name = f"files:{folder}/*/*.txt"
    assert main(["status", name]) == 0
    assert f"files that fit {folder}/*/*.txt" in capsys.readouterr().out
    assert main(["fetch", name]) == 0
    out = capsys.readouterr().out
    assert "train 16 documents (0.00 MB), validation 2 documents" in out
    assert "2 labels" in out and find(text_set(name)).fingerprint in out
