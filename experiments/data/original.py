"""A data set's entry in the catalogue: what it is, and how it can be had.

Every data set, of whatever kind, is a tuple of arrays to the code that finds, verifies and caches
it (`lookup.py`); its kind is a subclass of `DataSet`, in `image_sets.py` and its like, which makes
of the arrays what a task works with.
"""

import abc
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

import numpy as np

Arrays = tuple[np.ndarray, ...]


class Loaded(Protocol):
    """What every kind of loaded data has: its arrays as they are cached, and what is said of it."""

    @property
    def origin(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def arrays(self) -> Arrays: ...
    @property
    def summary(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class AtHand:
    """How a data set can be had that need not be looked for: it is made anew each time.

    Attributes:
      source: which `data.source` it is: `embedded`, or `files` of the user's whose place its name
        tells.
      origin: what it is made from, for people.
      read: the arrays.
    """

    source: str
    origin: str
    read: Callable[[], Arrays]

    @classmethod
    def embedded(cls, read: Callable[[], Arrays]) -> "AtHand":
        """Of files that are committed here, or generated."""
        return cls("embedded", "embedded", read)


@dataclasses.dataclass(frozen=True)
class OriginalFile:
    """A file as its authors publish it.

    Attributes:
      name: its file name. A `*` stands for what differs between versions; the newest one counts.
      url: where to download it: an http(s) address, or `apt:PACKAGE` for the package file that
        `apt-get download` fetches. None: it is the user's own.
      size: its size there, in bytes.
      checksum: `ALGORITHM:HEX` of the file. None where its authors state none, or there are
        several versions: then the sha256 of what was found goes into the origin of the data.
      content_checksum: whether `checksum` is of the content after gzip decompression.
    """

    name: str
    url: str | None
    size: int
    checksum: str | None
    content_checksum: bool = False


@dataclasses.dataclass(frozen=True)
class Release:
    """One way its authors publish a data set: files that together hold all of it.

    Attributes:
      files: the files.
      read: the data set's arrays, in the order of the files, from the paths of `files`.
    """

    files: tuple[OriginalFile, ...]
    read: Callable[..., Arrays]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A data set as TFDS prepares it.

    Attributes:
      name: what TFDS calls it.
      read: the arrays, in the order of the original files where all of it is read, from the folder
        of a version.
      part: what of it is read, in words; empty where that is all.
      formats: of files that can be read, in words.
    """

    name: str
    read: Callable[[Path], Arrays]
    part: str = ""
    formats: str = "array_record or tfrecord"


@dataclasses.dataclass(frozen=True)
class Original:
    """How a data set can be had that is looked for on this machine, and perhaps downloaded.

    Attributes:
      releases: the first is the one that is downloaded. None: only prepared data is read.
      subfolder: folder within `data.dir` for the original files; they have a folder of their own
        where their names do not tell the data set.
      system_folder: where a package of the operating system puts them, if there is one.
      install: a command that gets it other than by downloading a release; `{folder}` stands for
        the folder of the original files.
      prepared: None if TFDS does not have it.
      instead: data sets of the same kind that need no download.
    """

    releases: tuple[Release, ...]
    subfolder: str
    system_folder: Path | None
    install: str | None
    prepared: Prepared | None
    instead: tuple[str, ...]


Data = TypeVar("Data", bound=Loaded, covariant=True)


@dataclasses.dataclass(frozen=True)
class DataSet(abc.ABC, Generic[Data]):
    """An entry of the catalogue.

    Attributes:
      name: its name.
      provider: how it can be had.
      fingerprint: the known one; None where nobody has computed it from the genuine files here.
      array_names: what the arrays are called, one name each.
    """

    array_names: ClassVar[tuple[str, ...]]

    name: str
    provider: AtHand | Original
    fingerprint: str | None

    @abc.abstractmethod
    def build(self, origin: str, arrays: Arrays) -> Data:
        """What a task works with; `ValueError` if the arrays are not what they should be."""
