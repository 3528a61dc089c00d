"""Placement: a factor lives where the axes it comes from live.

A dense kernel may carry a sharding, or boxes with the names of mesh axes. Both say something of
each dense axis; every factor axis inherits it from the dense axis it comes from, and the rank axis,
which comes from none, is not split:

    kernel P("in", "out")  ->  u P("in", None),  vt P(None, "out").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from lowrank_jax.weights import FactorizedWeight


def follow(weight: FactorizedWeight, factor: str, of_dense_axes: Sequence[Any]) -> tuple[Any, ...]:
    """What the dense axes say, for the axes of one factor; None where none says anything.

    >>> import numpy as np
    >>> from lowrank_jax.weights import LowRank
    >>> follow(LowRank(u=np.ones((4, 2)), vt=np.ones((2, 3))), "vt", ("in", "out"))
    (None, 'out')
    """
    sources = weight.factor_axes[factor]
    return tuple(
        of_dense_axes[source] if isinstance(source, int) and source < len(of_dense_axes) else None
        for source in sources
    )


def place_like(kernel: Any, weight: FactorizedWeight) -> FactorizedWeight:
    """The weight with its factors sharded like the dense kernel it was made of.

    Args:
      kernel: an array or ``ShapeDtypeStruct``; where it has no named sharding, nothing changes.
      weight: with arrays or ``ShapeDtypeStruct``, as the kernel.
    """
    sharding = getattr(kernel, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return weight
    return weight.replace(
        **{
            name: _place(factor, sharding, follow(weight, name, tuple(sharding.spec)))
            for name, factor in weight.children()
        }
    )


def place_like_factors(old: FactorizedWeight, new: FactorizedWeight) -> FactorizedWeight:
    """The new weight, maybe of another rank, with each factor sharded like the old one."""
    placed = {}
    for name, factor in new.children():
        sharding = getattr(getattr(old, name), "sharding", None)
        if isinstance(sharding, NamedSharding):
            sources = old.factor_axes[name]
            spec = (
                axes if isinstance(source, int) else None
                for axes, source in zip(sharding.spec, sources, strict=False)
            )
            placed[name] = _place(factor, sharding, tuple(spec))
    return new.replace(**placed)


def _place(factor: Any, like: NamedSharding, spec: tuple[Any, ...]) -> Any:
    sharding = NamedSharding(like.mesh, PartitionSpec(*spec))
    if isinstance(factor, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(factor.shape, factor.dtype, sharding=sharding)
    return jax.device_put(factor, sharding)
