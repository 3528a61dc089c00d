"""Factorized weights in flax.linen: drop-in layers, unedited models, msgpack."""

from lowrank_jax.linen.attention import MultiHeadDotProductAttention
from lowrank_jax.linen.attention_products import attention_products
from lowrank_jax.linen.embed import Embed
from lowrank_jax.linen.factor_norm import FactorNormConv, add_factor_norms
from lowrank_jax.linen.layers import Conv, Dense, DenseGeneral
from lowrank_jax.linen.lift import lift
from lowrank_jax.linen.serialization import register_known_kinds, register_serialization

register_known_kinds()

__all__ = [
    "Conv",
    "Dense",
    "DenseGeneral",
    "Embed",
    "FactorNormConv",
    "MultiHeadDotProductAttention",
    "add_factor_norms",
    "attention_products",
    "lift",
    "register_serialization",
]
