"""The data sets by name: what each consists of, where its original files are, their checksums.

Checksums and addresses: tensorflow-datasets' registered ones (sha256) for the binary CIFAR
archives and for Fashion-MNIST, torchvision's (md5) for the Python CIFAR archives, and the md5 that
public loaders state for Tiny-ImageNet. The checksum of an IDX file is that of its uncompressed
content, because Debian's package `dataset-fashion-mnist` has rewritten the gzip headers of the
same content. The published statistics are those in the PyTorch code behind the compression
experiments of arXiv 2105.01029 (section 5).
"""

import dataclasses
import difflib
from collections.abc import Callable
from pathlib import Path

from experiments.data import cifar, embedded_sets, idx, tfds_folder, tiny_imagenet
from experiments.data.embedded_sets import Arrays
from experiments.data.errors import DataUnavailable
from experiments.data.image_data import Statistics


@dataclasses.dataclass(frozen=True)
class OriginalFile:
    """A file as its authors publish it.

    Attributes:
      name: its file name.
      url: where to download it.
      size: its size there, in bytes.
      checksum: `ALGORITHM:HEX` of the file.
      content_checksum: whether `checksum` is of the content after gzip decompression.
    """

    name: str
    url: str
    size: int
    checksum: str
    content_checksum: bool = False


@dataclasses.dataclass(frozen=True)
class Release:
    """One way its authors publish a data set: files that together hold all of it.

    Attributes:
      files: the files.
      read: reads them from the folder they are in; uint8 images, integer labels, in file order.
    """

    files: tuple[OriginalFile, ...]
    read: Callable[[Path], Arrays]


@dataclasses.dataclass(frozen=True)
class Original:
    """How a data set that is not embedded can be had.

    Attributes:
      releases: the first is the one that is downloaded.
      subfolder: folder within `data.dir` for the original files; they have a folder of their own
        where their names do not tell the data set.
      system_folder: where a package of the operating system puts them, if there is one.
      install: the command that installs that package.
      tfds_order: how the order of the original files is restored from a prepared TFDS folder:
        by the field `id`, or by TFDS's hash of the example's number; None: TFDS does not have it.
      instead: data sets of the same kind that need no download.
    """

    releases: tuple[Release, ...]
    subfolder: str
    system_folder: Path | None
    install: str | None
    tfds_order: tfds_folder.Order | None
    instead: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A data set's entry.

    Attributes:
      name: its name.
      num_classes: number of classes.
      image_size: height and width of the images that networks get, in pixels: the canvas of
        `pipeline.py`.
      mirror_symmetric: whether the mirror image of an example belongs to the same class, so that
        random flips are a sensible augmentation (true of clothes, false of digits).
      provider: a function that returns the embedded arrays, or the `Original`.
      fingerprint: the known one; None where nobody has computed it from the genuine files here.
      published_statistics: what published code normalises the data set by, if there is such code.
    """

    name: str
    num_classes: int
    image_size: int
    mirror_symmetric: bool
    provider: Callable[[], Arrays] | Original
    fingerprint: str | None
    published_statistics: Statistics | None


_TORONTO = "https://www.cs.toronto.edu/~kriz/"
_ZALANDO = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"


def _fashion_file(name: str, size: int, sha256: str) -> OriginalFile:
    return OriginalFile(name, _ZALANDO + name, size, f"sha256:{sha256}", content_checksum=True)


def _cifar_release(name: str, size: int, checksum: str, layout: cifar.Layout) -> Release:
    file = OriginalFile(name, _TORONTO + name, size, checksum)
    return Release((file,), lambda folder: cifar.read(folder / name, layout))


_FASHION_MNIST = Original(
    releases=(
        Release(
            (
                _fashion_file(
                    "train-images-idx3-ubyte.gz",
                    26421880,
                    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                ),
                _fashion_file(
                    "train-labels-idx1-ubyte.gz",
                    29515,
                    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                ),
                _fashion_file(
                    "t10k-images-idx3-ubyte.gz",
                    4422102,
                    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                ),
                _fashion_file(
                    "t10k-labels-idx1-ubyte.gz",
                    5148,
                    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
                ),
            ),
            idx.read_folder,
        ),
    ),
    subfolder="fashion_mnist",
    system_folder=Path("/usr/share/datasets/fashion-mnist"),
    install="apt-get install dataset-fashion-mnist",
    tfds_order="hash",
    instead=("fashion_small", "digits"),
)

_CIFAR10 = Original(
    releases=(
        _cifar_release(
            "cifar-10-binary.tar.gz",
            170052171,
            "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            cifar.CIFAR10_BINARY,
        ),
        _cifar_release(
            "cifar-10-python.tar.gz",
            170498071,
            "md5:c58f30108f718f92721af3b95e74349a",
            cifar.CIFAR10_PYTHON,
        ),
    ),
    subfolder="",
    system_folder=None,
    install=None,
    tfds_order="id",
    instead=("fashion_mnist", "digits"),
)

_CIFAR100 = Original(
    releases=(
        _cifar_release(
            "cifar-100-binary.tar.gz",
            168513733,
            "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            cifar.CIFAR100_BINARY,
        ),
        _cifar_release(
            "cifar-100-python.tar.gz",
            169001437,
            "md5:eb9058c3a382ffc7106e4002c42a8d85",
            cifar.CIFAR100_PYTHON,
        ),
    ),
    subfolder="",
    system_folder=None,
    install=None,
    tfds_order="id",
    instead=("fashion_mnist", "digits"),
)

_TINY_IMAGENET = Original(
    releases=(
        Release(
            (
                OriginalFile(
                    "tiny-imagenet-200.zip",
                    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                    248100043,
                    "md5:90528d7ca1a48142e341f4ef8d21d0de",
                ),
            ),
            lambda folder: tiny_imagenet.read(
                folder / "tiny-imagenet-200.zip", tiny_imagenet.TINY_IMAGENET
            ),
        ),
    ),
    subfolder="",
    system_folder=None,
    install=None,
    tfds_order=None,
    instead=("fashion_mnist", "digits"),
)

IMAGE_SETS: dict[str, ImageSet] = {
    entry.name: entry
    for entry in (
        ImageSet(
            name="fashion_small",
            num_classes=10,
            image_size=32,
            mirror_symmetric=True,
            provider=embedded_sets.fashion_small,
            fingerprint="437e950becdbf9af220be4a275cd79a84d1cb57c80c683aba9ea24aa7f5ec877",
            published_statistics=None,
        ),
        ImageSet(
            name="digits",
            num_classes=10,
            image_size=32,
            mirror_symmetric=False,
            provider=embedded_sets.digits,
            fingerprint="259de14e0befc3ce6e80657690f37e6b5dd0eef6382730ea0a0c8514016a1994",
            published_statistics=None,
        ),
        ImageSet(
            name="fashion_mnist",
            num_classes=10,
            image_size=32,
            mirror_symmetric=True,
            provider=_FASHION_MNIST,
            fingerprint="0bc3732c3b28f55e32e95a2ac5cea79965beb439344d36c57dc1ea8d673cc27d",
            published_statistics=None,
        ),
        ImageSet(
            name="cifar10",
            num_classes=10,
            image_size=32,
            mirror_symmetric=True,
            provider=_CIFAR10,
            fingerprint=None,
            published_statistics=Statistics(
                mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)
            ),
        ),
        ImageSet(
            name="cifar100",
            num_classes=100,
            image_size=32,
            mirror_symmetric=True,
            provider=_CIFAR100,
            fingerprint=None,
            published_statistics=Statistics(
                mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)
            ),
        ),
        ImageSet(
            name="tiny_imagenet",
            num_classes=tiny_imagenet.TINY_IMAGENET.classes,
            image_size=tiny_imagenet.TINY_IMAGENET.image_size,
            mirror_symmetric=True,
            provider=_TINY_IMAGENET,
            fingerprint=None,
            published_statistics=Statistics(
                mean=(0.48024578664982126, 0.44807218089384643, 0.3975477478649648),
                std=(0.2769864069088257, 0.26906448510256, 0.282081906210584),
            ),
        ),
    )
}


def names() -> tuple[str, ...]:
    """The names that `load` takes."""
    return tuple(IMAGE_SETS)


def image_set(name: str) -> ImageSet:
    """The entry of a name; `DataUnavailable` with near misses if there is none."""
    if name in IMAGE_SETS:
        return IMAGE_SETS[name]
    near = difflib.get_close_matches(name, IMAGE_SETS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise DataUnavailable(f"unknown data set {name!r}{hint}: choose one of {', '.join(names())}")
