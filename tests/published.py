"""The published networks as trees of shapes, written down from the description of the papers."""

from __future__ import annotations

from typing import Any

import jax


def _array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, "float32")


def _norm(width: int) -> dict[str, Any]:
    return {"scale": _array(width), "bias": _array(width)}


def cifar_resnet(
    depth: int, classes: int = 10, widths: tuple[int, ...] = (16, 32, 64), projection: bool = False
) -> dict[str, Any]:
    """He et al.'s CIFAR ResNet, depth 6 n + 2; ``projection``: 1x1 convolutions as shortcuts."""
    n, rest = divmod(depth - 2, 6)
    assert rest == 0
    tree: dict[str, Any] = {
        "stem": {"kernel": _array(3, 3, 3, widths[0])},
        "norm": _norm(widths[0]),
    }
    before = widths[0]
    for stage, width in enumerate(widths):
        for number in range(n):
            block: dict[str, Any] = {
                "conv1": {"kernel": _array(3, 3, before, width)},
                "norm1": _norm(width),
                "conv2": {"kernel": _array(3, 3, width, width)},
                "norm2": _norm(width),
            }
            if projection and before != width:
                block["shortcut"] = {"kernel": _array(1, 1, before, width)}
                block["norm3"] = _norm(width)
            tree[f"block_{stage}_{number}"] = block
            before = width
    tree["head"] = {"kernel": _array(widths[-1], classes), "bias": _array(classes)}
    return tree


def vgg19(classes: int = 10) -> dict[str, Any]:
    """The 16 convolutions of VGG19 with batch norm and one linear layer."""
    widths = [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
    tree: dict[str, Any] = {}
    before = 3
    for number, width in enumerate(widths):
        tree[f"conv_{number}"] = {"kernel": _array(3, 3, before, width)}
        tree[f"norm_{number}"] = _norm(width)
        before = width
    tree["head"] = {"kernel": _array(512, classes), "bias": _array(classes)}
    return tree
