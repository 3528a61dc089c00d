"""Kinds of weights: how a kernel is stored, what it stands for, and how it is applied."""

from lowrank_jax.weights.application import conv_general_dilated, dot_general
from lowrank_jax.weights.base import FactorizedWeight, is_factorized, kinds, register_weight
from lowrank_jax.weights.channel import ChannelLowRank
from lowrank_jax.weights.low_rank import LowRank
from lowrank_jax.weights.spatial import SpatialLowRank

__all__ = [
    "ChannelLowRank",
    "FactorizedWeight",
    "LowRank",
    "SpatialLowRank",
    "conv_general_dilated",
    "dot_general",
    "is_factorized",
    "kinds",
    "register_weight",
]
