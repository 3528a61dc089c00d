"""How the leaves of the training state are split over a mesh, and which could be split further."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from lowrank_jax.tree import path_string

# Axes of the mesh along which states can be split; along the others there are copies of them.
SPLITTING = ("fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class Shards:
    """One leaf of the training state.

    Attributes:
      part: `parameters`, `optimizer_state` or `model_state`.
      path: within that part.
      dtype: of its elements.
      shape: of the whole array.
      axes: for each of its axes the axes of the mesh that split it.
      shard_shape: of what one device has.
      bytes, shard_bytes: of the whole array, and of what one device has.
    """

    part: str
    path: str
    dtype: str
    shape: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]
    shard_shape: tuple[int, ...]
    bytes: int
    shard_bytes: int

    def could_be_split(self, sizes: dict[str, int]) -> tuple[str, ...]:
        """Axes of a mesh of these sizes that do not split it, and whose size divides one of its
        axes as it lies on a device."""
        used = {name for names in self.axes for name in names}
        return tuple(
            name
            for name in SPLITTING
            if sizes[name] > 1
            and name not in used
            and any(size % sizes[name] == 0 for size in self.shard_shape)
        )


def shards(part: str, tree: Any) -> list[Shards]:
    """The leaves of a tree of arrays or `ShapeDtypeStruct`s that have a `NamedSharding`, in their
    order."""
    return [
        _shards(part, path_string(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _shards(part: str, path: str, leaf: Any) -> Shards:
    spec = (*leaf.sharding.spec, *(None for _ in leaf.shape))[: len(leaf.shape)]
    shard = leaf.sharding.shard_shape(leaf.shape)
    size = leaf.dtype.itemsize
    return Shards(
        part=part,
        path=path,
        dtype=leaf.dtype.name,
        shape=tuple(leaf.shape),
        axes=tuple((name,) if isinstance(name, str) else tuple(name or ()) for name in spec),
        shard_shape=tuple(shard),
        bytes=math.prod(leaf.shape) * size,
        shard_bytes=math.prod(shard) * size,
    )


def device_bytes(leaves: Sequence[Shards], part: str) -> int:
    """What one device has of a part."""
    return sum(leaf.shard_bytes for leaf in leaves if leaf.part == part)


def whole_bytes(leaves: Sequence[Shards], part: str) -> int:
    """The size of a part, each of its arrays once."""
    return sum(leaf.bytes for leaf in leaves if leaf.part == part)
