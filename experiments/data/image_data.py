"""An image classification data set in memory: arrays, statistics, fingerprint, validation split.

The fingerprint is the sha256 over the shape, dtype and bytes of all four arrays in their
canonical order (the order of the original files), so that equal fingerprints mean that a seed
selects the same examples, whatever place the data was read from.
"""

import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np

from experiments.data.fingerprint import fingerprint
from experiments.data.original import Arrays
from experiments.errors import RunError


class Statistics(NamedTuple):
    """What images are normalised by, in units of 0..1: one number, or one for each channel.

    Attributes:
      mean: subtracted from the pixels.
      std: the divisor.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Statistics(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Of ImageNet, as all published code has them."""


@dataclasses.dataclass(frozen=True, eq=False)
class ImageData:
    """A data set as it was loaded; made by `ImageData.from_arrays`, which computes the rest.

    Attributes:
      name: the name it was asked for.
      origin: where it came from, for people.
      train_images: uint8 `(N, H, W, C)` in their native size.
      train_labels: int32 `(N,)`, in `[0, num_classes)`.
      test_images: uint8 `(M, H, W, C)`.
      test_labels: int32 `(M,)`.
      num_classes: number of classes.
      fingerprint: sha256 in hex, see the module.
      mean: mean of each channel over the native training images, in units of 0..1.
      std: standard deviation of each channel about that mean, same units.

    The arrays are read-only.
    """

    name: str
    origin: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_arrays(
        cls,
        name: str,
        origin: str,
        train_images: np.ndarray,
        train_labels: np.ndarray,
        test_images: np.ndarray,
        test_labels: np.ndarray,
        *,
        num_classes: int,
    ) -> "ImageData":
        """Checks the arrays and computes fingerprint and statistics.

        Raises `ValueError` if shapes, dtypes or labels do not fit together.
        """
        for split, images, labels in (
            ("training", train_images, train_labels),
            ("test", test_images, test_labels),
        ):
            _check_split(f"{name}, {split} split", images, labels, num_classes)
        if train_images.shape[1:] != test_images.shape[1:]:
            raise ValueError(
                f"{name}: training images are {train_images.shape[1:]}, "
                f"test images {test_images.shape[1:]}"
            )
        train_images = _frozen(train_images, np.uint8)
        train_labels = _frozen(train_labels, np.int32)
        test_images = _frozen(test_images, np.uint8)
        test_labels = _frozen(test_labels, np.int32)
        mean, std = channel_statistics(train_images)
        return cls(
            name=name,
            origin=origin,
            train_images=train_images,
            train_labels=train_labels,
            test_images=test_images,
            test_labels=test_labels,
            num_classes=num_classes,
            fingerprint=fingerprint(train_images, train_labels, test_images, test_labels),
            mean=mean,
            std=std,
        )

    @property
    def arrays(self) -> Arrays:
        """Images and labels for training, then those for testing."""
        return self.train_images, self.train_labels, self.test_images, self.test_labels

    @property
    def summary(self) -> str:
        """What it holds, in a line."""
        return (
            f"{len(self.train_images)} training and {len(self.test_images)} test images "
            f"of {self.train_images.shape[1:]}, {self.num_classes} classes"
        )


def _check_split(where: str, images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise ValueError(
            f"{where}: images are {images.dtype} {images.shape}, expected uint8 (N, H, W, C)"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{where}: labels are {labels.dtype} {labels.shape} for {len(images)} images"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"{where}: labels are in [{labels.min()}, {labels.max()}], "
            f"expected [0, {num_classes - 1}]"
        )


def _frozen(array: np.ndarray, dtype: type) -> np.ndarray:
    # A view, so that the caller's own array stays writeable.
    view: np.ndarray = np.ascontiguousarray(array, dtype).view()
    view.flags.writeable = False
    return view


def channel_statistics(images: np.ndarray) -> Statistics:
    """Mean and standard deviation of each channel of uint8 `(N, H, W, C)`, in units of 0..1.

    Exact up to the last rounding: computed from a histogram of the 256 values.

    >>> channel_statistics(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1))
    Statistics(mean=(0.5,), std=(0.5,))
    """
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(images), 1024):  # bincount works on an int64 copy: keep it small
        block = images[start : start + 1024]
        for channel in range(channels):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255.0
    total = counts.sum(axis=1)
    mean = counts @ values / total
    std = np.sqrt((counts * (values - mean[:, None]) ** 2).sum(axis=1) / total)
    return Statistics(tuple(mean.tolist()), tuple(std.tolist()))


def split_validation(
    data: ImageData, fraction_or_count: float | int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Holds out a class-balanced part of the training images for validation.

    Each class gives its share, rounded by largest remainders, so that the total is exact. Within
    a class, examples are ranked by `sha256("seed:index")`: the split depends on nothing but the
    labels and the arguments, not on the release of a random number generator.

    Args:
      data: the data set.
      fraction_or_count: a float in (0, 1) is a fraction of the training images, an int >= 1 their
        number.
      seed: any integer.

    Returns:
      Two sorted int32 arrays of indices into `data.train_images`: for training, for validation.

    Raises:
      RunError: if nothing would be left for training or for validation.
    """
    labels = data.train_labels
    size = len(labels)
    count = validation_size(data.name, size, fraction_or_count)
    per_class = np.bincount(labels, minlength=data.num_classes)
    whole, remainder = np.divmod(count * per_class, size)
    largest = np.argsort(-remainder, kind="stable")[: count - int(whole.sum())]
    whole[largest] += 1
    rank = np.array(
        [hashlib.sha256(f"{seed}:{index}".encode()).digest() for index in range(size)],
        dtype="S32",
    )
    held_out = np.zeros(size, bool)
    for label, number in enumerate(whole):
        members = np.flatnonzero(labels == label)
        held_out[members[np.argsort(rank[members], kind="stable")[:number]]] = True
    return (
        np.flatnonzero(~held_out).astype(np.int32),
        np.flatnonzero(held_out).astype(np.int32),
    )


def validation_size(name: str, size: int, fraction_or_count: float | int) -> int:
    """How many of the `size` training images of a data set `split_validation` holds out.

    Raises:
      RunError: if nothing would be left for training or for validation.
    """
    if isinstance(fraction_or_count, float):
        count = round(fraction_or_count * size) if 0.0 < fraction_or_count < 1.0 else 0
    else:
        count = int(fraction_or_count)
    if not 0 < count < size:
        raise RunError(
            f"validation split of {fraction_or_count!r} from the {size} training images of "
            f"{name!r}: expected a fraction in (0, 1) or a count in [1, {size - 1}]"
        )
    return count
