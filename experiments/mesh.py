"""The device mesh and where the arrays of a run live on it.

Three axes: `data` and `fsdp` split the batch, `fsdp` and `tensor` split parameters. One device is
the 1 x 1 x 1 mesh, so nothing is special about it. A parameter's last axis goes to `tensor` and the
largest of the others to `fsdp`, where the sizes divide; everything else is replicated. Under
automatic sharding any placement computes the same function, so this is a matter of memory only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from experiments.errors import RunError

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))


def make(sizes: Mapping[str, int]) -> Mesh:
    """The mesh with these sizes per axis; one of them may be -1: all that is left.

    Raises:
      RunError: the sizes do not fit the number of devices.
    """
    devices = jax.devices()
    shape = [sizes[axis] for axis in AXES]
    given = [size for size in shape if size != -1]
    known = math.prod(given)
    if shape.count(-1) > 1 or min(given) < 1 or len(devices) % known:
        raise RunError(
            f"mesh {dict(sizes)} does not fit {len(devices)} device(s): the product of the sizes "
            "must divide that number, and at most one may be -1"
        )
    shape = [len(devices) // known if size == -1 else size for size in shape]
    used = math.prod(shape)
    return Mesh(np.asarray(devices[:used]).reshape(shape), AXES)


def on_this_machine(config: ConfigDict) -> ConfigDict:
    """The config with the mesh of whatever devices there are, and the layout that fits them: to
    look at a run made elsewhere."""
    config = config.copy_and_resolve_references()
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.layout = "auto"
    return config


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, batch_size: int) -> NamedSharding:
    """Where a batch lives: split over `data` and `fsdp`, if its size divides."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    return NamedSharding(mesh, BATCH if batch_size % parts == 0 else PartitionSpec())


def parameter_shardings(mesh: Mesh, tree: Any) -> Any:
    """A sharding for every leaf of a tree of arrays or `ShapeDtypeStruct`."""

    def place(leaf: Any) -> NamedSharding:
        spec: list[str | None] = [None] * len(leaf.shape)
        if len(spec) >= 2:
            if mesh.shape["tensor"] > 1 and leaf.shape[-1] % mesh.shape["tensor"] == 0:
                spec[-1] = "tensor"
            free = [axis for axis in range(len(spec)) if spec[axis] is None]
            largest = max(free, key=lambda axis: leaf.shape[axis])
            if mesh.shape["fsdp"] > 1 and leaf.shape[largest] % mesh.shape["fsdp"] == 0:
                spec[largest] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(place, tree)
