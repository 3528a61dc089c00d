"""Moment projection: what an optimizer remembers of a dense kernel, for the factors it became.

A dense kernel becomes a weight, whose ``dense()`` is the kernel or near it. Its state becomes what
the factors would remember, had they stood for the kernel with the values they have now when its
gradients came. Two kinds of memory can be taken over. Both are pulled back through ``dense()``, so
that every kind of weight and every geometry is served.

First moments: sums of gradients ``G_t``. The chain rule is linear, so this is exact:

    M = sum_t c_t G_t     ->   the gradient of <M, dense()> by each factor;
    u @ vt:  M_u = M vtᵀ,  M_vt = uᵀ M.

Second moments: sums of squared gradients, entry by entry. The gradient by an entry f of a factor is
the sum of the entries e of ``G``, each times the derivative of ``dense()[e]`` by f; for the square
of that sum the sum of the squares is taken:

    N = sum_t c_t G_t²    ->   N_f = sum_e N[e] (∂dense()[e] / ∂f)²;
    u @ vt:  N_u[i, k] = sum_j N[i, j] vt[k, j]²,  N_vt[k, j] = sum_i u[i, k]² N[i, j].

In expectation that is exact where the entries of the gradient are uncorrelated and of mean zero;
where they are not, it may be too large or too small. It is computed as the gradient of
``<N, dense()>`` at the squared factors, which squares the derivatives term by term. They have one
term each in ``u @ vt``, and in ``u @ m @ vt`` while ``m`` is the identity, as spectral
initialization leaves it. Elsewhere (another ``m``, ``TensorTrain``, ``Tucker``) products of
different terms are left out. In a kind of your own, ``dense()`` must be a sum of products of
entries of different factors, without other coefficients.

What a state means is known by its Optax type: see ``MOMENTS``. So a trace or an average is taken
for one of gradients, which it is not behind a transform such as ``scale_by_adam``; and the largest
gradients that ``optax.adamax`` keeps, under the type and the names of Adam, are taken for squares.
Use ``policy="reset"`` with both.

Source: the chain rule; for squared gradients, Kingma and Ba, "Adam", ICLR 2015 (arXiv 1412.6980).
The published switches to low rank (Pufferfish, arXiv 2103.03936; Cuttlefish, arXiv 2305.02538)
drop all moments instead.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import GetAttrKey

from lowrank_jax.mirrors import KeyPath, nodes, owners
from lowrank_jax.tree import is_kernel, kernels, path_string
from lowrank_jax.weights import FactorizedWeight, is_factorized

Order = Literal[1, 2]

MOMENTS: dict[type, dict[str, Order]] = {
    optax.TraceState: {"trace": 1},
    optax.EmaState: {"ema": 1},
    optax.ScaleByLionState: {"mu": 1},
    optax.ScaleByAdamState: {"mu": 1, "nu": 2},
    optax.ScaleByRmsState: {"nu": 2},
    optax.ScaleByRssState: {"sum_of_squares": 2},
    # Nothing is accumulated when a tree may be changed, so that these are zeros.
    optax.MultiStepsState: {"acc_grads": 1},
}
"""The fields that hold sums of gradients (1) or of squared gradients (2), by type of state."""


def pull_back(weight: FactorizedWeight, moment: Any, order: Order) -> FactorizedWeight:
    """The moments of the factors, given the moment of the dense kernel.

    Args:
      weight: the factors.
      moment: of the shape of the dense kernel.
      order: 1 for a sum of gradients, 2 for one of squared gradients.

    Returns:
      A weight that holds, in the place of each factor, its moment: in float32, or in the precision
      of the factors and the moment where that is higher.

    >>> from lowrank_jax.weights import LowRank
    >>> weight = LowRank(u=jnp.ones((3, 1)), vt=jnp.array([[2.0, 3.0]]))
    >>> pull_back(weight, jnp.ones((3, 2)), 1).u[0], pull_back(weight, jnp.ones((3, 2)), 2).u[0]
    (Array([5.], dtype=float32), Array([13.], dtype=float32))
    """
    dtype = jnp.result_type(weight.dtype, jnp.result_type(moment), jnp.float32)
    factors = jax.tree.map(lambda factor: factor.astype(dtype), weight)
    if order == 2:
        factors = jax.tree.map(jnp.square, factors)
    _, pull = jax.vjp(lambda weight: weight.dense(), factors)
    return pull(jnp.asarray(moment, dtype))[0]


def projected_moments(
    opt_state: Any, params: Any, fresh: Any, new_params: Any, changed: Collection[str]
) -> dict[KeyPath, jax.Array]:
    """What stands in the new state for dense kernels that became weights.

    Args:
      opt_state: the state for ``params``.
      params: the parameters before; only their structure, shapes and dtypes are used.
      fresh: ``tx.init(new_params)``.
      new_params: the parameters after.
      changed: paths of the parameters that were changed, or are new.

    Returns:
      Leaves by their key paths in ``fresh``, with its dtypes and shardings. There are none for what
      ``opt_state`` has not: parameters that are new, and states that only ``fresh`` has.

    Raises:
      ValueError: something else than a dense kernel was changed, or into something else than a
        weight; what the state has for a kernel has no known meaning, another shape than the kernel,
        or no place in ``fresh``.
    """
    before, after = kernels(params), kernels(new_params)
    changed = {path for path in changed if path in before}
    for path in sorted(changed):
        if is_factorized(before[path]) or not is_factorized(after[path]):
            raise ValueError(
                f"{path} was {_kind(before[path])} and is {_kind(after[path])}: policy='project' "
                "takes moments from a dense kernel to the factors it became, and from nothing "
                "else; use policy='reset'"
            )

    orders = _orders(fresh)
    owner_of = owners(fresh, new_params)
    places = {(path_string(place.mirror), place.parameter) for place in owner_of.values()}
    leaf_paths = _leaf_paths(new_params)
    moments: dict[tuple[str, str], dict[KeyPath, jax.Array]] = {}
    remembered = dict(jax.tree_util.tree_leaves_with_path(opt_state))
    for key_path, owner in owners(opt_state, params).items():
        if owner.parameter not in changed:
            continue
        path, mirror = owner.parameter, path_string(owner.mirror)
        order = orders.get(mirror)
        if (mirror, path) not in places:
            raise _unclear(key_path, "there is no such state of the factors")
        if order is None:
            raise _unclear(key_path, "what it means for the factors is not known")
        moment, weight = remembered[key_path], after[path]
        if np.shape(moment) != weight.shape:
            raise _unclear(
                key_path, f"its shape is {np.shape(moment)}, the kernel's {weight.shape}"
            )
        factors = jax.tree.leaves(pull_back(weight, moment, order))
        moments[mirror, path] = dict(zip(leaf_paths[path], factors, strict=True))

    found = {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(fresh):
        place = owner_of.get(key_path)
        if place and (path_string(place.mirror), place.parameter) in moments:
            projected = moments[path_string(place.mirror), place.parameter]
            moment = projected[key_path[len(place.mirror) :]].astype(leaf.dtype)
            found[key_path] = jax.device_put(moment, leaf.sharding)
    return found


def _orders(state: Any) -> dict[str, Order]:
    """The orders of the moments in a state by the paths of the trees that hold them."""
    return {
        path_string((*path, GetAttrKey(field))): order
        for kind, fields in MOMENTS.items()
        for path, _ in nodes(state, kind)
        for field, order in fields.items()
    }


def _leaf_paths(params: Any) -> dict[str, list[KeyPath]]:
    """The key paths of the leaves of every parameter, those in boxes included."""
    return {
        path_string(key_path): [
            key_path + rest for rest, _ in jax.tree_util.tree_leaves_with_path(parameter)
        ]
        for key_path, parameter in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_kernel)
    }


def _unclear(key_path: KeyPath, found: str) -> ValueError:
    return ValueError(
        f"optimizer state {path_string(key_path)}: {found}, so that policy='project' cannot take "
        "it over; use policy='reset'"
    )


def _kind(kernel: Any) -> str:
    return f"a {type(kernel).__name__}" if is_factorized(kernel) else "a dense kernel"
