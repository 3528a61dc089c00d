"""Norm replay: the norms of factorized weights recorded after every step, and set in another run.

    u <- u * sqrt(target / ||kernel||_F),    vt <- vt * sqrt(target / ||kernel||_F)

Replaying the norms of a run with Frobenius decay in one without any decay shows how much of the
effect of decay is the effective step size that the norm sets. Source: Khodak et al., ICLR 2021
(arXiv 2105.01029), section 4 (analysis of Frobenius decay).

Both transforms stand last in a chain, where they see the final updates:

    recorded = optax.chain(decay(1e-4), optax.sgd(0.1), record_norms(steps))
    replayed = optax.chain(optax.sgd(0.1), replay_norms(recorded_norms(opt_state)))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lowrank_jax.mirrors import nodes
from lowrank_jax.optax_messages import require_params
from lowrank_jax.tree import factorized_weights, path_string, unbox
from lowrank_jax.weights import is_factorized
from lowrank_jax.weights.two_factor import TwoFactorWeight

SMALLEST_NORM = 1e-12
"""A product whose norm is below this has no direction left that could be rescaled."""

_NEVER = -1


class RecordState(NamedTuple):
    """Number of steps made, and the norms ``(steps,)`` after each of them by path."""

    count: jax.Array  # type: ignore[assignment]
    norms: dict[str, jax.Array]


class ReplayState(NamedTuple):
    """Number of steps made, and by path the step at which a weight vanished (-1: it did not)."""

    count: jax.Array  # type: ignore[assignment]
    vanished: dict[str, jax.Array]


def record_norms(steps: int) -> optax.GradientTransformation:
    """Records the Frobenius norm of every factorized weight after each step; changes nothing.

    The last transform of a chain. The record is a part of the optimizer's state, so it is saved and
    restored with it; :func:`recorded_norms` reads it.

    Args:
      steps: how many steps are recorded. Later ones are not.

    Raises:
      ValueError: ``steps`` is not positive; or at ``init``, nothing is factorized.

    >>> from lowrank_jax.weights import LowRank
    >>> params = {"kernel": LowRank(u=jnp.ones((4, 1)), vt=jnp.ones((1, 4)))}
    >>> tx = optax.chain(optax.sgd(1.0), record_norms(10))
    >>> _, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    >>> recorded_norms(state)
    {'kernel': array([4.], dtype=float32)}
    """
    if steps < 1:
        raise ValueError(f"record_norms({steps}): expected a positive number of steps")

    def init(params: Any) -> RecordState:
        weights = factorized_weights(params)
        if not weights:
            raise ValueError("nothing is factorized, so that there are no norms to record")
        norms = {path: jnp.zeros(steps, _norm_dtype(weight)) for path, weight in weights.items()}
        return RecordState(jnp.zeros([], jnp.int32), norms)

    def update(updates: Any, state: RecordState, params: Any = None) -> tuple[Any, RecordState]:
        require_params(params)
        norms = dict(state.norms)

        def visit(key_path: Any, old: Any, update: Any) -> None:
            if is_factorized(old):
                new = old if update is None else optax.apply_updates(old, update)
                path = path_string(key_path)
                norms[path] = norms[path].at[state.count].set(_norm(new), mode="drop")

        jax.tree_util.tree_map_with_path(visit, params, updates, is_leaf=is_factorized)
        return updates, RecordState(optax.safe_increment(state.count), norms)

    return optax.GradientTransformation(init, update)


def recorded_norms(opt_state: Any) -> dict[str, np.ndarray]:
    """What :func:`record_norms` recorded: norms ``(steps made,)`` by path of the weight.

    Args:
      opt_state: of an optimizer with one :func:`record_norms` in it.

    Raises:
      ValueError: there is none in it, or more than one.
    """
    states = [state for _, state in nodes(opt_state, RecordState)]
    if len(states) != 1:
        raise ValueError(f"expected one record_norms in the optimizer, found {len(states)}")
    count = int(states[0].count)
    return {path: np.asarray(norms)[:count] for path, norms in states[0].norms.items()}


def replay_norms(record: Mapping[str, Any]) -> optax.GradientTransformation:
    """Rescales the factors so that after step t the norms are ``record[path][t]``.

    The last transform of a chain: it sees the final updates. ``m``, where there is one, is left
    alone. Steps past the end of the record keep its last norms. A product with a norm below
    ``SMALLEST_NORM`` cannot be rescaled to one above: that is an error, see
    :func:`raise_if_vanished`; inside ``jax.jit``, where nothing can be raised, the factors become
    NaN. Factors in bfloat16 come as near to the record as their rounding lets them, to about 0.4 %.

    Args:
      record: Frobenius norms ``(steps,)`` by path of the factorized weight, after each step.

    Raises:
      ValueError: the record is not one of norms; at ``init``, its paths are not those of the
        factorized weights, or there are none; at ``update`` outside ``jax.jit``, a product has
        vanished.

    >>> from lowrank_jax.weights import LowRank
    >>> params = {"kernel": LowRank(u=jnp.ones((4, 1)), vt=jnp.ones((1, 4)))}
    >>> tx = replay_norms({"kernel": jnp.array([8.0])})
    >>> zeros = jax.tree.map(jnp.zeros_like, params)
    >>> new = optax.apply_updates(params, tx.update(zeros, tx.init(params), params)[0])
    >>> round(float(jnp.sqrt(new["kernel"].squared_norm())), 5)
    8.0
    """
    record = {path: jnp.asarray(norms) for path, norms in record.items()}
    _require_norms(record)

    def init(params: Any) -> ReplayState:
        weights = factorized_weights(params)
        if not weights:
            raise ValueError("nothing is factorized, so that there are no norms to set")
        if set(weights) != set(record):
            missing, extra = sorted(set(weights) - set(record)), sorted(set(record) - set(weights))
            raise ValueError(
                f"the record is of another model: not recorded {missing}, not in the model {extra}"
            )
        for path, weight in weights.items():
            if not isinstance(weight, TwoFactorWeight):
                raise ValueError(f"{path} is a {type(weight).__name__}, not a two-factor weight")
        vanished = {path: jnp.full([], _NEVER, jnp.int32) for path in weights}
        return ReplayState(jnp.zeros([], jnp.int32), vanished)

    def update(updates: Any, state: ReplayState, params: Any = None) -> tuple[Any, ReplayState]:
        require_params(params)
        vanished = dict(state.vanished)

        def visit(key_path: Any, old: Any, update: Any) -> Any:
            if not is_factorized(old) or update is None:
                return update
            path = path_string(key_path)
            new = optax.apply_updates(old, update)
            norm = _norm(new)
            target = record[path][jnp.minimum(state.count, len(record[path]) - 1)]
            lost = (norm < SMALLEST_NORM) & (target >= SMALLEST_NORM)
            vanished[path] = jnp.where(
                lost & (vanished[path] == _NEVER), state.count, vanished[path]
            )
            ratio = target / jnp.where(norm < SMALLEST_NORM, target, norm)
            scale = jnp.where(lost, jnp.nan, jnp.where(norm < SMALLEST_NORM, 1, jnp.sqrt(ratio)))
            scaled = new.replace(
                **{
                    name: jax.tree.map(lambda x: (x * scale).astype(x.dtype), getattr(new, name))
                    for name in ("u", "vt")
                }
            )
            return jax.tree.map(lambda goal, start: goal - start, scaled, old)

        updates = jax.tree_util.tree_map_with_path(visit, params, updates, is_leaf=is_factorized)
        new_state = ReplayState(optax.safe_increment(state.count), vanished)
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(new_state)):
            raise_if_vanished(new_state)
        return updates, new_state

    return optax.GradientTransformation(init, update)


def raise_if_vanished(opt_state: Any) -> None:
    """Tells why parameters became NaN under :func:`replay_norms`.

    Args:
      opt_state: of any optimizer, its values at hand.

    Raises:
      ValueError: a product's norm was below ``SMALLEST_NORM`` where the recorded one was not.
    """
    for _, state in nodes(opt_state, ReplayState):
        steps = {path: int(step) for path, step in state.vanished.items() if int(step) != _NEVER}
        if steps:
            path, step = min(steps.items(), key=lambda item: item[1])
            raise ValueError(
                f"{path}: after step {step + 1} the norm of the product is below "
                f"{SMALLEST_NORM:g}, and the recorded one is not: there is nothing left that could "
                "be rescaled"
            )


def _require_norms(record: Mapping[str, jax.Array]) -> None:
    for path, norms in record.items():
        if norms.ndim != 1 or not len(norms):
            raise ValueError(f"{path}: the record has shape {norms.shape}, not (steps,)")
        if isinstance(norms, jax.core.Tracer):
            continue
        if not (jnp.isfinite(norms) & (norms >= 0)).all():
            raise ValueError(f"{path}: the record has a norm that is negative or not finite")


def _norm(weight: Any) -> jax.Array:
    # Rounding can leave a product that cancels to zero slightly below it.
    return jnp.sqrt(jnp.maximum(unbox(weight).squared_norm(), 0))


def _norm_dtype(weight: Any) -> Any:
    return jax.eval_shape(_norm, weight).dtype
