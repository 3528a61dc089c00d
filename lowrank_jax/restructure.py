"""Restructure: change the parameter tree during training and carry the optimizer state along.

Switching to low rank, changing ranks, balancing factors and merging give some parameters a new
form. What an optimizer remembers of them (moments, averages) belongs to the old form, even where
the shapes happen to agree; what it remembers of all others, and its step counts, should live on. So
the new state is ``tx.init(new_params)`` with everything copied into it that may survive, by path:

* state of a parameter that was not changed is copied;
* state of a changed parameter stays as ``tx.init`` made it (``policy="reset"``), or is taken from
  the dense kernel to its factors (``policy="project"``): see :mod:`lowrank_jax.moment_projection`;
* state of no parameter (step counts, injected hyperparameters, random keys) is copied.

Which state belongs to which parameter is read off the structure of the state: see
:mod:`lowrank_jax.mirrors`. Two things belong to all parameters at once. The objective value that a
line search keeps for the next step is forgotten when anything changes. In L-BFGS, the last
parameters, from which the next difference is taken, become the new ones, so that the change of form
is not mistaken for a step.

``tx`` is the optimizer from now on. It may be another one than made the old state, if it has a
place for all that is to survive, at the same path; what the new state alone has begins as
``tx.init`` makes it. So a learning rate that warms up again, or Frobenius decay from now on, is
another ``tx`` with the same transforms at the same places of its chains (``optax.identity()`` keeps
a place free). Where Frobenius decay takes the place of plain decay, :func:`lowrank_jax.decay` is
right before and after: on a dense tree, it is plain decay. Step counts go on, so write a schedule
as a function of all steps, in which the step of the change is a constant.

After a reset, Adam's bias correction still follows the old step count: the first updates of changed
parameters are up to ``(1 - b1) / sqrt(1 - b2)`` learning rates large (3.2 by default), where those
of a fresh Adam are one. Where this matters, use another policy or a short warm-up.

Source: the switch from dense to low-rank training of Wang et al., "Pufferfish", MLSys 2021 (arXiv
2103.03936) and "Cuttlefish", MLSys 2023 (arXiv 2305.02538).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import GetAttrKey

from lowrank_jax.factorize import factorize
from lowrank_jax.initializers import Initializer
from lowrank_jax.mirrors import KeyPath, Owner, nodes, owners
from lowrank_jax.moment_projection import projected_moments
from lowrank_jax.rules import Rule, resolve
from lowrank_jax.table import Table
from lowrank_jax.tree import kernels, near_misses, path_string
from lowrank_jax.weights import is_factorized

Policy = Literal["reset", "project", "restart"]

Leaf = tuple[KeyPath, Any]

_LINE_SEARCHES = (optax.ScaleByZoomLinesearchState, optax.ScaleByBacktrackingLinesearchState)


def switch(
    tx: optax.GradientTransformation,
    params: Any,
    opt_state: Any,
    rules_or_table: Sequence[Rule] | Table,
    *,
    init: Initializer | None = None,
    key: Any = None,
    policy: Policy = "reset",
) -> tuple[Any, Any, Table]:
    """Factorizes kernels in the middle of training.

    Runs on the host, between two steps, on concrete values.

    Args:
      tx: the optimizer from now on, as in :func:`carry`.
      params: the parameters; kernels factorized as asked already are left alone, with their state.
      opt_state: the optimizer's state for ``params``.
      rules_or_table: what to factorize, as in :func:`lowrank_jax.factorize`.
      init: what the factors are; :func:`lowrank_jax.spectral` by default.
      key: ``jax.random`` key for initializers that draw.
      policy: as in :func:`carry`.

    Returns:
      The new parameters, the optimizer state for them, and the resolved table.

    Raises:
      ValueError, TypeError: as :func:`lowrank_jax.factorize` and :func:`carry`.

    >>> from lowrank_jax.ranks import FixedRank
    >>> params = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
    >>> tx = optax.adam(1e-3)
    >>> rules = [Rule("kernel", FixedRank(2))]
    >>> params, opt_state, table = switch(tx, params, tx.init(params), rules)
    >>> opt_state[0].mu["kernel"].u.shape, table.parameters
    ((4, 2), 20)
    """
    _check_request(policy, opt_state)  # before the expensive part
    table = rules_or_table
    if not isinstance(table, Table):
        table = resolve(params, table)
    new_params = factorize(params, table, init, key)
    before = kernels(params)
    changed = [row.path for row in table.rows if not is_factorized(before[row.path])]
    opt_state = carry(tx, opt_state, params, new_params, changed, policy=policy)
    return new_params, opt_state, table


def carry(
    tx: optax.GradientTransformation,
    opt_state: Any,
    params: Any,
    new_params: Any,
    changed: Iterable[str],
    *,
    policy: Policy = "reset",
) -> Any:
    """The optimizer state for parameters of which some have been given a new form.

    Args:
      tx: the optimizer from now on: the one that made ``opt_state``, or another whose state has, at
        the same paths, a place for all that is to survive.
      opt_state: the state for ``params``.
      params: the parameters before; only their structure, shapes and dtypes are used.
      new_params: the parameters after: all paths of ``params``, the changed ones in whatever form,
        and new ones, such as a norm between two factors.
      changed: paths of the parameters that were changed or are new, such as
        ``"block_1/conv1/kernel"``; a factorized weight is one parameter. Name those too whose
        shapes did not change (:func:`lowrank_jax.refactorize` at the same rank).
      policy: ``"reset"`` begins the state of changed parameters anew and keeps everything else,
        step counts included. ``"project"`` does so too, except that moments of dense kernels go to
        the factors they became. ``"restart"`` begins everything anew, for any ``tx``.

    Returns:
      A state of the structure of ``tx.init(new_params)``. It shares no buffer with ``new_params``,
      so both can be donated; what was copied is shared with ``opt_state``.

    Raises:
      ValueError: an unknown policy; a path in ``changed`` that is not in the tree; trees that
        differ in anything that is not in ``changed``; a path that ``new_params`` has not; a state
        that is not one for ``params``, or for which ``tx`` has no place; under ``"project"``, a
        parameter that was not dense or is not factorized, or state of it whose meaning is not
        known; or ``optax.MultiSteps`` in the middle of accumulating.
      TypeError: ``changed`` is a string.

    State that does not mirror the parameter tree belongs to no parameter here: with
    ``optax.flatten``, use ``policy="restart"``.

    >>> from lowrank_jax.factorize import refactorize
    >>> from lowrank_jax.weights import LowRank
    >>> params = {"kernel": LowRank(u=jnp.eye(4, 2), vt=jnp.ones((2, 4))), "bias": jnp.zeros(4)}
    >>> tx = optax.sgd(0.1, momentum=0.9)
    >>> _, opt_state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params))
    >>> opt_state = carry(tx, opt_state, params, refactorize(params), ["kernel"])
    >>> trace = opt_state[0].trace
    >>> float(trace["kernel"].u.sum()), float(trace["bias"].sum())
    (0.0, 4.0)
    """
    _check_request(policy, opt_state)
    changed = _check_changed(params, new_params, changed)
    fresh = tx.init(new_params)
    if policy == "restart":
        return _unshared(fresh, new_params)

    old = {
        path_string(key_path): leaf
        for key_path, leaf in _not_of(changed, opt_state, owners(opt_state, params))
    }
    owner_of = owners(fresh, new_params)
    _check_places(old, _not_of(changed, fresh, owner_of), owner_of)
    last_params = {
        (*path, GetAttrKey("params")) for path, _ in nodes(fresh, optax.ScaleByLBFGSState)
    }
    objectives = {
        (*path, GetAttrKey("value")) for path, _ in nodes(fresh, _LINE_SEARCHES) if changed
    }
    new_leaves = dict(jax.tree_util.tree_leaves_with_path(new_params))
    projected = {}
    if policy == "project":
        projected = projected_moments(opt_state, params, fresh, new_params, changed)

    def visit(key_path: KeyPath, leaf: Any) -> Any:
        owner = owner_of.get(key_path)
        if owner is not None and owner.parameter in changed:
            if owner.mirror in last_params:
                return new_leaves[key_path[len(owner.mirror) :]]
            return projected.get(key_path, leaf)
        path = path_string(key_path)
        if key_path in objectives or path not in old:
            return leaf
        if _form(old[path]) != _form(leaf):
            if owner is None and np.shape(old[path]) != np.shape(leaf):
                # Of the size of the whole tree, such as a flattened moment.
                if policy == "project":
                    raise ValueError(
                        f"optimizer state {path}: its size changes, and it belongs to no one "
                        "parameter, so that policy='project' cannot take it over; use "
                        "policy='restart'"
                    )
                return leaf
            raise ValueError(
                f"optimizer state {path}: found {_phrase(old[path])}, but tx.init gives "
                f"{_phrase(leaf)} for the same parameter: opt_state must be tx's state for params"
            )
        return old[path]

    return _unshared(jax.tree_util.tree_map_with_path(visit, fresh), new_params)


# What is refused.


def _check_request(policy: Policy, opt_state: Any) -> None:
    if policy not in get_args(Policy):
        raise ValueError(f"policy={policy!r}: expected one of {', '.join(get_args(Policy))}")
    for path, node in nodes(opt_state, optax.MultiStepsState):
        pending = int(np.max(node.mini_step))
        if pending:
            raise ValueError(
                f"optimizer state {path_string(path) or 'root'}: MultiSteps has accumulated "
                f"{pending} gradients it has not applied, and they are gradients of the old "
                "parameters: change the tree right after an update, when mini_step is 0"
            )


def _check_changed(params: Any, new_params: Any, changed: Iterable[str]) -> frozenset[str]:
    if isinstance(changed, str):
        raise TypeError(f"changed={changed!r}: expected a list of paths, write [{changed!r}]")
    changed = frozenset(changed)
    before, after = kernels(params), kernels(new_params)
    if "" in before or "" in after:
        raise ValueError("params is a single kernel and has no path: put it in a dict")
    for path in sorted(before.keys() - after.keys()):
        raise ValueError(
            f"{path} is in params and not in new_params: no path may go, whatever the form of the "
            "kernels"
        )
    for path in sorted(changed - after.keys()):
        raise ValueError(
            f"changed names {path!r}, which is no parameter; {near_misses(path, after)}"
        )
    for path in sorted(after.keys() - before.keys() - changed):
        raise ValueError(f"{path} is in new_params and not in params, but changed does not name it")
    for path in before:
        if path not in changed and _form(before[path]) != _form(after[path]):
            raise ValueError(
                f"{path} was {_phrase(before[path])} and is {_phrase(after[path])}, but changed "
                "does not name it"
            )
    return changed


def _check_places(
    old: dict[str, Any], fresh: Iterable[Leaf], owner_of: dict[KeyPath, Owner]
) -> None:
    """Raises where state would be lost, or where a part of a moment would begin anew."""
    new = {path_string(key_path): owner_of.get(key_path) for key_path, _ in fresh}
    for path in sorted(old.keys() - new.keys()):
        raise ValueError(
            f"opt_state has {path}, which tx.init(new_params) has not: opt_state must be, for "
            "params, the state of tx, or of an optimizer with the same transforms at the same "
            "places of its chains; policy='restart' begins everything anew"
        )
    for path, owner in sorted(new.items()):
        if path not in old and owner is not None:
            mirror = path_string(owner.mirror)
            if any(other.startswith(f"{mirror}/") for other in old):
                raise ValueError(
                    f"tx.init(new_params) has {path}, which opt_state has not, although it has "
                    f"others of {mirror}: it is no state for params"
                )


def _form(kernel: Any) -> Any:
    leaves, structure = jax.tree.flatten(kernel)
    return structure, [(np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]


def _phrase(kernel: Any) -> str:
    if is_factorized(kernel):
        inside = ", ".join(f"{name} {_phrase(factor)}" for name, factor in kernel.children())
        return f"{type(kernel).__name__}({inside})"
    return f"{jnp.result_type(kernel)}{list(np.shape(kernel))}"


# What belongs to whom.


def _not_of(changed: frozenset[str], state: Any, owner_of: dict[KeyPath, Owner]) -> list[Leaf]:
    """The leaves of a state that belong to other parameters, or to none."""
    return [
        (key_path, leaf)
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if key_path not in owner_of or owner_of[key_path].parameter not in changed
    ]


def _unshared(state: Any, params: Any) -> Any:
    """The state with its own copies of what ``tx.init`` took from the parameters as it was.

    A training step that donates both would otherwise donate one buffer twice.
    """
    theirs = {id(leaf) for leaf in jax.tree.leaves(params)}
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if id(leaf) in theirs else leaf, state)
