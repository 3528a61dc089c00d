"""From a config to what it asks for: rules, initializer, learning-rate schedule, optimizer.

The vocabulary of the configs in terms of the library and Optax; nothing here holds state. The
published recipe: Khodak et al., ICLR 2021 (arXiv 2105.01029), section 4 and its public code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

import lowrank_jax as lrj
from experiments import arguments, models
from experiments.errors import RunError
from experiments.pruning import PruningSchedule, magnitude_pruning, nonzero_parameters
from lowrank_jax.initializers import Initializer
from lowrank_jax.ranks import RankRule

_DEPTH = {"flat": 2, "deep": 3}


def rules(config: ConfigDict, dense_params: Any) -> list[lrj.Rule]:
    """The rules of a config; none for a network that stays dense.

    Args:
      config: the settled config.
      dense_params: of the model, arrays or shapes; what a `ratio` is a share of.

    Raises:
      RunError: the model does not have this kind, or the ratio cannot be reached.
    """
    chosen = _factorization(config)

    def of_rank(rank: RankRule) -> list[lrj.Rule]:
        return [lrj.Rule(chosen.pattern, rank, chosen.weight, depth=_DEPTH[config.variant])]

    if not arguments.has_factors(config):
        return []
    if config.energy:
        return of_rank(lrj.Energy(config.energy))
    if config.rank_scale:
        return of_rank(lrj.RankScale(config.rank_scale))
    try:
        scale = lrj.target_ratio(
            dense_params, lambda scale: of_rank(lrj.RankScale(scale)), config.ratio
        )
    except ValueError as error:
        raise RunError(str(error)) from error
    return of_rank(lrj.RankScale(scale))


def comparison_rules(config: ConfigDict) -> list[lrj.Rule]:
    """Rules that name the kernels a dense network is compared by: the ones others factorize."""
    chosen = _factorization(config)
    return [lrj.Rule(chosen.pattern, lrj.RankScale(1.0), chosen.weight)]


def initializer(config: ConfigDict) -> Initializer:
    """What the factors are at the start."""
    if config.init == "spectral":
        return lrj.spectral(config.overcomplete)
    if config.init == "spectral_ones":
        return lrj.spectral_ones(config.overcomplete)
    if config.init == "variance_matched":
        return lrj.variance_matched()
    return _factorization(config).regular


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


def parameters_left(config: ConfigDict, params: Any) -> int:
    """The parameters that a network is to have when it is trained; of a pruned one, those that
    stay.

    Args:
      config: the settled config.
      params: of the network, factorized where it is to be; arrays or shapes.
    """
    every = lrj.describe(params).parameters
    return round(config.ratio * every) if config.method == "prune" else every


def counted_parameters(config: ConfigDict, params: Any) -> int:
    """The parameters of a trained network, counted; of a pruned one, those that are not zero."""
    if config.method == "prune":
        return nonzero_parameters(params, _factorization(config).pattern)
    return lrj.describe(params).parameters


def optimizer(
    config: ConfigDict,
    steps_per_epoch: int,
    ratio: float,
    norms: Mapping[str, Any] | None = None,
) -> optax.GradientTransformation:
    """SGD with momentum; decay comes first, so that it passes through the momentum, and what sets
    or records the outcome of a step last: pruning, and norms.

    Args:
      config: the settled config.
      steps_per_epoch: of the run.
      ratio: see `decay`.
      norms: what a run with `replay` sets, by path of the factorized kernel.
    """
    schedule = learning_rate(config, steps_per_epoch)
    parts = [decay(config, ratio), optax.sgd(schedule, momentum=config.momentum)]
    if config.method == "prune":
        pruned = _pruning_schedule(config, steps_per_epoch)
        parts.append(magnitude_pruning(_factorization(config).pattern, config.ratio, pruned))
    if norms is not None:
        parts.append(lrj.replay_norms(norms))
    if records_norms(config):
        parts.append(lrj.record_norms(config.epochs * steps_per_epoch))
    return optax.chain(*parts)


def records_norms(config: ConfigDict) -> bool:
    """Whether the norms after each step are kept: to be replayed, or to see that they were."""
    return config.record_norms or bool(config.replay)


def reduced_from(config: ConfigDict, steps_per_epoch: int) -> int:
    """The number of steps after which the network is as small as it becomes."""
    pruned = config.method == "prune"
    return _pruning_schedule(config, steps_per_epoch).end_step if pruned else 0


def _pruning_schedule(config: ConfigDict, steps_per_epoch: int) -> PruningSchedule:
    return PruningSchedule.of_run(config.epochs * steps_per_epoch)


def _factorization(config: ConfigDict) -> models.Factorization:
    return models.find(config.model.name).factorization(config.kind)


def _factorized_mask(params: Any) -> Any:
    return jax.tree.map(lrj.is_factorized, params, is_leaf=lrj.is_factorized)
