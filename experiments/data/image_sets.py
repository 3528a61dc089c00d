"""The image sets: what each consists of, where its original files are, their checksums.

Checksums and addresses: tensorflow-datasets' registered ones (sha256) for the binary CIFAR archives
and Fashion-MNIST, torchvision's (md5) for the Python CIFAR archives, and the md5 that public
loaders state for Tiny-ImageNet. The checksum of an IDX file is that of its uncompressed content,
because Debian's package `dataset-fashion-mnist` has rewritten the gzip headers of the same content.
The published statistics are those in the PyTorch code behind the compression experiments of arXiv
2105.01029 (section 5).
"""

import dataclasses
from pathlib import Path
from typing import ClassVar

from experiments.data import cifar, embedded_sets, idx, tfds_folder, tiny_imagenet
from experiments.data.image_data import ImageData, Statistics
from experiments.data.original import (
    Arrays,
    AtHand,
    DataSet,
    Original,
    OriginalFile,
    Prepared,
    Release,
)


@dataclasses.dataclass(frozen=True)
class ImageSet(DataSet[ImageData]):
    """An image classification set.

    Attributes:
      num_classes: number of classes.
      image_size: height and width of the images that networks get, in pixels: the canvas of
        `pipeline.py`.
      mirror_symmetric: whether the mirror image of an example belongs to the same class, so that
        random flips are a sensible augmentation (true of clothes, false of digits).
      published_statistics: what published code normalises the data set by, if there is such code.
      train_shape, test_shape: of the stored images, `(N, H, W, C)`.
    """

    array_names: ClassVar[tuple[str, ...]] = (
        "train_images",
        "train_labels",
        "test_images",
        "test_labels",
    )

    num_classes: int
    image_size: int
    mirror_symmetric: bool
    published_statistics: Statistics | None
    train_shape: tuple[int, int, int, int]
    test_shape: tuple[int, int, int, int]

    def build(self, origin: str, arrays: Arrays) -> ImageData:
        return ImageData.from_arrays(self.name, origin, *arrays, num_classes=self.num_classes)


_TORONTO = "https://www.cs.toronto.edu/~kriz/"
_ZALANDO = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"


def _fashion_file(name: str, size: int, sha256: str) -> OriginalFile:
    return OriginalFile(name, _ZALANDO + name, size, f"sha256:{sha256}", content_checksum=True)


def _cifar_release(name: str, size: int, checksum: str, layout: cifar.Layout) -> Release:
    file = OriginalFile(name, _TORONTO + name, size, checksum)
    return Release((file,), lambda path: cifar.read(path, layout))


def _prepared(name: str, order: tfds_folder.Order) -> Prepared:
    return Prepared(name, lambda folder: tfds_folder.read(folder, name, order))


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
            lambda first, *_: idx.read_folder(first.parent),
        ),
    ),
    subfolder="fashion_mnist",
    system_folder=Path("/usr/share/datasets/fashion-mnist"),
    install="apt-get install dataset-fashion-mnist",
    prepared=_prepared("fashion_mnist", "hash"),
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
    prepared=_prepared("cifar10", "id"),
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
    prepared=_prepared("cifar100", "id"),
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
            lambda path: tiny_imagenet.read(path, tiny_imagenet.TINY_IMAGENET),
        ),
    ),
    subfolder="",
    system_folder=None,
    install=None,
    prepared=None,
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
            provider=AtHand.embedded(embedded_sets.fashion_small),
            fingerprint="437e950becdbf9af220be4a275cd79a84d1cb57c80c683aba9ea24aa7f5ec877",
            published_statistics=None,
            train_shape=(5000, 28, 28, 1),
            test_shape=(2000, 28, 28, 1),
        ),
        ImageSet(
            name="digits",
            num_classes=10,
            image_size=32,
            mirror_symmetric=False,
            provider=AtHand.embedded(embedded_sets.digits),
            fingerprint="259de14e0befc3ce6e80657690f37e6b5dd0eef6382730ea0a0c8514016a1994",
            published_statistics=None,
            train_shape=(1437, 8, 8, 1),
            test_shape=(360, 8, 8, 1),
        ),
        ImageSet(
            name="fashion_mnist",
            num_classes=10,
            image_size=32,
            mirror_symmetric=True,
            provider=_FASHION_MNIST,
            fingerprint="0bc3732c3b28f55e32e95a2ac5cea79965beb439344d36c57dc1ea8d673cc27d",
            published_statistics=None,
            train_shape=(60_000, 28, 28, 1),
            test_shape=(10_000, 28, 28, 1),
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
            train_shape=(50_000, 32, 32, 3),
            test_shape=(10_000, 32, 32, 3),
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
            train_shape=(50_000, 32, 32, 3),
            test_shape=(10_000, 32, 32, 3),
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
            train_shape=(100_000, 64, 64, 3),
            test_shape=(10_000, 64, 64, 3),
        ),
    )
}
