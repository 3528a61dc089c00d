"""Which part of a photograph a network gets: the crops that ResNet-50 is published with.

Training: a random resized crop (Szegedy et al. 2015, arXiv 1409.4842, section 6, as He et al. 2016
and Goyal et al. 2017, arXiv 1706.02677, section 5.1, take it over). A rectangle of 8 to 100 % of
the area, whose ratio of width to height lies between 3/4 and 4/3 with a uniform logarithm, at a
uniform place; after ten rectangles that do not fit, the largest central one of such a ratio. It is
resized, and mirrored with probability one half.

Evaluation: the shorter side is resized to 256 pixels for a network of 224, and the centre is cut
out; for other sizes in proportion.

What is drawn for an example is a pure function of seed, epoch and the number of the example: the
bytes of SHAKE-256 over these three, so no release of a random number generator changes it, and
neither does who computes it, or in which order.
"""

import hashlib
import math
from typing import NamedTuple

import numpy as np

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
_NUMBERS = 1 + 4 * ATTEMPTS


class Box(NamedTuple):
    """A part of an image, in pixels: from `left` to `right - 1`, from `top` to `bottom - 1`."""

    left: int
    top: int
    right: int
    bottom: int


class Draw(NamedTuple):
    """What is random in the image of an example.

    Attributes:
      box: what is cut out.
      mirrored: whether it is mirrored.
    """

    box: Box
    mirrored: bool


def draw(seed: int, epoch: int, example: int, width: int, height: int) -> Draw:
    """The random crop of an example in an epoch.

    Args:
      seed: of the run.
      epoch: counted from 0.
      example: its number in the data set.
      width, height: of its image.

    >>> draw(0, 3, 17, 500, 375) == draw(0, 3, 17, 500, 375)
    True
    """
    uniform = _uniform_numbers(f"{seed}:{epoch}:{example}")
    mirrored = bool(uniform[0] < 0.5)
    for area, ratio, across, down in uniform[1:].reshape(ATTEMPTS, 4).tolist():
        pixels = width * height * (AREA[0] + area * (AREA[1] - AREA[0]))
        aspect = RATIO[0] * (RATIO[1] / RATIO[0]) ** ratio
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
            return Draw(Box(left, top, left + w, top + h), mirrored)
    return Draw(_largest_central(width, height), mirrored)


def _uniform_numbers(key: str) -> np.ndarray:
    """Float64 numbers in [0, 1), of 53 random bits each."""
    digest = hashlib.shake_256(key.encode()).digest(8 * _NUMBERS)
    return (np.frombuffer(digest, "<u8") >> np.uint64(11)) * 2.0**-53


def _largest_central(width: int, height: int) -> Box:
    """The largest box in the middle whose ratio is not beyond the ends of `RATIO`."""
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return _central(width, height, max(w, 1), max(h, 1))


def resized(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height at which the centre of an image is cut out for a network of `size` pixels.

    >>> resized(500, 375, 224), resized(100, 400, 224)
    ((341, 256), (256, 1024))
    """
    shorter = size * 256 // 224
    if width <= height:
        return shorter, max(shorter, height * shorter // width)
    return max(shorter, width * shorter // height), shorter


def centre(width: int, height: int, size: int) -> Box:
    """The square of `size` pixels in the middle.

    >>> centre(341, 256, 224)
    Box(left=58, top=16, right=282, bottom=240)
    """
    return _central(width, height, size, size)


def _central(width: int, height: int, w: int, h: int) -> Box:
    left, top = (width - w) // 2, (height - h) // 2
    return Box(left, top, left + w, top + h)
