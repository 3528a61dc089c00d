"""Norm replay: after every step, rescale factorized weights to norms recorded in another run.

    u <- u * sqrt(target / ||kernel||_F),    vt <- vt * sqrt(target / ||kernel||_F)

Replaying the norms of a run with Frobenius decay in one without any decay shows how much of the
effect of decay is the effective step size that the norm sets. Source: Khodak et al., ICLR 2021
(arXiv 2105.01029), section 4 (analysis of Frobenius decay).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lowrank_jax.tree import factorized_weights, path_string, unbox
from lowrank_jax.weights import FactorizedWeight, is_factorized
from lowrank_jax.weights.two_factor import TwoFactorWeight


class ReplayState(NamedTuple):
    """Number of steps made."""

    count: jax.Array  # type: ignore[assignment]


def replay_norms(record: Mapping[str, jax.Array]) -> optax.GradientTransformation:
    """Rescales the factors so that after step t the norms are ``record[path][t]``.

    The last transform of a chain: it sees the final updates. ``m``, where there is one, is left
    alone. Steps past the end of the record keep its last norms.

    Args:
      record: Frobenius norms ``(steps,)`` by path of the factorized weight, after each step.

    Raises:
      ValueError: at ``init``, if the record's paths are not those of the factorized weights.

    >>> from lowrank_jax.weights import LowRank
    >>> params = {"kernel": LowRank(u=jnp.ones((4, 1)), vt=jnp.ones((1, 4)))}
    >>> tx = replay_norms({"kernel": jnp.array([8.0])})
    >>> zeros = jax.tree.map(jnp.zeros_like, params)
    >>> new = optax.apply_updates(params, tx.update(zeros, tx.init(params), params)[0])
    >>> round(float(jnp.sqrt(new["kernel"].squared_norm())), 5)
    8.0
    """
    record = {path: jnp.asarray(norms) for path, norms in record.items()}

    def init(params: Any) -> ReplayState:
        weights = factorized_weights(params)
        if set(weights) != set(record):
            missing, extra = sorted(set(weights) - set(record)), sorted(set(record) - set(weights))
            raise ValueError(
                f"the record is of another model: not recorded {missing}, not in the model {extra}"
            )
        for path, weight in weights.items():
            if not isinstance(weight, TwoFactorWeight):
                raise ValueError(f"{path} is a {type(weight).__name__}, not a two-factor weight")
            if record[path].ndim != 1 or not len(record[path]):
                raise ValueError(f"{path}: the record has shape {record[path].shape}, not (steps,)")
        return ReplayState(jnp.zeros([], jnp.int32))

    def update(updates: Any, state: ReplayState, params: Any = None) -> tuple[Any, ReplayState]:
        if params is None:  # Optax's own message, from Optax itself.
            optax.add_decayed_weights(0.0).update(updates, optax.EmptyState(), None)

        def visit(key_path: Any, old: Any, update: Any) -> Any:
            if not is_factorized(old) or update is None:
                return update
            new = optax.apply_updates(old, update)
            scale = _scale(unbox(new), record[path_string(key_path)], state.count)
            scaled = new.replace(
                **{
                    name: jax.tree.map(lambda x: (x * scale).astype(x.dtype), getattr(new, name))
                    for name in ("u", "vt")
                }
            )
            return jax.tree.map(lambda goal, start: goal - start, scaled, old)

        updates = jax.tree_util.tree_map_with_path(visit, params, updates, is_leaf=is_factorized)
        return updates, ReplayState(optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def _scale(weight: FactorizedWeight, norms: jax.Array, step: jax.Array) -> jax.Array:
    """What both factors are multiplied by; 1 for a weight of zeros, which no factor changes."""
    target = norms[jnp.minimum(step, len(norms) - 1)]
    norm = jnp.sqrt(weight.squared_norm())
    return jnp.where(norm > 0, jnp.sqrt(target / jnp.where(norm > 0, norm, 1)), 1)
