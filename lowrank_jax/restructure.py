"""Restructure: change the parameter tree during training and carry the optimizer state along.

Switching to low rank, changing ranks, balancing factors and merging give some parameters a new
form. What an optimizer remembers of them (moments, averages) belongs to the old form, even where
the shapes happen to agree; what it remembers of all others, and its step counts, should live on. So
the new state is ``tx.init(new_params)`` with everything copied into it that may survive, by path:

* state of a parameter that was not changed is copied;
* state of a changed parameter stays as ``tx.init`` made it;
* state of no parameter (step counts, injected hyperparameters, random keys) is copied.

Which state belongs to which parameter is read off the structure of the state: see
:mod:`lowrank_jax.mirrors`. Two things belong to all parameters at once. The objective value that a
line search keeps for the next step is forgotten when anything changes. In L-BFGS, the last
parameters, from which the next difference is taken, become the new ones, so that the change of form
is not mistaken for a step.

After a reset, Adam's bias correction still follows the old step count: the first updates of changed
parameters are up to ``(1 - b1) / sqrt(1 - b2)`` learning rates large (3.2 by default), where those
of a fresh Adam are one. Where this matters, use ``policy="restart"`` or a short warm-up.

Source: the switch from dense to low-rank training of Wang et al., "Pufferfish", MLSys 2021 (arXiv
2103.03936) and "Cuttlefish", MLSys 2023 (arXiv 2305.02538).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import GetAttrKey

from lowrank_jax.factorize import factorize
from lowrank_jax.initializers import Initializer
from lowrank_jax.mirrors import KeyPath, owners
from lowrank_jax.rules import Rule, resolve
from lowrank_jax.table import Table
from lowrank_jax.tree import kernels, near_misses, path_string
from lowrank_jax.weights import is_factorized

Policy = Literal["reset", "restart"]

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
      tx: the optimizer that made ``opt_state``.
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
      tx: the optimizer that made ``opt_state``.
      opt_state: its state for ``params``.
      params: the parameters before; only their structure, shapes and dtypes are used.
      new_params: the parameters after: the same paths, the changed ones in whatever form.
      changed: paths of the parameters that were changed, such as ``"block_1/conv1/kernel"``; a
        factorized weight is one parameter. Name those too whose shapes did not change
        (:func:`lowrank_jax.refactorize` at the same rank).
      policy: ``"reset"`` begins the state of changed parameters anew and keeps everything else,
        step counts included. ``"restart"`` begins everything anew.

    Returns:
      A state of the structure of ``tx.init(new_params)``. It shares no buffer with ``new_params``,
      so both can be donated; what was copied is shared with ``opt_state``.

    Raises:
      ValueError: an unknown policy; a path in ``changed`` that is not in the tree; trees that
        differ in anything that is not in ``changed``; a state that is not ``tx``'s for ``params``;
        or ``optax.MultiSteps`` in the middle of accumulating.
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
    old = _by_path(opt_state)
    _check_state(old, _by_path(jax.eval_shape(tx.init, params)))
    fresh = tx.init(new_params)
    if policy == "restart":
        return _unshared(fresh, new_params)

    owner_of = owners(fresh, new_params)
    last_params = {
        (*path, GetAttrKey("params")) for path, _ in _nodes(fresh, optax.ScaleByLBFGSState)
    }
    objectives = {
        (*path, GetAttrKey("value")) for path, _ in _nodes(fresh, _LINE_SEARCHES) if changed
    }
    new_leaves = dict(jax.tree_util.tree_leaves_with_path(new_params))

    def visit(key_path: KeyPath, leaf: Any) -> Any:
        owner = owner_of.get(key_path)
        if owner is not None and owner.parameter in changed:
            if owner.mirror in last_params:
                return new_leaves[key_path[len(owner.mirror) :]]
            return leaf
        path = path_string(key_path)
        if key_path in objectives or path not in old:
            return leaf
        if _form(old[path]) != _form(leaf):
            if owner is None and np.shape(old[path]) != np.shape(leaf):
                return leaf  # of the size of the whole tree, such as a flattened moment
            raise ValueError(
                f"optimizer state {path}: found {_phrase(old[path])}, but tx.init gives "
                f"{_phrase(leaf)} for the same parameter: opt_state must be this optimizer's state "
                "for params"
            )
        return old[path]

    return _unshared(jax.tree_util.tree_map_with_path(visit, fresh), new_params)


# What is refused.


def _check_request(policy: Policy, opt_state: Any) -> None:
    if policy not in get_args(Policy):
        raise ValueError(f"policy={policy!r}: expected one of {', '.join(get_args(Policy))}")
    for path, node in _nodes(opt_state, optax.MultiStepsState):
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
    for path in sorted(before.keys() ^ after.keys()):
        found, missing = ("params", "new_params") if path in before else ("new_params", "params")
        raise ValueError(
            f"{path} is in {found} and not in {missing}: both need the same paths, whatever the "
            "form of the kernels"
        )
    for path in sorted(changed - before.keys()):
        raise ValueError(
            f"changed names {path!r}, which is no parameter; {near_misses(path, before)}"
        )
    for path in before:
        if path not in changed and _form(before[path]) != _form(after[path]):
            raise ValueError(
                f"{path} was {_phrase(before[path])} and is {_phrase(after[path])}, but changed "
                "does not name it"
            )
    return changed


def _check_state(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for path in sorted(found.keys() ^ expected.keys()):
        where = "opt_state has {}, which tx.init(params) has not"
        if path in expected:
            where = "tx.init(params) has {}, which opt_state has not"
        raise ValueError(
            f"opt_state is not this optimizer's state for params: {where.format(path)}"
        )


def _form(kernel: Any) -> Any:
    leaves, structure = jax.tree.flatten(kernel)
    return structure, [(np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]


def _phrase(kernel: Any) -> str:
    if is_factorized(kernel):
        inside = ", ".join(f"{name} {_phrase(factor)}" for name, factor in kernel.children())
        return f"{type(kernel).__name__}({inside})"
    return f"{jnp.result_type(kernel)}{list(np.shape(kernel))}"


# Walking states.


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_string(path): leaf for path, leaf in leaves}


def _nodes(tree: Any, types: Any) -> Iterator[tuple[KeyPath, Any]]:
    """The outermost nodes of some types, with their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, types))
    return ((path, node) for path, node in leaves if isinstance(node, types))


def _unshared(state: Any, params: Any) -> Any:
    """The state with its own copies of what ``tx.init`` took from the parameters as it was.

    A training step that donates both would otherwise donate one buffer twice.
    """
    theirs = {id(leaf) for leaf in jax.tree.leaves(params)}
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if id(leaf) in theirs else leaf, state)
