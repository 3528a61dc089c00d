"""Mirrors: which part of an optimizer's state belongs to which parameter.

Optimizers keep what they remember of each parameter in trees that mirror the parameter tree, as
Adam's ``mu`` and ``nu`` do. A *mirror* is a subtree of the state

* in which the path of every parameter occurs whole, key by key (whatever stands there, one array or
  several), or ends at a hollow node such as the ``MaskedNode`` of ``optax.masked``;
* in which nothing else occurs;
* and in which no smaller mirror lies.

A leaf of the state in a mirror belongs to the parameter at its place, every other leaf to none.
Keys are compared with their types, and whole subtrees with the whole tree. So a parameter called
``count`` is not taken for a step count, nor ``kernel`` at the root for ``dense/kernel``, and no
optimizer has to be known by name. A factorized weight or a boxed array is one parameter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import jax

from lowrank_jax.tree import is_kernel, path_string

KeyPath = tuple[Any, ...]


class Owner(NamedTuple):
    """Whose a leaf of the state is.

    Attributes:
      parameter: the path of the parameter, such as ``"dense/kernel"``.
      mirror: the key path of the mirror the leaf lies in; the rest of the leaf's key path is that
        of a leaf of the parameters, where the optimizer keeps one leaf for each.
    """

    parameter: str
    mirror: KeyPath


def owners(state: Any, params: Any) -> dict[KeyPath, Owner]:
    """The owners of the leaves of ``tx``'s state for ``params`` that have one, by their key paths.

    >>> import optax
    >>> params = {"count": jax.numpy.zeros(2)}
    >>> found = owners(optax.sgd(optax.constant_schedule(0.1), momentum=0.9).init(params), params)
    >>> [(path_string(path), owner.parameter) for path, owner in found.items()]
    [('0/trace/count', 'count')]
    """
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_kernel)
    parameters = {path for path, _ in leaves}
    below = defaultdict(list)
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_hollow):
        for length in range(len(path)):
            below[path[:length]].append((path[length:], _is_hollow(node)))

    found: dict[KeyPath, Owner] = {}
    around: set[KeyPath] = set()
    for mirror in sorted(below, key=len, reverse=True):  # the innermost first
        if mirror in around or not _is_mirror(below[mirror], parameters):
            continue
        around.update(mirror[:length] for length in range(len(mirror)))
        for rest, hollow in below[mirror]:
            parameter = _prefix_in(rest, parameters)
            if parameter is not None and not hollow:
                found[mirror + rest] = Owner(path_string(parameter), mirror)
    return found


def nodes(state: Any, types: type | tuple[type, ...]) -> Iterator[tuple[KeyPath, Any]]:
    """The outermost nodes of some types in a state, with their key paths.

    >>> import optax
    >>> state = optax.chain(optax.clip(1.0), optax.trace(0.9)).init(jax.numpy.zeros(2))
    >>> [path_string(path) for path, _ in nodes(state, optax.TraceState)]
    ['1']
    """
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda x: isinstance(x, types))
    return ((path, node) for path, node in leaves if isinstance(node, types))


def _is_hollow(node: Any) -> bool:
    """Whether a node holds no leaf: ``None``, an ``EmptyState``, a ``MaskedNode``."""
    return not jax.tree.leaves(node)


def _is_mirror(rests: list[tuple[KeyPath, bool]], parameters: set[KeyPath]) -> bool:
    covered: set[KeyPath] = set()
    hollows: set[KeyPath] = set()
    holds_state = False
    for rest, hollow in rests:
        parameter = _prefix_in(rest, parameters)
        if parameter is not None:
            covered.add(parameter)
            holds_state = holds_state or not hollow
        elif hollow:
            hollows.add(rest)
        else:
            return False
    return holds_state and all(
        path in covered or _prefix_in(path, hollows) is not None for path in parameters
    )


def _prefix_in(path: KeyPath, paths: Collection[KeyPath]) -> KeyPath | None:
    prefixes = (path[:length] for length in range(len(path) + 1))
    return next((prefix for prefix in prefixes if prefix in paths), None)
