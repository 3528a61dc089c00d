"""Walking a parameter tree kernel by kernel: paths, factorized weights and partition boxes.

A path is the string of keys from the root, joined by ``/``. The *name* of a leaf is its path,
except that the array of an nnx variable has the name of the variable. A *box* is a leaf wrapper
that carries the names of mesh axes beside an array (``flax.linen.Partitioned`` and its kin); it is
known by what it offers (``value``, ``replace_boxed``, ``names``), so that nothing here depends on
flax. A kernel's path does not contain the box. When a kernel is factorized, the box goes inside the
weight: each factor axis gets the name of the dense axis it comes from.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lowrank_jax.placement import follow
from lowrank_jax.weights import FactorizedWeight, is_factorized

Components = tuple[str, ...]

_VALUE = jax.tree_util.GetAttrKey("value")


def components(key_path: tuple[Any, ...]) -> Components:
    """The keys of a JAX key path as strings.

    >>> components((jax.tree_util.DictKey("a"), jax.tree_util.GetAttrKey("u")))
    ('a', 'u')
    """
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in key_path)


def path_string(key_path: tuple[Any, ...]) -> str:
    """``'block_1/conv1/kernel'`` for a JAX key path."""
    return "/".join(components(key_path))


def is_boxed(x: Any) -> bool:
    """Whether ``x`` is a partition box."""
    return all(hasattr(x, name) for name in ("replace_boxed", "names", "value"))


def is_kernel(x: Any) -> bool:
    """Where to stop when walking kernel by kernel: at factorized weights and at boxes."""
    return is_factorized(x) or is_boxed(x)


def unbox(x: Any) -> Any:
    """The array in a box, a weight with its factors unboxed, anything else as it is."""
    # Not by the box's own `unbox`, which constrains the sharding under a mesh: shapes have none.
    if is_boxed(x):
        return x.value
    if is_factorized(x):
        return jax.tree.map(
            lambda leaf: leaf.value if is_boxed(leaf) else leaf, x, is_leaf=is_boxed
        )
    return x


def kernels(params: Any) -> dict[str, Any]:
    """Every leaf by its path, a factorized weight counting as one leaf, boxes removed.

    Raises:
      ValueError: two leaves have the same path, because a key contains ``/``.
    """
    found: dict[str, Any] = {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_kernel):
        path = path_string(key_path)
        if path in found:
            raise ValueError(f"two leaves of the tree have the path {path}; rename one of them")
        found[path] = unbox(leaf)
    return found


def leaf_names(params: Any, is_leaf: Callable[[Any], bool] = is_kernel) -> dict[str, str]:
    """The name of every leaf by its path.

    The array of an nnx variable (and that in a partition box, where ``is_leaf`` does not stop at
    it) is an attribute ``value``, the only one: it has the name of what it is in. A leaf that is
    called ``value`` in a dictionary or beside others keeps its name.

    >>> leaf_names({"query": 1, "value": 2})
    {'query': 'query', 'value': 'value'}
    """
    entries = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_leaf)
    siblings = collections.Counter(key_path[:-1] for key_path, _ in entries)
    names = {}
    for key_path, _ in entries:
        path, inside = path_string(key_path), key_path[-1:] == (_VALUE,)
        names[path] = (
            path_string(key_path[:-1]) if inside and siblings[key_path[:-1]] == 1 else path
        )
    return names


def stored_path(named: str, names: Mapping[str, str]) -> str | None:
    """The path of a leaf that was named by its path or by its name; None if there is none."""
    if named in names:
        return named
    return next((path for path, name in names.items() if name == named), None)


def factorized_weights(params: Any) -> dict[str, FactorizedWeight]:
    """The factorized weights of a tree by their paths, boxes removed."""
    return {path: leaf for path, leaf in kernels(params).items() if is_factorized(leaf)}


def map_kernels(function: Callable[[str, Any], Any], params: Any) -> Any:
    """Maps ``function(path, kernel)`` over the kernels; boxes are taken off and put back on."""

    def visit(key_path: tuple[Any, ...], leaf: Any) -> Any:
        plain = unbox(leaf)
        result = function(path_string(key_path), plain)
        return leaf if result is plain else _rebox(leaf, result)

    return jax.tree_util.tree_map_with_path(visit, params, is_leaf=is_kernel)


def _rebox(original: Any, result: Any) -> Any:
    """Boxes a new kernel like the one it replaces, with names that follow the axes."""
    box, names = _box_and_names(original)
    if box is None:
        return result
    if not is_factorized(result):
        return dataclasses.replace(box, value=result, names=names)

    def boxed(name: str, factor: Any) -> Any:
        return dataclasses.replace(box, value=factor, names=follow(result, name, names))

    return result.replace(**{name: boxed(name, factor) for name, factor in result.children()})


def _box_and_names(original: Any) -> tuple[Any, tuple[Any, ...]]:
    """One of the boxes of a kernel, and the names of the dense kernel's axes."""
    if is_boxed(original):
        # Like a partition spec, names may stop early: the axes past them have none.
        missing = jnp.ndim(original.value) - len(original.names)
        return original, (*original.names, *[None] * missing)
    box: Any = None
    names: dict[int, Any] = {}
    if is_factorized(original):
        weight = unbox(original)
        for name, factor in original.children():
            if is_boxed(factor):
                box = factor
                named = zip(weight.factor_axes[name], factor.names, strict=False)
                names |= {axis: axis_name for axis, axis_name in named if isinstance(axis, int)}
    return box, tuple(names.get(axis) for axis in range(weight.ndim)) if box is not None else ()


def near_misses(wanted: str, paths: Iterable[str]) -> str:
    """A phrase that lists the paths most like a pattern or path that was not found."""
    plain = wanted.replace("\\d+", "1").replace(".*", "").replace("\\", "")
    close = difflib.get_close_matches(plain, list(paths), n=5, cutoff=0.3)
    if close:
        return "near misses: " + ", ".join(close)
    some = sorted(paths)[:5]
    return "the tree has " + (", ".join(some) if some else "no leaves at all")
