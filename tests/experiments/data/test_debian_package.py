"""Packages read by the standard library alone."""

import archives
import pytest

from experiments.data import DataCorrupt, debian_package
from experiments.data.debian_package import PackageName

FILES = {"usr/share/a/one.txt": "eins", "usr/share/a/b/two.txt": "zwei", "usr/share/c.txt": "drei"}


@pytest.mark.parametrize("compression", [".xz", ".gz", ""])
def test_files_below_a_folder(compression, tmp_path):
    path = tmp_path / "a_1_all.deb"
    path.write_bytes(archives.package(FILES, compression))
    found = dict(debian_package.files(path, "usr/share/a/"))
    assert found == {"one.txt": b"eins", "b/two.txt": b"zwei"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a Debian package"),
        (b"PK\x03\x04", "not a Debian package"),
        (archives.package(FILES)[:-200], "damaged at byte"),
        (archives.package(FILES)[:100], "damaged at byte|no data.tar"),
        (archives.ar({"debian-binary": b"2.0\n"}), "it has no data.tar"),
        (archives.ar({"data.tar.xz": b"not xz"}), "damaged .*delete it"),
        (archives.ar({"data.tar.zst": b"zst"}), "data.tar.zst cannot be read, expected"),
    ],
)
def test_what_is_no_package_is_refused(content, message, tmp_path):
    path = tmp_path / "a_1_all.deb"
    path.write_bytes(content)
    with pytest.raises(DataCorrupt, match=message) as error:
        list(debian_package.files(path, "usr/"))
    assert str(path) in str(error.value)


def test_a_flipped_bit_is_found(tmp_path):
    content = bytearray(archives.package(FILES))
    content[-40] ^= 1
    path = tmp_path / "a_1_all.deb"
    path.write_bytes(content)
    with pytest.raises(DataCorrupt, match="damaged"):
        list(debian_package.files(path, "usr/"))


def test_the_version_is_in_the_name(tmp_path):
    name = PackageName.of(tmp_path / "libreoffice-help-de_4%3a7.4.7-1+deb12u14_all.deb")
    assert name == PackageName("libreoffice-help-de", "4:7.4.7-1+deb12u14")
    with pytest.raises(DataCorrupt, match=r"expected a file name NAME_VERSION_ARCHITECTURE.deb"):
        PackageName.of(tmp_path / "help.deb")
