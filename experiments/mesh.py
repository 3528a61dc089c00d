"""The device mesh and where the arrays of a run live on it.

Three axes: `data` and `fsdp` split the batch, `fsdp` and `tensor` split parameters. One device is
the 1 x 1 x 1 mesh, so nothing is special about it. Kernels of Transformers are split as their
model says, all others by their sizes (`lowrank_jax.sharding`), and the optimizer's state as the
parameters. Under automatic sharding any placement computes the same function, so this is a matter
of memory and time only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from experiments.errors import RunError
from lowrank_jax.sharding import Partition, partition

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))
EVERY_DEVICE = "data:-1"


def parse(text: str) -> dict[str, int]:
    """The sizes of all axes, from ``AXIS:SIZE,...``; an axis that is not named has size 1.

    Raises:
      RunError: the text is not of this form.

    >>> parse("fsdp:4,data:-1")
    {'data': -1, 'fsdp': 4, 'tensor': 1}
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, colon, size = (piece.strip() for piece in part.partition(":"))
        if axis not in AXES or axis in sizes or not colon or not size.lstrip("-").isdigit():
            raise RunError(
                f"mesh={text!r}: expected AXIS:SIZE, separated by commas, each axis once, of "
                f"{', '.join(AXES)}, such as data:2,fsdp:4; the size -1 is all that is left"
            )
        sizes[axis] = int(size)
    return {axis: sizes.get(axis, 1) for axis in AXES}


def make(text: str) -> Mesh:
    """The mesh of a config, see `parse`; one of the sizes may be -1: all that is left.

    Raises:
      RunError: the sizes do not fit the number of devices, or leave out a process.
    """
    sizes, devices = parse(text), jax.devices()
    shape = list(sizes.values())
    given = [size for size in shape if size != -1]
    known = math.prod(given)
    if shape.count(-1) > 1 or min(given) < 1 or len(devices) % known:
        raise RunError(
            f"mesh={text!r} does not fit {len(devices)} device(s): the product of the sizes "
            "must divide that number, and at most one may be -1"
        )
    shape = [len(devices) // known if size == -1 else size for size in shape]
    used = math.prod(shape)
    idle = {device.process_index for device in devices} - {
        device.process_index for device in devices[:used]
    }
    if idle:
        raise RunError(
            f"mesh={text!r} leaves out process {min(idle)}: it takes the first {used} of "
            f"{len(devices)} devices, and each process must have one of them"
        )
    if used < len(devices):
        return Mesh(np.asarray(devices[:used]).reshape(shape), AXES)
    # Devices that send each other much are neighbours: on TPUs their numbers do not tell.
    ordered = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(ordered, AXES)


def text(mesh: Mesh | AbstractMesh) -> str:
    """The sizes of a mesh as `parse` reads them, without axes of size 1 but for the first."""
    parts = [f"{axis}:{size}" for axis, size in mesh.shape.items() if axis == AXES[0] or size > 1]
    return ",".join(parts)


def on_this_machine(config: ConfigDict) -> ConfigDict:
    """The config with the mesh of whatever devices there are, and the layout that fits them: to
    look at a run made elsewhere."""
    config = config.copy_and_resolve_references()
    config.mesh = EVERY_DEVICE
    config.layout = "auto"
    return config


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays of which every process has the same ones, on the devices of all.

    `jax.device_put` would have the processes compare them, every time.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(
            np.shape(leaf), sharding, np.asarray(leaf).__getitem__
        ),
        tree,
    )


def batch_parts(mesh: Mesh) -> int:
    """How many parts a batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh, batch_size: int) -> NamedSharding:
    """Where a batch lives: split over `data` and `fsdp`, if its size divides."""
    return NamedSharding(mesh, PartitionSpec() if batch_size % batch_parts(mesh) else BATCH)


def require_split(mesh: Mesh, sizes: Sequence[int]) -> str | None:
    """What is to be said of the batches of an epoch that cannot be split over the devices.

    Args:
      mesh: of the run.
      sizes: of the batches, or where they are taken in parts, of these.

    Raises:
      RunError: those are most of them.
    """
    parts = batch_parts(mesh)
    whole = [size for size in sizes if size % parts]
    if 2 * len(whole) > len(sizes):
        raise RunError(
            f"a batch of {max(whole)} examples cannot be split over {parts} devices: choose a "
            f"batch_size that makes batches, or the parts they are taken in, multiples of {parts}, "
            "or another mesh"
        )
    if not whole:
        return None
    return (
        f"{len(whole)} of {len(sizes)} batches of an epoch are no multiples of {parts} examples: "
        "each device computes all of them"
    )


def parameter_shardings(
    mesh: Mesh | AbstractMesh, params: Any, partitions: Sequence[Partition]
) -> Any:
    """A sharding for every leaf of the parameters, arrays or `ShapeDtypeStruct`.

    Raises:
      RunError: an axis of the mesh cannot split what it should, or anything at all.
    """
    try:
        found = partition(params, mesh, partitions)
    except ValueError as error:
        raise RunError(f"mesh of {_sizes(mesh)}: {error}") from error
    used = {
        name
        for sharding in jax.tree.leaves(found)
        for entry in sharding.spec
        for name in (entry if isinstance(entry, tuple) else (entry,))
    }
    for axis in ("fsdp", "tensor"):
        if mesh.shape[axis] > 1 and axis not in used:
            raise RunError(
                f"mesh of {_sizes(mesh)}: no kernel has an axis that can be split over {axis}: its "
                "size must divide one of theirs"
            )
    return found


def _sizes(mesh: Mesh | AbstractMesh) -> str:
    return ", ".join(f"{axis}:{size}" for axis, size in mesh.shape.items())
