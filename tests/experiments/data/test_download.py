"""Downloads, from a server on this machine's own loopback address."""

import errno
import functools
import http.server
import os
import threading

import fabricated
import numpy as np
import pytest
import requests

from experiments.data import DataCorrupt, DataUnavailable, download, load
from experiments.errors import RunError

TRUE_REQUEST = requests.Session.request


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves `tmp_path/served`; yields the folder and its address."""
    monkeypatch.setattr(requests.Session, "request", TRUE_REQUEST)
    monkeypatch.setenv("NO_PROXY", "*")
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def served_cifar(server, cifar10_arrays, register):
    folder, url = server
    fabricated.write_cifar10_binary(folder / "cifar-10-binary.tar.gz", cifar10_arrays)
    register("cifar10", folder, url)
    return folder / "cifar-10-binary.tar.gz"


def test_what_is_not_there_is_downloaded_once(
    served_cifar, data_dir, cifar10_arrays, server, capsys
):
    data = load("cifar10")
    np.testing.assert_array_equal(data.train_images, cifar10_arrays[0])
    assert data.origin == f"downloaded from {server[1]}/cifar-10-binary.tar.gz"
    assert "100 %" in capsys.readouterr().err
    kept = data_dir / "cifar-10-binary.tar.gz"
    assert kept.read_bytes() == served_cifar.read_bytes()
    served_cifar.unlink()
    assert load("cifar10").origin == data.origin
    assert load("cifar10", source="files").origin == f"original files in {data_dir}"


def test_four_files_of_fashion_mnist(server, data_dir, fashion_arrays, register):
    folder, url = server
    fabricated.write_idx_folder(folder, fashion_arrays)
    register("fashion_mnist", folder, url)
    np.testing.assert_array_equal(load("fashion_mnist").test_images, fashion_arrays[2])
    assert len(list((data_dir / "fashion_mnist").glob("*.gz"))) == 4


def test_a_wrong_file_is_refused_and_not_kept(served_cifar, data_dir):
    content = bytearray(served_cifar.read_bytes())
    content[100] ^= 1
    served_cifar.write_bytes(content)
    with pytest.raises(DataCorrupt, match="wrong checksum"):
        load("cifar10")
    assert list(data_dir.iterdir()) == []


def test_a_missing_file_is_named(served_cifar, data_dir):
    served_cifar.unlink()
    with pytest.raises(DataUnavailable, match=r"cifar-10-binary.tar.gz: HTTP 404"):
        load("cifar10")
    assert not data_dir.exists()


def test_a_broken_connection_leaves_nothing(served_cifar, data_dir, monkeypatch):
    def broken(answer, *_, **__):
        if answer.request.method == "HEAD":
            return
        yield b"some bytes"
        raise requests.ConnectionError("reset by peer")

    monkeypatch.setattr(requests.Response, "iter_content", broken)
    with pytest.raises(
        DataUnavailable, match=r"broke off after 10 of \d+ bytes of .* .ConnectionError"
    ):
        load("cifar10")
    assert list(data_dir.iterdir()) == []


def test_a_full_disk_is_one_line(served_cifar, data_dir, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(download, "_stream", full)
    with pytest.raises(RunError, match=r"cannot keep cifar-10-binary.tar.gz .No space left"):
        load("cifar10")
    assert list(data_dir.iterdir()) == []
