"""The image sets that are too large for memory: read as they are used, from prepared TFDS folders.

What they are is said here, how they are read in `image_stream.py`, and how a folder is prepared in
`docs/large_data.md`. Their own `validation` split is what results are published on; it serves as
`test`, and a validation split is held out of `train` as of every other set.

The fingerprint is the sha256 of names, lengths and sizes in bytes of all shards of both splits:
reading them whole would take as long as an epoch. It tells different sets and preparations apart,
and not one damaged byte; that, array_record's own checksums do when the record is read.

Normalisation is by the channel statistics that all published code uses, of ImageNet.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data import tfds_folder
from experiments.data.array_records import FORMAT, ArrayRecords
from experiments.data.errors import DataCorrupt, DataUnavailable
from experiments.data.image_data import IMAGENET, Statistics
from experiments.data.image_stream import ImageStream, RandomCrops
from experiments.data.original import Original, Prepared
from experiments.data.places import Places, short
from experiments.data.unavailable import explain
from experiments.errors import RunError

SPLITS = {"train": "train", "test": "validation"}
"""What TFDS calls the splits."""


@dataclasses.dataclass(frozen=True)
class LargeImageSet:
    """An entry of the catalogue.

    Attributes:
      name: its name.
      provider: where it is looked for, and how it is prepared.
      num_classes, image_size, mirror_symmetric: as of `ImageSet`.
      sizes: the number of examples of each split, by our names.
      statistics: what images are normalised by.
    """

    name: str
    provider: Original
    num_classes: int
    image_size: int
    mirror_symmetric: bool
    sizes: dict[str, int]
    statistics: Statistics

    def open(self, tfds_dir: str | None = None) -> "LargeImages":
        """Finds the prepared folder and checks that it is whole, without reading it.

        Raises:
          DataUnavailable: there is none.
          DataCorrupt: shards are missing, or it is another set.
          RunError: it is in a format that cannot be read at random.
        """
        places = Places.of(None, tfds_dir)
        assert self.provider.prepared is not None
        folder = tfds_folder.find(places.tfds_dir / self.provider.prepared.name)
        if folder is None:
            raise DataUnavailable(explain(self.name, self.provider, places, "tfds", ""))
        records = {ours: ArrayRecords.find(folder, theirs) for ours, theirs in SPLITS.items()}
        for split, size in self.sizes.items():
            if len(records[split]) != size:
                raise DataCorrupt(
                    f"{folder}: {len(records[split]):,} examples in the split {SPLITS[split]!r}; "
                    f"{self.name} has {size:,}"
                )
        return LargeImages(self, f"prepared TFDS data {short(folder)}", records)

    def abstract(self) -> "LargeImages":
        """The set without its records: its sizes are known, and nothing can be read."""
        records = {split: ArrayRecords(("",), (size,)) for split, size in self.sizes.items()}
        return LargeImages(self, "shapes alone", records)


class LargeImages(NamedTuple):
    """A set that was found.

    Attributes:
      entry: of the catalogue.
      origin: where it lies, for people.
      records: of each split, by our names.
    """

    entry: LargeImageSet
    origin: str
    records: dict[str, ArrayRecords]

    @property
    def fingerprint(self) -> str:
        """See the module; of a set without records, nothing."""
        if not any(path for records in self.records.values() for path in records.paths):
            return ""
        digest = hashlib.sha256(self.entry.name.encode())
        for split, records in sorted(self.records.items()):
            for path, length in zip(records.paths, records.lengths, strict=True):
                file = Path(path)
                digest.update(f"{split}/{file.name}:{length}:{file.stat().st_size}\n".encode())
        return digest.hexdigest()

    @property
    def summary(self) -> str:
        """What it holds, in a line."""
        train, test = (len(self.records[split]) for split in SPLITS)
        return (
            f"{train} training and {test} test images, {self.entry.num_classes} classes, read as "
            "they are used"
        )

    def splits(
        self, validation: float, seed: int, flip: bool, workers: int
    ) -> dict[str, ImageStream]:
        """The splits of a run, as streams.

        Args:
          validation: the fraction of the training images that is held out; 0: none.
          seed: of what is held out, and of order and augmentation.
          flip: whether training images may be mirrored.
          workers: see `ImageStream`.

        Raises:
          RunError: nothing would be left for training or for validation.
        """

        def stream(
            records: ArrayRecords, examples: np.ndarray, augmentation: RandomCrops | None = None
        ) -> ImageStream:
            classes, size = self.entry.num_classes, self.entry.image_size
            return ImageStream(records, examples, classes, size, augmentation, workers)

        train, test = self.records["train"], self.records["test"]
        held_out, kept = _held_out(len(train), validation, seed)
        crops = RandomCrops(seed, flip and self.entry.mirror_symmetric)
        splits = {"train": stream(train, kept, crops)}
        if len(held_out):
            splits["validation"] = stream(train, held_out)
        return splits | {"test": stream(test, np.arange(len(test), dtype=np.int32))}


def _held_out(size: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which examples are held out and which are left, in order: those of the smallest
    sha256("seed:number").

    Classes have their shares by chance alone, since labels are known only when all is read; of
    ImageNet's 1300 in a class, a tenth is 130 give or take 11.
    """
    count = round(fraction * size)
    if fraction and not 0 < count < size:
        raise RunError(
            f"validation={fraction:g} of {size} training images: expected to hold out 1 to "
            f"{size - 1}"
        )
    if not count:
        return np.arange(0, dtype=np.int32), np.arange(size, dtype=np.int32)
    rank = np.array(
        [hashlib.sha256(f"{seed}:{number}".encode()).digest()[:8] for number in range(size)], "S8"
    )
    out = np.zeros(size, bool)
    out[np.argsort(rank, kind="stable")[:count]] = True
    return np.flatnonzero(out).astype(np.int32), np.flatnonzero(~out).astype(np.int32)


def _prepared(tfds_name: str, install: str, *instead: str) -> Original:
    def refuse(_: Path) -> tuple[np.ndarray, ...]:
        raise RunError(f"{tfds_name} is too large to be read into memory: it is read as it is used")

    return Original(
        releases=(),
        subfolder="",
        system_folder=None,
        install=f"{install}; see docs/large_data.md",
        prepared=Prepared(tfds_name, refuse, formats=FORMAT),
        instead=instead,
    )


LARGE_IMAGE_SETS: dict[str, LargeImageSet] = {
    entry.name: entry
    for entry in (
        LargeImageSet(
            name="imagenet2012",
            provider=_prepared(
                "imagenet2012",
                "on a machine with TensorFlow, and the two archives of image-net.org in DIR: tfds "
                "build imagenet2012 --file_format=array_record --manual_dir=DIR   (155 GB), then "
                "copy its folder here",
                "imagenette",
                "tiny_imagenet",
                "digits",
            ),
            num_classes=1000,
            image_size=224,
            mirror_symmetric=True,
            sizes={"train": 1_281_167, "test": 50_000},
            statistics=IMAGENET,
        ),
        LargeImageSet(
            name="imagenette",
            provider=_prepared(
                "imagenette/full-size-v2",
                "on a machine with TensorFlow: tfds build imagenette/full-size-v2 "
                "--file_format=array_record   (1.5 GB), then copy its folder here",
                "tiny_imagenet",
                "digits",
            ),
            num_classes=10,
            image_size=224,
            mirror_symmetric=True,
            sizes={"train": 9469, "test": 3925},
            statistics=IMAGENET,
        ),
    )
}
