"""Random data sets, written as original files of the true layout."""

import gzip
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.data.original import Arrays
from experiments.data.tiny_imagenet import Contents


def random_set(seed: int, train: int, test: int, shape: tuple[int, ...], classes: int) -> Arrays:
    """Random uint8 images and labels; the first label is the highest, so that all are legal."""
    rng = np.random.default_rng(seed)
    train_labels = rng.integers(0, classes, train).astype(np.uint8)
    train_labels[0] = classes - 1
    return (
        rng.integers(0, 256, (train, *shape), np.uint8),
        train_labels,
        rng.integers(0, 256, (test, *shape), np.uint8),
        rng.integers(0, classes, test).astype(np.uint8),
    )


def planes(images: np.ndarray) -> np.ndarray:
    """CIFAR's storage of images: three planes after each other, `(N, 3072)`."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _binary_records(images: np.ndarray, *labels: np.ndarray) -> bytes:
    columns = [label[:, None].astype(np.uint8) for label in labels]
    return np.concatenate([*columns, planes(images)], axis=1).tobytes()


def write_cifar10_binary(path: Path, arrays: Arrays) -> None:
    train_images, train_labels, test_images, test_labels = arrays
    members = {
        f"cifar-10-batches-bin/data_batch_{i + 1}.bin": _binary_records(images, labels)
        for i, (images, labels) in enumerate(
            zip(np.split(train_images, 5), np.split(train_labels, 5), strict=True)
        )
    }
    members["cifar-10-batches-bin/test_batch.bin"] = _binary_records(test_images, test_labels)
    members["cifar-10-batches-bin/batches.meta.txt"] = b"airplane\n"
    write_tar(path, members)


def write_cifar100_binary(path: Path, arrays: Arrays) -> None:
    train_images, train_labels, test_images, test_labels = arrays
    write_tar(
        path,
        {
            "cifar-100-binary/test.bin": _binary_records(
                test_images, test_labels // 5, test_labels
            ),
            "cifar-100-binary/train.bin": _binary_records(
                train_images, train_labels // 5, train_labels
            ),
        },
    )


def write_cifar10_python(path: Path, arrays: Arrays) -> None:
    train_images, train_labels, test_images, test_labels = arrays
    members = {
        f"cifar-10-batches-py/data_batch_{i + 1}": _python_batch(images, labels=labels)
        for i, (images, labels) in enumerate(
            zip(np.split(train_images, 5), np.split(train_labels, 5), strict=True)
        )
    }
    members["cifar-10-batches-py/test_batch"] = _python_batch(test_images, labels=test_labels)
    write_tar(path, members)


def write_cifar100_python(path: Path, arrays: Arrays) -> None:
    train_images, train_labels, test_images, test_labels = arrays
    write_tar(
        path,
        {
            "cifar-100-python/train": _python_batch(
                train_images, coarse_labels=train_labels // 5, fine_labels=train_labels
            ),
            "cifar-100-python/test": _python_batch(
                test_images, coarse_labels=test_labels // 5, fine_labels=test_labels
            ),
        },
    )


def _python_batch(images: np.ndarray, **labels: np.ndarray) -> bytes:
    """A dictionary as Python 2's pickle protocol 2 wrote it, with 8-bit strings."""
    items = [_string(b"data") + _array(planes(images))]
    items += [_string(name.encode()) + _list(values) for name, values in labels.items()]
    items += [_string(b"batch_label") + _string(b"training batch 1 of 5")]
    return b"\x80\x02}(" + b"".join(items) + b"u."


def _string(text: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(text)) + text


def _list(values: np.ndarray) -> bytes:
    return b"](" + b"".join(b"K" + bytes([int(value)]) for value in values) + b"e"


def _array(array: np.ndarray) -> bytes:
    dtype_state = b"(K\x03" + _string(b"|") + b"NNN" + 2 * (b"J" + b"\xff" * 4) + b"K\x00tb"
    dtype = b"cnumpy\ndtype\n" + _string(b"u1") + b"K\x00K\x01\x87R" + dtype_state
    shape = b"".join(b"J" + struct.pack("<i", size) for size in array.shape) + b"\x86"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
    state = b"(K\x01" + shape + dtype + b"\x89" + _string(array.tobytes()) + b"tb"
    return empty + _string(b"b") + b"\x87R" + state


def write_idx_folder(folder: Path, arrays: Arrays) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    train_images, train_labels, test_images, test_labels = arrays
    for name, array in (
        ("train-images-idx3-ubyte.gz", train_images[..., 0]),
        ("train-labels-idx1-ubyte.gz", train_labels),
        ("t10k-images-idx3-ubyte.gz", test_images[..., 0]),
        ("t10k-labels-idx1-ubyte.gz", test_labels),
    ):
        header = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
        (folder / name).write_bytes(gzip.compress(header + array.tobytes()))


# Enough for `_10` to sort before `_2`.
SMALL_TINY_IMAGENET = Contents(classes=3, train_per_class=11, validation_images=12, image_size=64)
WNIDS = ("n03014705", "n01443537", "n02123045")  # as the archive lists them: not sorted


def jpeg(image: np.ndarray) -> bytes:
    """A JPEG of uint8 `(H, W, 3)`, or of a grey image `(H, W)`."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def quarters(rng: np.random.Generator, grey: bool) -> np.ndarray:
    """A 64 x 64 image of four plain squares, which JPEG keeps nearly as they are."""
    colours = rng.integers(0, 256, (2, 2) if grey else (2, 2, 3), np.uint8)
    return colours.repeat(32, axis=0).repeat(32, axis=1)


def tiny_imagenet_images() -> dict[str, np.ndarray]:
    """Path within the archive to image; the third of each split is grey."""
    rng = np.random.default_rng(3)
    per_class = range(SMALL_TINY_IMAGENET.train_per_class)
    train = [f"train/{wnid}/images/{wnid}_{i}.JPEG" for wnid in WNIDS for i in per_class]
    count = SMALL_TINY_IMAGENET.validation_images
    validation = [f"val/images/val_{i}.JPEG" for i in range(count)]
    return {
        path: quarters(rng, grey=i == 2)
        for paths in (train, validation)
        for i, path in enumerate(paths)
    }


def tiny_imagenet_members(images: dict[str, np.ndarray]) -> dict[str, bytes]:
    """What the archive holds besides: `val_I.JPEG` is of the class `WNIDS[I % 3]`."""
    count = SMALL_TINY_IMAGENET.validation_images
    lines = [f"val_{i}.JPEG\t{WNIDS[i % 3]}\t0\t10\t40\t62\n" for i in range(count)]
    return {
        "wnids.txt": "\n".join(WNIDS).encode(),
        "words.txt": b"n00001740\tentity\n",
        "val/val_annotations.txt": "".join(lines).encode(),
        "test/images/test_0.JPEG": b"not looked at",
        **{f"train/{wnid}/{wnid}_boxes.txt": b"0\t0\t1\t1\n" for wnid in WNIDS},
        **{path: jpeg(image) for path, image in images.items()},
    }


def write_tiny_imagenet(path: Path, members: dict[str, bytes]) -> None:
    """The archive, uncompressed; its members come in no sensible order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(members, key=lambda name: name[::-1]):
            archive.writestr(f"tiny-imagenet-200/{name}", members[name])
