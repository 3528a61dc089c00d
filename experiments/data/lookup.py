"""Finding a data set: the first place that has it wins, and no other data set ever takes its place.

Order for `source="auto"`: what is at hand, embedded or named by the user; the own cache; a prepared
TFDS folder; the original files in `data.dir`, in TFDS's folder for manual downloads or where a
system package puts them; a download of the original files, if their server answers. What a place
holds is verified, and found damaged it is an error, never passed over. What was not in the cache is
put there. Where files have no known checksum, a cache that was made from others than those that are
there is made anew.
"""

import errno
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from experiments.data import cache, checksums, tfds_folder
from experiments.data.catalog import image_set
from experiments.data.errors import DataCorrupt, DataUnavailable
from experiments.data.image_data import ImageData
from experiments.data.image_sets import ImageSet
from experiments.data.original import (
    Arrays,
    AtHand,
    DataSet,
    Loaded,
    Original,
    OriginalFile,
    Release,
)
from experiments.data.places import Places, short
from experiments.data.unavailable import explain
from experiments.errors import RunError

SOURCES = ("auto", "tfds", "files", "embedded")
DOWNLOADS = ("auto", "never")

Data = TypeVar("Data", bound=Loaded)
# Where the files of a release were found.
Files = Mapping[Path, OriginalFile]


def load(
    name: str,
    *,
    source: str = "auto",
    download: str = "auto",
    dir: str | None = None,
    tfds_dir: str | None = None,
) -> ImageData:
    """Loads an image set into memory: `find` by its name.

    >>> load("digits").train_images.shape
    (1437, 8, 8, 1)
    """
    entry = image_set(name)
    if not isinstance(entry, ImageSet):
        raise RunError(f"data set {name!r} is too large for memory: it is read as it is used")
    return find(entry, source=source, download=download, dir=dir, tfds_dir=tfds_dir)


def find(
    entry: DataSet[Data],
    *,
    source: str = "auto",
    download: str = "auto",
    dir: str | None = None,
    tfds_dir: str | None = None,
) -> Data:
    """Loads a data set into memory.

    Args:
      entry: its entry in the catalogue.
      source: `auto`, or only one kind of place: `tfds` (a prepared folder), `files` (original
        files, or their download), `embedded`.
      download: `auto` or `never`.
      dir: folder of the cache and of original files; see `places.py` for the default.
      tfds_dir: folder of prepared TFDS data.

    Raises:
      DataUnavailable: it is not there and cannot be fetched (known within 6 seconds). The message
        lists what was looked for and what to do.
      DataCorrupt: a file has a wrong checksum or content.
      RunError: an argument is not one of its choices, or the disk is full.
    """
    for key, value, choices in (("source", source, SOURCES), ("download", download, DOWNLOADS)):
        if value not in choices:
            raise RunError(f"data.{key}={value!r}: choose one of {', '.join(choices)}")
    if isinstance(entry.provider, AtHand):
        if source not in ("auto", entry.provider.source):
            raise DataUnavailable(
                f"data set {entry.name!r} is {entry.provider.origin}; data.source={source} does "
                f"not have it: use auto or {entry.provider.source}"
            )
        return _verified(entry, entry.provider.read(), entry.provider.origin, {})
    if source == "embedded":
        raise DataUnavailable(f"data set {entry.name!r} is not embedded: use another data.source")
    places = Places.of(dir, tfds_dir)
    cache_folder = places.data_dir / entry.name
    if source == "auto" and cache.exists(cache_folder):
        arrays, mark = cache.read(cache_folder, entry.array_names)
        if _still_there(entry.provider, places, mark):
            return _verified(entry, arrays, mark.origin, mark.sha256)
    arrays, origin, sha256 = _read(entry.name, entry.provider, places, source, download)
    data = _verified(entry, arrays, origin, sha256)
    by_name = dict(zip(entry.array_names, data.arrays, strict=True))
    _keep(cache_folder, by_name, cache.Mark(data.fingerprint, origin, sha256))
    return data


def _still_there(original: Original, places: Places, mark: cache.Mark) -> bool:
    """False if files without a known checksum have changed since the cache was made from them."""
    found = find_release(original, places) if mark.sha256 else None
    return found is None or checksums.unknown(found[1]) == mark.sha256


def _read(
    name: str, original: Original, places: Places, source: str, download: str
) -> tuple[Arrays, str, dict[str, str]]:
    """The arrays, their origin, and the sha256 of files without a known checksum."""
    if source in ("auto", "tfds"):
        prepared = find_prepared(original, places)
        if prepared is not None and original.prepared is not None:
            arrays = original.prepared.read(prepared)
            part = f"{original.prepared.part} of " if original.prepared.part else ""
            return arrays, f"{part}prepared TFDS data {short(prepared)}", {}
    if source in ("auto", "files"):
        found = find_release(original, places)
        if found is not None:
            release, files = found
            for path, file in files.items():
                checksums.verify(path, file)
            folder = next(iter(files)).parent
            return _read_release(release, files, f"original files in {short(folder)}")
        if download == "auto" and original.releases:
            return _download(name, original, places, source)
    raise DataUnavailable(
        explain(name, original, places, source, "not tried (data.download=never)")
    )


def _read_release(
    release: Release, files: Files, origin: str
) -> tuple[Arrays, str, dict[str, str]]:
    sha256 = checksums.unknown(files)
    named = "".join(f", {name} sha256:{digest}" for name, digest in sha256.items())
    return release.read(*files), origin + named, sha256


def find_prepared(original: Original, places: Places) -> Path | None:
    """The prepared TFDS folder, unverified."""
    if original.prepared is None:
        return None
    return tfds_folder.find(places.tfds_dir / original.prepared.name)


def find_release(original: Original, places: Places) -> tuple[Release, Files] | None:
    """The first release whose files are all in one folder, unverified."""
    for release in original.releases:
        for folder in places.file_folders(original):
            files = {_newest(folder, file.name): file for file in release.files}
            if None not in files:
                return release, {path: file for path, file in files.items() if path is not None}
    return None


def _newest(folder: Path, name: str) -> Path | None:
    """The file of that name, or the newest version of those that fit it."""

    def version(path: Path) -> list[int | str]:
        # Text and numbers alternate, so that 10 comes after 9.
        parts = re.split(r"(\d+)", path.name)
        return [int(part) if part.isdigit() else part for part in parts]

    return max((path for path in folder.glob(name) if path.is_file()), key=version, default=None)


def _download(
    name: str, original: Original, places: Places, source: str
) -> tuple[Arrays, str, dict[str, str]]:
    from experiments.data import download  # requests is slow to import, and rarely needed

    release = original.releases[0]
    addresses = {file.url: file for file in release.files if file.url is not None}
    first = next(iter(addresses), None)
    obstacle = "there is none" if first is None else download.obstacle(first)
    if obstacle is not None:
        raise DataUnavailable(explain(name, original, places, source, obstacle))
    folder = places.download_folder(original)
    files = {}
    for url, file in addresses.items():
        try:
            files[download.fetch(file, url, folder)] = file
        except DataUnavailable as error:
            raise DataUnavailable(explain(name, original, places, source, str(error))) from error
        except OSError as error:
            raise RunError(
                f"{folder}: cannot keep {file.name} ({error.strerror or error}): free some space, "
                "or choose another folder with data.dir or LOWRANK_JAX_DATA_DIR"
            ) from error
    return _read_release(release, files, f"downloaded from {first}")


def _verified(entry: DataSet[Data], arrays: Arrays, origin: str, sha256: Mapping[str, str]) -> Data:
    try:
        data = entry.build(origin, arrays)
    except ValueError as error:
        raise DataCorrupt(f"{origin}: {error}") from error
    if entry.fingerprint is not None and data.fingerprint != entry.fingerprint:
        found = f"the fingerprint is {data.fingerprint}, expected {entry.fingerprint}"
        if not sha256:
            raise DataCorrupt(
                f"{origin}: not the data set {entry.name!r} in its original order: {found}"
            )
        print(
            f"{entry.name}: another version than the one that the committed results are of "
            f"({origin}; {found})",
            file=sys.stderr,
        )
    return data


def _keep(folder: Path, arrays: Mapping[str, np.ndarray], mark: cache.Mark) -> None:
    """Writes the cache. A folder that may not be written is no obstacle, a full disk is one."""
    try:
        cache.write(folder, arrays, mark)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise RunError(
                f"{folder}: cannot write the data cache ({error.strerror or error}): free some "
                "space, or choose another folder with data.dir or LOWRANK_JAX_DATA_DIR"
            ) from error
        print(f"{folder}: data not cached ({error.strerror or error})", file=sys.stderr)
