"""JPEGs of any size as what a network gets: decoded, cropped, resized. `crops.py` says which part.

Grey and CMYK images become RGB. Resizing is Pillow's bilinear one, which averages where it makes an
image smaller; turning by EXIF is not done, as the published code does not.
"""

import io

import numpy as np
from PIL import Image

from experiments.data import crops
from experiments.data.crops import Box


def training_pixels(
    content: bytes, size: int, seed: int, epoch: int, example: int, flip: bool
) -> np.ndarray:
    """A random part of an image: uint8 `(size, size, 3)`.

    Args:
      content: of the file.
      size: of the network's images.
      seed, epoch, example: what the part is a function of.
      flip: whether it may be mirrored.

    Raises `OSError` or `ValueError` if the file is damaged, as all functions here.
    """
    image = _decoded(content)
    box, mirrored = crops.draw(seed, epoch, example, *image.size)
    pixels = _part(image, box, size)
    return pixels[:, ::-1] if flip and mirrored else pixels


def evaluation_pixels(content: bytes, size: int) -> np.ndarray:
    """The middle of an image: uint8 `(size, size, 3)`."""
    image = _decoded(content)
    image = image.resize(crops.resized(*image.size, size), Image.Resampling.BILINEAR)
    return np.asarray(image.crop(crops.centre(*image.size, size)))


def _decoded(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB")


def _part(image: Image.Image, box: Box, size: int) -> np.ndarray:
    return np.asarray(image.crop(box).resize((size, size), Image.Resampling.BILINEAR))
