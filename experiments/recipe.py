"""From a config to what it asks for: rules, initializer, learning-rate schedule, optimizer.

The vocabulary of the configs in terms of the library and Optax; nothing here holds state. The
published recipe: Khodak et al., ICLR 2021 (arXiv 2105.01029), section 4 and its public code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

import lowrank_jax as lrj
from experiments import config_keys, models
from experiments.errors import RunError
from experiments.pruning import PruningSchedule, magnitude_pruning, nonzero_parameters
from experiments.run_length import total_steps_of
from lowrank_jax.initializers import Initializer
from lowrank_jax.ranks import RankRule
from lowrank_jax.tree import map_kernels

_DEPTH = {"flat": 2, "deep": 3}
# b2 and epsilon: Adam's as usual for Transformers (arXiv 1706.03762, section 5.3), LAMB's as
# published (You et al., ICLR 2020, arXiv 1904.00962).
_SECOND_MOMENT = {"adam": (0.98, 1e-9), "lamb": (0.999, 1e-6)}


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
        return chosen.rules(rank, _DEPTH[config.variant])

    if not config_keys.begins_with_factors(config):
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


def comparison_rules(config: ConfigDict, scale: float = 1.0) -> list[lrj.Rule]:
    """Rules that name the kernels a dense network is compared by: the ones others factorize."""
    return _factorization(config).rules(lrj.RankScale(scale))


def resolve(rules: Sequence[lrj.Rule], dense_params: Any) -> lrj.Table:
    """What rules factorize in a network.

    Args:
      rules: for it.
      dense_params: arrays or shapes.

    Raises:
      RunError: a rule does not fit the network.
    """
    try:
        return lrj.resolve(dense_params, rules)
    except ValueError as error:
        raise RunError(str(error)) from error


def measured(config: ConfigDict, table: lrj.Table) -> lrj.Table:
    """The part of a table that diagnostics are about."""
    pattern = _factorization(config).measured
    return part(table, pattern) if pattern else table


def initializers(config: ConfigDict, table: lrj.Table) -> list[tuple[lrj.Table, Initializer]]:
    """What the factors are at the start: the kernels of a table in parts, each with what makes its
    factors."""
    if config.init == "regular":
        return [
            (part(table, kernels.pattern), kernels.regular)
            for kernels in _factorization(config).kernels
        ]
    if config.init == "spectral":
        return [(table, lrj.spectral(config.overcomplete))]
    if config.init == "spectral_ones":
        return [(table, lrj.spectral_ones(config.overcomplete))]
    return [(table, lrj.variance_matched())]


def part(table: lrj.Table, pattern: str) -> lrj.Table:
    """The rows of a table whose whole paths match."""
    return lrj.Table(tuple(row for row in table.rows if re.fullmatch(pattern, row.path)))


def learning_rate(
    config: ConfigDict, steps_per_epoch: int, switched_at: int | None = None
) -> optax.Schedule:
    """Learning rate by step, see `schedule` in `configs/base.py`.

    Args:
      config: the settled config.
      steps_per_epoch: of the run.
      switched_at: the step after which its kernels became factors in the middle of training; it
        warms up again from there, if the config says so, and is never above what it would be.
    """
    usual = _usual_learning_rate(config, steps_per_epoch)
    epochs = config.selection.rewarmup_epochs
    if switched_at is None or not epochs:
        return usual
    rising = _warmup(config, epochs, steps_per_epoch)

    def again(step: Any) -> Any:
        since = step - switched_at
        warm = jnp.minimum(rising(jnp.maximum(since, 0)), usual(step))
        return jnp.where((since >= 0) & (since < epochs * steps_per_epoch), warm, usual(step))

    return again


def _warmup(config: ConfigDict, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate in the first epochs: see `warmup` in `configs/base.py`."""
    first, peak = config.warmup_learning_rate, config.learning_rate
    if config.warmup == "constant":
        return optax.constant_schedule(first)
    return lambda step: first + (peak - first) * (step // steps_per_epoch) / epochs


def _usual_learning_rate(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    if config.schedule == "inverse_sqrt":
        return _inverse_square_root(config)
    if config.schedule == "linear":
        return _linear(config, total_steps_of(config, steps_per_epoch))
    warmup_steps = config.warmup_epochs * steps_per_epoch
    boundaries: dict[int, float] = {}
    for fraction in config.milestones:
        if config.steps:
            boundary = int(fraction * config.steps) - warmup_steps
        else:
            boundary = int(fraction * config.epochs) * steps_per_epoch - warmup_steps
        boundaries[boundary] = boundaries.get(boundary, 1.0) * config.milestone_factor
    pieces = optax.piecewise_constant_schedule(config.learning_rate, boundaries)
    if not warmup_steps:
        return pieces
    warmup = _warmup(config, config.warmup_epochs, steps_per_epoch)
    return optax.join_schedules([warmup, pieces], [warmup_steps])


def _inverse_square_root(config: ConfigDict) -> optax.Schedule:
    first, peak, warmup_steps = (
        config.warmup_learning_rate,
        config.learning_rate,
        config.warmup_steps,
    )

    def rate(step: Any) -> jax.Array:
        rising = first + (peak - first) * step / warmup_steps
        falling = peak * jnp.sqrt(warmup_steps / jnp.maximum(step, warmup_steps))
        return jnp.where(step < warmup_steps, rising, falling)

    return rate


def _linear(config: ConfigDict, steps: int) -> optax.Schedule:
    first, peak, warmup_steps = (
        config.warmup_learning_rate,
        config.learning_rate,
        config.warmup_steps,
    )
    rising = optax.linear_schedule(first, peak, warmup_steps)
    falling = optax.linear_schedule(peak, 0.0, max(1, steps - warmup_steps))
    return optax.join_schedules([rising, falling], [warmup_steps])


def require_peak(config: ConfigDict, steps: int) -> None:
    """Raises RunError where a run of so many steps is over before its learning rate has risen, and
    was to fall."""
    if config.schedule == "linear" and config.warmup_steps >= steps:
        raise RunError(
            f"warmup_steps={config.warmup_steps} in a run of {steps} steps: the learning rate "
            "would not get to its peak; give fewer"
        )


class Decays(NamedTuple):
    """The two decays of a run; they meet in no parameter.

    Attributes:
      frobenius: of what decays as a product: factorized kernels under decay=frobenius, and the
        attention products of `products.decay`.
      plain: of everything else.
    """

    frobenius: optax.GradientTransformation
    plain: optax.GradientTransformation


def decays(config: ConfigDict, ratio: float, products: Sequence[lrj.Product] = ()) -> Decays:
    """The decays a config names, with the coefficients `frobenius_decay` and `weight_decay`.

    Args:
      config: the settled config.
      ratio: parameters of the factorized network as a share of the dense one's (used by `crs`).
      products: of attention, which decay as products; see `attention_products`.
    """
    coefficient = config.weight_decay
    in_products = {path for product in products for path in product.paths}

    def kernels_alone(params: Any) -> Any:
        """True for factorized kernels that are part of no product."""
        return map_kernels(
            lambda path, leaf: lrj.is_factorized(leaf) and path not in in_products, params
        )

    def no_kernels(params: Any) -> Any:
        return jax.tree.map(lambda alone: not alone, kernels_alone(params))

    def kernels_and_tables(params: Any) -> Any:
        """True for what has several axes, and for factorized weights."""
        return map_kernels(lambda path, leaf: lrj.is_factorized(leaf) or leaf.ndim > 1, params)

    of_products = config.frobenius_decay or coefficient
    mask = None if config.decay == "frobenius" else no_kernels
    plain = lrj.decay(
        coefficient,
        frobenius_decay=0.0,
        products=products,
        mask=None if config.decay_vectors else kernels_and_tables,
    )
    factors = {"plain": coefficient, "crs": coefficient * ratio}.get(config.decay, 0.0)
    if factors:
        of_factors = optax.masked(optax.add_decayed_weights(factors), kernels_alone)
        plain = optax.chain(plain, of_factors)
    return Decays(lrj.decay(0.0, of_products, products, mask), plain)


def decay(
    config: ConfigDict, ratio: float, products: Sequence[lrj.Product] = ()
) -> optax.GradientTransformation:
    """Both decays, one after the other. Arguments as for `decays`."""
    return optax.chain(*decays(config, ratio, products))


def attention_products(config: ConfigDict, params: Any, which: str) -> tuple[lrj.Product, ...]:
    """The products that a word of the config stands for, in the network's parameters.

    Args:
      config: the settled config.
      params: arrays or shapes.
      which: one of `accepted_values.CHOICES["products.decay"]`.

    Raises:
      RunError: the network has no attention.
    """
    if which == "none":
        return ()
    try:
        return lrj.attention_products(params, tuple(which.split("_")))
    except ValueError as error:
        raise RunError(f"products of {config.model.name}: {error}") from error


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
    products: Sequence[lrj.Product] = (),
    switched_at: int | None = None,
) -> optax.GradientTransformation:
    """SGD with momentum, Adam or LAMB, with decay where `decay_position` says; and what sets or
    records the outcome of a step last: pruning, and norms.

    LAMB is Adam whose step for each kernel and table, decoupled decay included, is scaled to its
    norm; biases and the scales of norms are left out, as in its published code (they start at zero,
    and would stay there). With Frobenius decay of the attention products it is the "FLAMBé" of
    arXiv 2105.01029.

    Args:
      config: the settled config.
      steps_per_epoch: of the run.
      ratio: see `decays`.
      norms: what a run with `replay` sets, by path of the factorized kernel.
      products: see `decays`.
      switched_at: see `learning_rate`.
    """
    schedule = learning_rate(config, steps_per_epoch, switched_at)
    frobenius, plain = decays(config, ratio, products)
    coupled, decoupled = {
        "coupled": ([decay(config, ratio, products)], []),
        "decoupled": ([], [frobenius, plain]),
        "published": ([frobenius], [plain]),
    }[config.decay_position]
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.optimizer == "sgd":
        direction = optax.trace(config.momentum, nesterov=config.nesterov)
    else:
        b2, epsilon = _SECOND_MOMENT[config.optimizer]
        direction = optax.scale_by_adam(b1=config.momentum, b2=b2, eps=epsilon)
    trust_ratio = optax.masked(optax.scale_by_trust_ratio(), _kernels_and_tables)
    trust = [trust_ratio] if config.optimizer == "lamb" else []
    descent = optax.chain(direction, *decoupled, *trust, optax.scale_by_learning_rate(schedule))
    parts = [*coupled, *clip, descent]
    if config.method == "prune":
        pruned = _pruning_schedule(config, steps_per_epoch)
        parts.append(magnitude_pruning(_factorization(config).pattern, config.ratio, pruned))
    if norms is not None:
        parts.append(lrj.replay_norms(norms))
    if records_norms(config):
        parts.append(lrj.record_norms(total_steps_of(config, steps_per_epoch)))
    return optax.chain(*parts)


def _kernels_and_tables(params: Any) -> Any:
    """True for what products are computed with, as Flax names it, factorized or not."""
    return map_kernels(
        lambda path, leaf: path.rpartition("/")[2] in ("kernel", "embedding"), params
    )


def records_norms(config: ConfigDict) -> bool:
    """Whether the norms after each step are kept: to be replayed, or to see that they were."""
    return config.record_norms or bool(config.replay)


def reduced_from(config: ConfigDict, steps_per_epoch: int) -> int:
    """The number of steps after which the network is as small as it becomes."""
    pruned = config.method == "prune"
    return _pruning_schedule(config, steps_per_epoch).end_step if pruned else 0


def _pruning_schedule(config: ConfigDict, steps_per_epoch: int) -> PruningSchedule:
    return PruningSchedule.of_run(total_steps_of(config, steps_per_epoch))


def _factorization(config: ConfigDict) -> models.Factorization:
    return models.find(config.model.name).factorization(config.kind)
