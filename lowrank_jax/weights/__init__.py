"""Kinds of weights: how a kernel is stored, what it stands for, and how it is applied."""

from lowrank_jax.weights.application import conv_general_dilated, dot_general
from lowrank_jax.weights.base import (
    FactorizedWeight,
    Rank,
    is_factorized,
    kinds,
    register_weight,
)
from lowrank_jax.weights.channel import ChannelLowRank
from lowrank_jax.weights.low_rank import LowRank
from lowrank_jax.weights.spatial import SpatialLowRank
from lowrank_jax.weights.tensor_train import TensorTrain
from lowrank_jax.weights.tucker import Tucker

__all__ = [
    "ChannelLowRank",
    "FactorizedWeight",
    "LowRank",
    "Rank",
    "SpatialLowRank",
    "TensorTrain",
    "Tucker",
    "conv_general_dilated",
    "dot_general",
    "is_factorized",
    "kinds",
    "register_weight",
]
