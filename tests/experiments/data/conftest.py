"""Fixtures of the data tests: empty folders, no network, small data sets of random images."""

import dataclasses
import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from fabricated import SMALL_TINY_IMAGENET, random_set

from experiments.data import apt_download, catalog, tiny_imagenet
from experiments.data.original import Arrays, Original, OriginalFile


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder; no user's folder, package or network is ever looked at."""
    monkeypatch.setenv("LOWRANK_JAX_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    # No package file is fetched either: an apt-get that is not there.
    monkeypatch.setattr(apt_download.shutil, "which", lambda _: None)
    for entry in list(catalog.IMAGE_SETS.values()):
        if isinstance(entry.provider, Original):
            system_folder = entry.provider.system_folder and tmp_path / "system" / entry.name
            provider = dataclasses.replace(entry.provider, system_folder=system_folder)
            entry = dataclasses.replace(entry, provider=provider)
            monkeypatch.setitem(catalog.IMAGE_SETS, entry.name, entry)

    def refuse(*_: object, **__: object) -> None:
        raise requests.ConnectionError("the tests have no network")

    monkeypatch.setattr(requests.Session, "request", refuse)
    return tmp_path / "data"


@pytest.fixture
def fashion_package() -> Path:
    """The folder of Debian's package with the whole Fashion-MNIST."""
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        pytest.skip("needs the Debian package dataset-fashion-mnist")
    return folder


@pytest.fixture
def cifar10_arrays() -> Arrays:
    return random_set(0, 20, 6, (32, 32, 3), 10)


@pytest.fixture
def cifar100_arrays() -> Arrays:
    return random_set(1, 12, 5, (32, 32, 3), 100)


@pytest.fixture
def fashion_arrays() -> Arrays:
    return random_set(2, 30, 11, (28, 28, 1), 10)


@pytest.fixture
def small_tiny_imagenet(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue's Tiny-ImageNet becomes as small as the fabricated archive."""
    monkeypatch.setattr(tiny_imagenet, "TINY_IMAGENET", SMALL_TINY_IMAGENET)
    entry = catalog.IMAGE_SETS["tiny_imagenet"]
    small = dataclasses.replace(entry, num_classes=SMALL_TINY_IMAGENET.classes)
    monkeypatch.setitem(catalog.IMAGE_SETS, "tiny_imagenet", small)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes fabricated files the genuine ones: `register(name, folder, url=None)`.

    The catalogue gets their checksums, no fingerprint, and their address if one is given.
    """

    def change(name: str, folder: Path, url: str | None = None) -> None:
        entry = catalog.data_set(name)
        original = entry.provider
        assert isinstance(original, Original)

        def genuine(file: OriginalFile) -> OriginalFile:
            path = folder / file.name
            if file.checksum is None or not path.is_file():
                return file
            content = path.read_bytes()
            algorithm = file.checksum.split(":")[0]
            hashed = gzip.decompress(content) if file.content_checksum else content
            return dataclasses.replace(
                file,
                url=file.url if url is None else f"{url}/{file.name}",
                size=len(content),
                checksum=f"{algorithm}:{hashlib.new(algorithm, hashed).hexdigest()}",
            )

        releases = tuple(
            dataclasses.replace(release, files=tuple(map(genuine, release.files)))
            for release in original.releases
        )
        provider = dataclasses.replace(original, releases=releases)
        changed = dataclasses.replace(entry, provider=provider, fingerprint=None)
        kinds = (catalog.IMAGE_SETS, catalog.TRANSLATION_SETS, catalog.TEXT_SETS)
        (sets,) = (sets for sets in kinds if name in sets)
        monkeypatch.setitem(sets, name, changed)

    return change
