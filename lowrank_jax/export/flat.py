"""Flat names: a tree as arrays by name, and back.

The name of an array is its path, the keys joined by ``/``; the factors of a weight stand below the
path of the weight, as ``block_1/conv1/kernel/u``. What the factors are factors of is no matter of
names and shapes: the :class:`~lowrank_jax.table.Table` says it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax.table import Row, Table, describe, phrase
from lowrank_jax.tree import components, is_kernel, unbox
from lowrank_jax.weights import FactorizedWeight, is_factorized

RESERVED = "__metadata__"
"""The one name that a safetensors file has for itself."""


def to_host(tree: Any) -> dict[str, Any]:
    """The kernels of a tree as nested dicts: NumPy arrays, and weights with NumPy factors.

    Whatever containers the tree has become dicts, and partition boxes are taken off. A container
    without arrays leaves nothing.

    Raises:
      TypeError: a leaf that is no array of numbers.
      ValueError: two equal paths, a key that is empty or contains ``/``, an array that is spread
        over several processes.
    """
    stored: dict[str, Any] = {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_kernel):
        keys = components(key_path)
        path = "/".join(keys)
        if not keys:
            raise TypeError(
                f"found a {type(leaf).__name__}, expected a tree: put it in a dict, as in "
                '{"kernel": …}'
            )
        if bad := [key for key in keys if not key or "/" in key or path == RESERVED]:
            raise ValueError(
                f"{path}: the key {bad[0]!r} cannot be part of a flat name, since it is empty, "
                f"contains / or is {RESERVED}; rename it"
            )
        if path in stored:
            raise ValueError(f"two leaves of the tree have the path {path}; rename one of them")
        kernel = unbox(leaf)
        if is_factorized(kernel):
            factors = {name: host_array(f"{path}/{name}", x) for name, x in kernel.children()}
            stored[path] = kernel.replace(**factors)
        else:
            stored[path] = host_array(path, kernel)
    return nested(stored)


def host_array(name: str, leaf: Any) -> np.ndarray:
    """One array in the memory of the host, in C order and the machine's byte order.

    Raises:
      TypeError: it is no array of numbers.
      ValueError: parts of it are out of this process's reach.
    """
    if isinstance(leaf, jax.core.Tracer):
        raise TypeError(f"{name} is traced: call this outside of jit, grad and vmap")
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        raise TypeError(
            f"{name}: found {type(leaf).__name__}, expected an array; plain values belong in the "
            "metadata"
        )
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise TypeError(f"{name} is a key of random numbers: give jax.random.key_data of it")
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        raise ValueError(
            f"{name} is spread over several processes: gather the tree first, with "
            "jax.experimental.multihost_utils.process_allgather(tree, tiled=True)"
        )
    array = np.asarray(leaf, order="C")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def named_arrays(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of what :func:`to_host` returned, by their flat names.

    Raises:
      ValueError: two arrays have the same name.

    >>> from lowrank_jax import LowRank
    >>> weight = LowRank(u=np.ones((4, 1)), vt=np.ones((1, 3)))
    >>> list(named_arrays({"dense": {"kernel": weight, "bias": np.ones(3)}}))
    ['dense/bias', 'dense/kernel/u', 'dense/kernel/vt']
    """
    arrays: dict[str, np.ndarray] = {}
    for key_path, array in jax.tree_util.tree_leaves_with_path(tree):
        name = "/".join(components(key_path))
        if name in arrays:
            raise ValueError(f"two arrays have the flat name {name}; rename one of them")
        arrays[name] = array
    return arrays


def from_arrays(arrays: Mapping[str, np.ndarray], table: Table) -> dict[str, Any]:
    """The tree of these arrays, factorized as the table says.

    Raises:
      ValueError: arrays and table contradict each other.
    """
    left = dict(arrays)
    weights = {row.path: _weight(row, left) for row in table.rows}
    tree = nested(left | weights)
    if differences := table.differences(describe(tree)):
        raise ValueError(f"its arrays contradict its table of weights: {differences[0]}")
    return tree


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from paths.

    Raises:
      ValueError: a path is both a leaf and the beginning of another one.

    >>> nested({"dense/kernel": 1, "dense/bias": 2})
    {'dense': {'kernel': 1, 'bias': 2}}
    """
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        place = tree
        for key in parents:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                break
        if not isinstance(place, dict) or last in place:
            raise ValueError(f"{path} lies below another leaf, or another leaf below it")
        place[last] = value
    return tree


def _weight(row: Row, left: dict[str, np.ndarray]) -> FactorizedWeight:
    """The weight of a row; its factors are taken out of ``left``."""
    names = [field.name for field in dataclasses.fields(row.kind)]  # type: ignore[arg-type]
    there = [name for name in names if f"{row.path}/{name}" in left]
    try:
        weight = row.kind(**{name: left.pop(f"{row.path}/{name}") for name in there} | row.axes)
        weight.shape  # noqa: B018  Factors that do not fit together are found here.
    except Exception as error:  # Kinds of others may stumble over anything.
        raise ValueError(
            f"its arrays contradict its table of weights: {row.path}: expected {phrase(row)} "
            f"({error})"
        ) from error
    return weight
