"""Partition boxes of factorized weights: inside the weight, one around each factor.

flax marks the axes of a parameter with names by a box, ``nn.Partitioned(value, names)``. One box
around a whole weight would give all its factors the same names. So the box goes inside: each factor
axis takes the name of the dense axis it comes from, and the rank axis none,

    Partitioned(u @ vt, ("in", "out"))
    ->  Partitioned(u, ("in", None)) @ Partitioned(vt, (None, "out")).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from lowrank_jax.placement import follow
from lowrank_jax.weights import FactorizedWeight


def box_factors(kernel_init: Callable[..., Any]) -> Callable[..., Any]:
    """The initializer with partition boxes around a weight moved into it.

    Raises:
      ValueError: the box is of a type that does not name axes.
    """

    def initialize(*args: Any, **kwargs: Any) -> Any:
        value = kernel_init(*args, **kwargs)
        return _move_inside(value) if isinstance(value, nn.meta.AxisMetadata) else value

    return initialize


def _move_inside(box: nn.meta.AxisMetadata[Any]) -> FactorizedWeight:
    if not isinstance(box, nn.Partitioned):
        raise ValueError(
            f"a factorized initializer inside a {type(box).__name__} box: expected nn.Partitioned "
            "or a subclass of it, whose axis names can be handed to the factors"
        )
    weight = box.value
    return weight.replace(
        **{
            name: box.replace(value=factor, names=follow(weight, name, box.names))
            for name, factor in weight.children()
        }
    )
