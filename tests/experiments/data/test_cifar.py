"""The readers of CIFAR's archives, on fabricated ones of the true layout."""

import io
import os
import pickle
import tarfile

import fabricated
import numpy as np
import pytest

from experiments.data import DataCorrupt, cifar
from experiments.data.fingerprint import fingerprint

VERSIONS = {
    "cifar10 binary": (fabricated.write_cifar10_binary, cifar.CIFAR10_BINARY, "cifar10_arrays"),
    "cifar10 python": (fabricated.write_cifar10_python, cifar.CIFAR10_PYTHON, "cifar10_arrays"),
    "cifar100 binary": (fabricated.write_cifar100_binary, cifar.CIFAR100_BINARY, "cifar100_arrays"),
    "cifar100 python": (fabricated.write_cifar100_python, cifar.CIFAR100_PYTHON, "cifar100_arrays"),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_reads_what_was_written(version, tmp_path, request):
    write, layout, fixture = VERSIONS[version]
    arrays = request.getfixturevalue(fixture)
    write(tmp_path / "archive.tar.gz", arrays)
    found = cifar.read(tmp_path / "archive.tar.gz", layout)
    for one, other in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(one, other)  # CIFAR-100: the fine labels
    as_loaded = [found[0], found[1].astype(np.int32), found[2], found[3].astype(np.int32)]
    expected = [arrays[0], arrays[1].astype(np.int32), arrays[2], arrays[3].astype(np.int32)]
    assert fingerprint(*as_loaded) == fingerprint(*expected)


def test_pickles_of_the_test_are_what_python_itself_understands(tmp_path, cifar10_arrays):
    fabricated.write_cifar10_python(tmp_path / "a.tar.gz", cifar10_arrays)
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        content = archive.extractfile("cifar-10-batches-py/test_batch").read()
    batch = pickle.loads(content, encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], fabricated.planes(cifar10_arrays[2]))
    assert batch[b"labels"] == cifar10_arrays[3].tolist()


class Malicious:
    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, os.mkdir, __import__, io.open])
def test_a_malicious_pickle_is_refused_and_not_run(function, tmp_path, cifar10_arrays):
    target = tmp_path / "traces"
    argument = {
        os.system: f"touch {target}",
        eval: f"open({str(target)!r}, 'w')",
        os.mkdir: str(target),
        __import__: "this",
        io.open: str(target),
    }[function]
    train = {f"cifar-10-batches-py/data_batch_{i}": b"" for i in range(1, 6)}
    content = pickle.dumps({b"data": Malicious(function, argument)}, protocol=2)
    write = {**train, "cifar-10-batches-py/test_batch": b""}
    write["cifar-10-batches-py/data_batch_1"] = content
    fabricated.write_tar(tmp_path / "a.tar.gz", write)
    with pytest.raises(DataCorrupt, match=r"data_batch_1: .*refused to load the global"):
        cifar.read(tmp_path / "a.tar.gz", cifar.CIFAR10_PYTHON)
    assert not target.exists()


def test_paths_out_of_the_archive_lead_nowhere(tmp_path, cifar100_arrays):
    inner = tmp_path / "deep" / "folder"
    path = inner / "a.tar.gz"
    fabricated.write_cifar100_binary(path, cifar100_arrays)
    with tarfile.open(path) as archive:
        good = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}
    evil = ["../../evil", "/evil", str(tmp_path / "evil"), "cifar-100-binary/../../../evil"]
    fabricated.write_tar(path, {**dict.fromkeys(evil, b"evil"), **good})
    before = sorted(tmp_path.rglob("*"))
    found = cifar.read(path, cifar.CIFAR100_BINARY)
    np.testing.assert_array_equal(found[0], cifar100_arrays[0])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_is_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 3074)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        for name in ("train", "test"):
            link = tarfile.TarInfo(f"cifar-100-binary/{name}.bin")
            link.type, link.linkname = tarfile.SYMTYPE, str(secret)
            archive.addfile(link)
    with pytest.raises(DataCorrupt, match=r"cifar-100-binary/test.bin is not in the archive"):
        cifar.read(tmp_path / "a.tar.gz", cifar.CIFAR100_BINARY)


@pytest.mark.parametrize(
    ("layout", "name", "content", "message"),
    [
        (
            cifar.CIFAR100_BINARY,
            "cifar-100-binary/train.bin",
            b"\0" * 3073,
            "whole records of 3074",
        ),
        (cifar.CIFAR100_BINARY, "cifar-100-binary/train.bin", b"", "0 bytes are not whole"),
        (cifar.CIFAR100_PYTHON, "cifar-100-python/train", b"nonsense", "is not a CIFAR batch"),
        (cifar.CIFAR100_PYTHON, "cifar-100-python/train", pickle.dumps({}, 2), "is not a CIFAR"),
        (
            cifar.CIFAR100_PYTHON,
            "cifar-100-python/train",
            b"\x80\x02}(U\x04data](K\x01eU\x0bfine_labels](K\x01eu.",
            "holds no uint8 images",
        ),
    ],
)
def test_damaged_members_are_refused(layout, name, content, message, tmp_path):
    other = name.replace("train", "test")
    fabricated.write_tar(tmp_path / "a.tar.gz", {name: content, other: content})
    with pytest.raises(DataCorrupt, match=message):
        cifar.read(tmp_path / "a.tar.gz", layout)


def test_truncated_archives_are_refused(tmp_path, cifar10_arrays):
    path = tmp_path / "a.tar.gz"
    fabricated.write_cifar10_binary(path, cifar10_arrays)
    content = path.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 20000):
        path.write_bytes(content[:length])
        with pytest.raises(DataCorrupt, match=r"cannot be read|not in the archive"):
            cifar.read(path, cifar.CIFAR10_BINARY)
