"""lowrank_jax: training neural networks with factorized (low-rank) weights in JAX.

Low rank lives in the parameters. A kernel in a parameter tree is an array or a *factorized weight*,
a pytree node that holds its factors and knows what dense kernel they stand for:

* :func:`factorize` turns dense kernels into weights (spectral initialization by default),
  :func:`merge` turns them back;
* :func:`frobenius_decay` and :func:`decay` are Optax transforms for such trees;
* :func:`attention_products` names what is a product without being written as one, for decay and
  for :func:`balance_products`, its spectral initialization;
* :mod:`lowrank_jax.rank_selection` chooses ranks, and when to turn low rank, while training;
* :mod:`lowrank_jax.export` saves them for other tools, or as programs that run alone;
* :func:`batch_minor` makes a convolutional training step several times faster on a CPU;
* :mod:`lowrank_jax.sharding` places such trees, and the state of any optimizer, on a mesh;
* :func:`dot_general` and :func:`conv_general_dilated` apply an array or a weight alike, and
  ``lowrank_jax.linen`` (imported by itself, it needs flax) has layers that do.

Source: Khodak, Tenenholtz, Mackey and Fusi, "Initialization and Regularization of Factorized Neural
Layers", ICLR 2021 (arXiv 2105.01029).
"""

from lowrank_jax import (
    diagnostics,
    export,
    initializers,
    rank_selection,
    restructure,
    sharding,
)
from lowrank_jax.attention_products import AttentionLayout, Projection, attention_products
from lowrank_jax.balance import balance_products
from lowrank_jax.batch_minor import batch_minor
from lowrank_jax.budget import target_ratio
from lowrank_jax.factorize import factorize, merge, refactorize
from lowrank_jax.initializers import regular, spectral, spectral_ones, variance_matched
from lowrank_jax.norm_replay import (
    raise_if_vanished,
    record_norms,
    recorded_norms,
    replay_norms,
)
from lowrank_jax.products import Product, products_by_suffix
from lowrank_jax.ranks import (
    Energy,
    FixedRank,
    ParamFraction,
    RankScale,
    StableRank,
    break_even_rank,
)
from lowrank_jax.rules import Rule, resolve
from lowrank_jax.table import Table, describe
from lowrank_jax.transforms import decay, frobenius_decay, frobenius_penalty
from lowrank_jax.views import View
from lowrank_jax.weights import (
    ChannelLowRank,
    FactorizedWeight,
    LowRank,
    SpatialLowRank,
    TensorTrain,
    Tucker,
    conv_general_dilated,
    dot_general,
    is_factorized,
)

__version__ = "0.1.0"

__all__ = [
    "AttentionLayout",
    "ChannelLowRank",
    "Energy",
    "FactorizedWeight",
    "FixedRank",
    "LowRank",
    "ParamFraction",
    "Product",
    "Projection",
    "RankScale",
    "Rule",
    "SpatialLowRank",
    "StableRank",
    "Table",
    "TensorTrain",
    "Tucker",
    "View",
    "attention_products",
    "balance_products",
    "batch_minor",
    "break_even_rank",
    "conv_general_dilated",
    "decay",
    "describe",
    "diagnostics",
    "dot_general",
    "export",
    "factorize",
    "frobenius_decay",
    "frobenius_penalty",
    "initializers",
    "is_factorized",
    "merge",
    "products_by_suffix",
    "raise_if_vanished",
    "rank_selection",
    "record_norms",
    "recorded_norms",
    "refactorize",
    "regular",
    "replay_norms",
    "resolve",
    "restructure",
    "sharding",
    "spectral",
    "spectral_ones",
    "target_ratio",
    "variance_matched",
]
