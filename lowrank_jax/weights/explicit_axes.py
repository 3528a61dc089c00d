"""Meshes with explicit axes: there, a contraction over a sharded axis must be told its result's.

What is made of the factors of a weight alone, without their long axes, is sharded along the batch
axes, as the factor is, and along no other. Elsewhere the compiler decides, and nothing is said.
"""

from __future__ import annotations

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def batch_sharding(factor: jax.Array, batch: int, axes: int = 2) -> NamedSharding | None:
    """Of an array with the factor's batch axes and some unsplit ones; None without explicit axes.

    Args:
      factor: with leading batch axes.
      batch: how many those are.
      axes: how many axes the array has after them: the two of a Gram matrix, if nothing is said.
    """
    sharding = getattr(jax.typeof(factor), "sharding", None)
    if sharding is None or AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    spec = PartitionSpec(*sharding.spec[:batch], *(None,) * axes)
    return NamedSharding(sharding.mesh, spec)


def gathered(factor: jax.Array, batch: int) -> jax.Array:
    """The factor, split along no axis but its batch axes; itself without explicit axes."""
    sharding = batch_sharding(factor, batch, factor.ndim - batch)
    return factor if sharding is None else jax.sharding.reshard(factor, sharding)


def placed_alike(first: jax.Array, second: jax.Array) -> jax.Array:
    """The second array, split as the first; itself without explicit axes."""
    sharding = batch_sharding(first, first.ndim, 0)
    return second if sharding is None else jax.sharding.reshard(second, sharding)


def unsplit(array: jax.Array, axis: int) -> jax.Array:
    """The array, not split along one axis; itself without explicit axes."""
    sharding = batch_sharding(array, array.ndim, 0)
    if sharding is None or sharding.spec[axis] is None:
        return array
    spec = PartitionSpec(*sharding.spec[:axis], None, *sharding.spec[axis + 1 :])
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, spec))
