"""`apt-get download`, by a stand-in for apt-get that notes how it was called."""

import os
import shutil
import stat

import parallel_files
import pytest

from experiments.data import DataUnavailable
from experiments.data.catalog import translation_set
from experiments.data.lookup import find

WHICH = shutil.which


@pytest.fixture
def apt_get(tmp_path, monkeypatch):
    """Makes `apt-get` a script of these lines; returns how to do so, and the file of its calls."""
    monkeypatch.setattr(shutil, "which", WHICH)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()

    def make(lines):
        path = tmp_path / "bin" / "apt-get"
        path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n{lines}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return tmp_path / "calls"

    return make


def load():
    return find(translation_set("lohelp"))


def test_what_is_fetched_is_kept_and_read(apt_get, data_dir, tmp_path):
    pages = {
        name: tuple(f'<p id="par_id1">{word} sentence number {i}.</p>' for word in ("Der", "The"))
        for i, name in enumerate(parallel_files.LOHELP_PAGES.values())
    }
    parallel_files.write_lohelp(tmp_path / "mirror", pages, "1.0")
    calls = apt_get(f'for package; do :; done\ncp {tmp_path}/mirror/"$package"_* .')
    text = load()
    assert text.origin.startswith("downloaded from apt:libreoffice-help-de, libreoffice-help-de_4")
    assert sorted(path.name for path in (data_dir / "lohelp").glob("*.deb")) == [
        "libreoffice-help-de_4%3a1.0_all.deb",
        "libreoffice-help-en-us_4%3a1.0_all.deb",
    ]
    assert not list((data_dir / "lohelp").glob(".*"))
    asked = calls.read_text().splitlines()
    assert len(asked) == 2 and all(line.startswith("download ") for line in asked)
    assert load() == text and len(calls.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo 'E: Unable to locate package libreoffice-help-de' >&2; exit 100",
            "apt-get: Unable to locate package libreoffice-help-de",
        ),
        (
            "echo 'W: a warning' >&2; echo 'E: Failed to fetch http://deb' >&2; exit 100",
            "apt-get: Failed to fetch http://deb",
        ),
        ("exit 7", "apt-get: exit code 7"),
    ],
)
def test_the_reason_apt_gives_is_in_the_message(script, reason, apt_get, data_dir):
    apt_get(script)
    with pytest.raises(DataUnavailable) as error:
        load()
    assert f"download              apt:libreoffice-help-de: {reason}\n" in str(error.value)
    assert not list(data_dir.glob("lohelp/*"))
