"""From a config to what it asks for: rules, initializer, learning-rate schedule, optimizer.

The vocabulary of the configs in terms of the library and Optax; nothing here holds state. The
published recipe: Khodak et al., ICLR 2021 (arXiv 2105.01029), section 4 and its public code.
"""

from __future__ import annotations

from typing import Any

import jax
import optax
from ml_collections import ConfigDict

import lowrank_jax as lrj
from experiments import models
from lowrank_jax.initializers import Initializer

_DEPTH = {"flat": 2, "deep": 3}


def rules(config: ConfigDict) -> list[lrj.Rule]:
    """The rules of a config; none for the dense network (`rank_scale` 0)."""
    if config.rank_scale == 0:
        return []
    return [
        lrj.Rule(
            models.find(config.model.name).factorized,
            lrj.RankScale(config.rank_scale),
            lrj.SpatialLowRank,
            depth=_DEPTH[config.variant],
        )
    ]


def comparison_rules(config: ConfigDict) -> list[lrj.Rule]:
    """Rules that name the kernels a dense network is compared by: the ones others factorize."""
    pattern = models.find(config.model.name).factorized
    return [lrj.Rule(pattern, lrj.RankScale(1.0), lrj.SpatialLowRank)]


def initializer(config: ConfigDict) -> Initializer:
    """What the factors are at the start."""
    if config.init == "spectral":
        return lrj.spectral(config.overcomplete)
    if config.init == "spectral_ones":
        return lrj.spectral_ones(config.overcomplete)
    return {"regular": lrj.regular, "variance_matched": lrj.variance_matched}[config.init]()


def learning_rate(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate by step: constant pieces, after a small constant warm-up where there is one."""
    warmup_steps = config.warmup_epochs * steps_per_epoch
    boundaries: dict[int, float] = {}
    for fraction in config.milestones:
        boundary = int(fraction * config.epochs) * steps_per_epoch - warmup_steps
        boundaries[boundary] = boundaries.get(boundary, 1.0) * config.milestone_factor
    pieces = optax.piecewise_constant_schedule(config.learning_rate, boundaries)
    if not warmup_steps:
        return pieces
    warmup = optax.constant_schedule(config.warmup_learning_rate)
    return optax.join_schedules([warmup, pieces], [warmup_steps])


def decay(config: ConfigDict, ratio: float) -> optax.GradientTransformation:
    """The decay a config names, with the coefficient `weight_decay`.

    Args:
      config: the settled config.
      ratio: parameters of the factorized network as a share of the dense one's (used by `crs`).
    """
    coefficient = config.weight_decay
    if config.decay == "frobenius":
        return lrj.decay(coefficient)
    if config.decay == "plain":
        return optax.add_decayed_weights(coefficient)
    others = lrj.decay(coefficient, frobenius_decay=0.0)
    if config.decay == "none":
        return others
    factors = optax.masked(optax.add_decayed_weights(coefficient * ratio), _factorized_mask)
    return optax.chain(others, factors)


def optimizer(
    config: ConfigDict, steps_per_epoch: int, ratio: float
) -> optax.GradientTransformation:
    """SGD with momentum; decay comes first, so that it passes through the momentum."""
    schedule = learning_rate(config, steps_per_epoch)
    return optax.chain(decay(config, ratio), optax.sgd(schedule, momentum=config.momentum))


def _factorized_mask(params: Any) -> Any:
    return jax.tree.map(lrj.is_factorized, params, is_leaf=lrj.is_factorized)
