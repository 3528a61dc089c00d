"""Factorized weights in flax.linen: drop-in layers, unedited models, msgpack."""

from lowrank_jax.linen.layers import Conv, Dense, DenseGeneral
from lowrank_jax.linen.lift import lift
from lowrank_jax.linen.serialization import register_known_kinds, register_serialization

register_known_kinds()

__all__ = ["Conv", "Dense", "DenseGeneral", "lift", "register_serialization"]
