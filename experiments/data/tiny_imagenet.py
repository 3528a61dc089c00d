"""The original archive of Tiny-ImageNet (Le and Yang 2015, Stanford CS231n): JPEGs in one zip file.

http://cs231n.stanford.edu/tiny-imagenet-200.zip holds, below `tiny-imagenet-200/`:

    wnids.txt                      the WordNet ids of the classes, a line each
    train/WNID/images/*.JPEG       the training images of a class
    val/images/*.JPEG              the validation images
    val/val_annotations.txt        file name, WNID and a box for each of those, separated by tabs

and bounding boxes and unlabelled test images, which are left alone. As published results have it,
the validation images serve as the test set. Classes are numbered in the sorted order of their ids,
and images come in the sorted order of their paths (`val_10.JPEG` before `val_2.JPEG`), both as
public loaders that go by folders have them. Some JPEGs are grey: their value is repeated.

Members are read in memory; nothing is extracted, so a path inside the archive leads nowhere.
What pixels a JPEG stands for is fixed up to the rounding of the decoder: with another release of
libjpeg, the same archive may have another fingerprint.
"""

import collections
import dataclasses
import io
import re
import zipfile
from pathlib import Path

import numpy as np

from experiments.data.errors import DataCorrupt
from experiments.data.original import Arrays
from experiments.data.progress import ProgressLines

_ROOT = "tiny-imagenet-200/"
_CLASSES = f"{_ROOT}wnids.txt"
_ANNOTATIONS = f"{_ROOT}val/val_annotations.txt"
_VALIDATION_IMAGES = f"{_ROOT}val/images/"
_TRAIN_IMAGE = re.compile(_ROOT + r"train/(?P<wnid>[^/]+)/images/[^/]+\.JPEG")
_VALIDATION_IMAGE = re.compile(_VALIDATION_IMAGES + r"(?P<file>[^/]+\.JPEG)")

Labelled = list[tuple[str, int]]  # paths within the archive, each with its label


@dataclasses.dataclass(frozen=True)
class Contents:
    """How much an archive has to hold.

    Attributes:
      classes: number of classes.
      train_per_class: training images of each.
      validation_images: validation images of all.
      image_size: height and width of every image.
    """

    classes: int
    train_per_class: int
    validation_images: int
    image_size: int


TINY_IMAGENET = Contents(classes=200, train_per_class=500, validation_images=10_000, image_size=64)


def read(path: Path, contents: Contents) -> Arrays:
    """Training images `(N, size, size, 3)`, int32 labels, validation images and labels.

    Prints progress on stderr, because decoding takes long.

    Raises `DataCorrupt`, with the member's name, for an archive that is damaged or holds something
    else or another number of things.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataCorrupt(f"{path}: cannot be read as a zip archive ({error})") from error
    with archive:
        labels = _class_labels(archive, contents.classes)
        train = _train_members(archive, labels, contents.train_per_class)
        validation = _validation_members(archive, labels, contents.validation_images)
        progress = ProgressLines(path.name, len(train) + len(validation))
        return (
            *_decoded(archive, train, contents.image_size, progress, before=0),
            *_decoded(archive, validation, contents.image_size, progress, before=len(train)),
        )


def _class_labels(archive: zipfile.ZipFile, classes: int) -> dict[str, int]:
    """The label of each WordNet id."""
    wnids = sorted(set(_lines(archive, _CLASSES)))
    if len(wnids) != classes:
        raise _corrupt(archive, f"{_CLASSES} lists {len(wnids)} classes, expected {classes}")
    return {wnid: label for label, wnid in enumerate(wnids)}


def _train_members(archive: zipfile.ZipFile, labels: dict[str, int], per_class: int) -> Labelled:
    members = [
        (match[0], _label(archive, labels, match["wnid"], match[0]))
        for match in _matches(archive, _TRAIN_IMAGE)
    ]
    counts = collections.Counter(label for _, label in members)
    for wnid, label in labels.items():
        if counts[label] != per_class:
            raise _corrupt(
                archive,
                f"{_ROOT}train/{wnid}/images holds {counts[label]} images, expected {per_class}",
            )
    return members


def _validation_members(archive: zipfile.ZipFile, labels: dict[str, int], count: int) -> Labelled:
    wnid_of = {}
    for number, line in enumerate(_lines(archive, _ANNOTATIONS), start=1):
        file, *rest = line.split("\t")
        if not rest:
            raise _corrupt(
                archive, f"{_ANNOTATIONS}, line {number}: {line!r} is not file, tab, class"
            )
        wnid_of[file] = rest[0]
    path_of = {match["file"]: match[0] for match in _matches(archive, _VALIDATION_IMAGE)}
    if missing := sorted(wnid_of.keys() - path_of.keys()):
        raise _corrupt(archive, f"{_VALIDATION_IMAGES}{missing[0]} is not in the archive")
    if unknown := sorted(path_of.keys() - wnid_of.keys()):
        raise _corrupt(archive, f"{path_of[unknown[0]]} has no line in {_ANNOTATIONS}")
    if len(path_of) != count:
        raise _corrupt(
            archive, f"{_VALIDATION_IMAGES} holds {len(path_of)} images, expected {count}"
        )
    return [(path, _label(archive, labels, wnid_of[file], path)) for file, path in path_of.items()]


def _matches(archive: zipfile.ZipFile, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    """The members whose paths have the pattern, sorted by path."""
    return [match for name in sorted(archive.namelist()) if (match := pattern.fullmatch(name))]


def _label(archive: zipfile.ZipFile, labels: dict[str, int], wnid: str, member: str) -> int:
    if wnid not in labels:
        raise _corrupt(archive, f"{member}: its class {wnid!r} is not in {_CLASSES}")
    return labels[wnid]


def _lines(archive: zipfile.ZipFile, member: str) -> list[str]:
    return _content(archive, member).decode(errors="replace").splitlines()


def _content(archive: zipfile.ZipFile, member: str) -> bytes:
    try:
        return archive.read(member)
    except KeyError as error:
        raise _corrupt(archive, f"{member} is not in the archive") from error
    except Exception as error:  # damaged archives raise nearly anything
        raise _corrupt(archive, f"{member}: cannot be decompressed ({error})") from error


def _decoded(
    archive: zipfile.ZipFile, members: Labelled, size: int, progress: ProgressLines, before: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels; `before` is how many images have been decoded before them."""
    # Filled in place: a list of images beside their array would be a gigabyte more.
    images = np.empty((len(members), size, size, 3), np.uint8)
    for index, (member, _) in enumerate(members):
        images[index] = _image(archive, member, size)
        done = before + index + 1
        progress.show(done, f"{done} of {progress.total} images decoded")
    return images, np.array([label for _, label in members], np.int32)


def _image(archive: zipfile.ZipFile, member: str, size: int) -> np.ndarray:
    from PIL import Image  # slow to import, and needed here only

    content = io.BytesIO(_content(archive, member))
    try:
        with Image.open(content, formats=("JPEG",)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # damaged images raise nearly anything
        raise _corrupt(archive, f"{member}: cannot be decoded as a JPEG ({error})") from error
    if pixels.shape != (size, size, 3):
        height, width, _ = pixels.shape
        raise _corrupt(archive, f"{member}: is {width} x {height} pixels, expected {size} x {size}")
    return pixels


def _corrupt(archive: zipfile.ZipFile, found: str) -> DataCorrupt:
    return DataCorrupt(f"{archive.filename}: {found}")
