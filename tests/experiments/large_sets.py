"""A little set of photographs in the form in which TFDS prepares imagenet2012: JPEGs of differing
sizes, among them a grey and a CMYK one, in array_record shards."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
from PIL import Image
from prepared_tfds import prepare

from experiments.data.large_image_sets import LARGE_IMAGE_SETS, LargeImageSet

CLASSES, SIZE = 4, 32
TRAIN, TEST = 52, 10
MODES = {3: "L", 5: "CMYK"}


def jpeg(number: int) -> bytes:
    """Smooth noise, wide, high or small."""
    rng = np.random.default_rng(number)
    width, height = rng.integers(30, 90, 2)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 5, 3)).astype(np.uint8))
    image = coarse.resize((int(width), int(height)), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.convert(MODES.get(number, "RGB")).save(file, "JPEG", quality=90)
    return file.getvalue()


def label(number: int) -> int:
    return number % CLASSES


def write(folder: Path, train: int = TRAIN, test: int = TEST) -> Path:
    """Prepares it in a folder for TFDS data; test images are numbered from 1000."""

    def examples(first: int, count: int) -> list[dict[str, object]]:
        return [
            {"image": io.BytesIO(jpeg(n)), "label": label(n), "file_name": f"n{n:08}.JPEG"}
            for n in range(first, first + count)
        ]

    return prepare(
        folder,
        "imagenet2012",
        "5.1.0",
        lambda types: {
            "image": types.Image(encoding_format="jpeg"),
            "label": types.ClassLabel(num_classes=CLASSES),
            "file_name": types.Text(),
        },
        {"train": examples(0, train), "validation": examples(1000, test)},
    )


def entry(train: int = TRAIN, test: int = TEST) -> LargeImageSet:
    """The catalogue's entry, as small as what was written."""
    return dataclasses.replace(
        LARGE_IMAGE_SETS["imagenet2012"],
        num_classes=CLASSES,
        image_size=SIZE,
        sizes={"train": train, "test": test},
    )
