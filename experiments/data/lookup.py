"""Finding a data set: the first place that has it wins, and no other data set ever takes its place.

Order for `source="auto"`: what is embedded; the own cache; a prepared TFDS folder; the original
files in `data.dir`, in TFDS's folder for manual downloads or where a system package puts them; a
download of the original files, if their server answers. What a place holds is verified, and found
damaged it is an error, never passed over. What was not in the cache is put there.
"""

import errno
import sys
from pathlib import Path

from experiments.data import cache, checksums, tfds_folder
from experiments.data.catalog import ImageSet, Original, Release, image_set
from experiments.data.embedded_sets import Arrays
from experiments.data.errors import DataCorrupt, DataUnavailable
from experiments.data.image_data import ImageData
from experiments.data.places import Places, short
from experiments.data.unavailable import explain
from experiments.errors import RunError

SOURCES = ("auto", "tfds", "files", "embedded")
DOWNLOADS = ("auto", "never")


def load(
    name: str,
    *,
    source: str = "auto",
    download: str = "auto",
    dir: str | None = None,
    tfds_dir: str | None = None,
) -> ImageData:
    """Loads a data set into memory.

    Args:
      name: one of `names()`.
      source: `auto`, or only one kind of place: `tfds` (a prepared folder), `files` (original
        files, or their download), `embedded`.
      download: `auto` or `never`.
      dir: folder of the cache and of original files; see `places.py` for the default.
      tfds_dir: folder of prepared TFDS data.

    Raises:
      DataUnavailable: it is not there and cannot be fetched (known within 6 seconds), or there is
        no such data set. The message lists what was looked for and what to do.
      DataCorrupt: a file has a wrong checksum or content.
      RunError: an argument is not one of its choices, or the disk is full.

    >>> load("digits").train_images.shape
    (1437, 8, 8, 1)
    """
    for key, value, choices in (("source", source, SOURCES), ("download", download, DOWNLOADS)):
        if value not in choices:
            raise RunError(f"data.{key}={value!r}: choose one of {', '.join(choices)}")
    entry = image_set(name)
    if not isinstance(entry.provider, Original):
        if source not in ("auto", "embedded"):
            raise DataUnavailable(
                f"data set {name!r} is embedded; data.source={source} does not have it: "
                "use auto or embedded"
            )
        return _verified(entry, entry.provider(), "embedded")
    if source == "embedded":
        raise DataUnavailable(f"data set {name!r} is not embedded: use another data.source")
    places = Places.of(dir, tfds_dir)
    cache_folder = places.data_dir / name
    if source == "auto" and cache.exists(cache_folder):
        arrays, origin = cache.read(cache_folder)
        return _verified(entry, arrays, origin)
    data = _verified(entry, *_find(entry, entry.provider, places, source, download))
    _keep(cache_folder, data)
    return data


def _find(
    entry: ImageSet, original: Original, places: Places, source: str, download: str
) -> tuple[Arrays, str]:
    if source in ("auto", "tfds"):
        prepared = find_prepared(entry.name, original, places)
        if prepared is not None:
            folder, order = prepared
            arrays = tfds_folder.read(folder, entry.name, order)
            return arrays, f"prepared TFDS data {short(folder)}"
    if source in ("auto", "files"):
        found = find_release(original, places)
        if found is not None:
            release, folder = found
            for file in release.files:
                checksums.verify(folder / file.name, file)
            return release.read(folder), f"original files in {short(folder)}"
        if download == "auto":
            return _download(entry, original, places, source)
    raise DataUnavailable(
        explain(entry.name, original, places, source, "not tried (data.download=never)")
    )


def find_prepared(
    name: str, original: Original, places: Places
) -> tuple[Path, tfds_folder.Order] | None:
    """The prepared TFDS folder, unverified, and the order to read it in."""
    if original.tfds_order is None:
        return None
    folder = tfds_folder.find(places.tfds_dir / name)
    return None if folder is None else (folder, original.tfds_order)


def find_release(original: Original, places: Places) -> tuple[Release, Path] | None:
    """The first release whose files are all in one folder, unverified."""
    for release in original.releases:
        for folder in places.file_folders(original):
            if all((folder / file.name).is_file() for file in release.files):
                return release, folder
    return None


def _download(
    entry: ImageSet, original: Original, places: Places, source: str
) -> tuple[Arrays, str]:
    from experiments.data import download  # requests is slow to import, and rarely needed

    release = original.releases[0]
    obstacle = download.obstacle(release.files[0].url)
    if obstacle is not None:
        raise DataUnavailable(explain(entry.name, original, places, source, obstacle))
    folder = places.download_folder(original)
    for file in release.files:
        try:
            download.fetch(file, folder)
        except OSError as error:
            raise RunError(
                f"{folder}: cannot keep {file.name} ({error.strerror or error}): free some space, "
                "or choose another folder with data.dir or LOWRANK_JAX_DATA_DIR"
            ) from error
    return release.read(folder), f"downloaded from {release.files[0].url}"


def _verified(entry: ImageSet, arrays: Arrays, origin: str) -> ImageData:
    try:
        data = ImageData.from_arrays(entry.name, origin, *arrays, num_classes=entry.num_classes)
    except ValueError as error:
        raise DataCorrupt(f"{origin}: {error}") from error
    if entry.fingerprint is not None and data.fingerprint != entry.fingerprint:
        raise DataCorrupt(
            f"{origin}: not the data set {entry.name!r} in its original order: the fingerprint is "
            f"{data.fingerprint}, expected {entry.fingerprint}"
        )
    return data


def _keep(folder: Path, data: ImageData) -> None:
    """Writes the cache. A folder that may not be written is no obstacle, a full disk is one."""
    try:
        cache.write(folder, data)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise RunError(
                f"{folder}: cannot write the data cache ({error.strerror or error}): free some "
                "space, or choose another folder with data.dir or LOWRANK_JAX_DATA_DIR"
            ) from error
        print(f"{folder}: data not cached ({error.strerror or error})", file=sys.stderr)
