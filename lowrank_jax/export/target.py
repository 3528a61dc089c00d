"""Strict loading: what a file holds, put into the tree that somebody expects."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowrank_jax.table import phrase, row_of
from lowrank_jax.tree import kernels, map_kernels
from lowrank_jax.weights import is_factorized

_MOST = 5


def fill(target: Any, stored: Any) -> Any:
    """The target with every kernel replaced by the stored one of its path.

    Args:
      target: arrays, weights, or either with ``jax.ShapeDtypeStruct`` leaves, in any containers
        and partition boxes, which the result has too.
      stored: nested dicts of NumPy arrays and weights.

    Raises:
      TypeError: a leaf of the target that is no array.
      ValueError: a kernel is missing or one too many, or shape, dtype, kind, axes, rank or depth
        is another.
    """
    expected, found = kernels(target), kernels(stored)
    lines = []
    for path in dict.fromkeys([*expected, *found]):
        if path not in found:
            lines.append(f"{path}: missing, expected {_phrase(path, expected[path])}")
        elif path not in expected:
            lines.append(f"{path}: not expected, found {_phrase(path, found[path])}")
        else:
            wanted, there = (_phrase(path, kernel) for kernel in (expected[path], found[path]))
            if wanted != there:
                lines.append(f"{path}: expected {wanted}, found {there}")
    if lines:
        more = f"\n  and {len(lines) - _MOST} more" if len(lines) > _MOST else ""
        raise ValueError(
            "it does not hold what the target expects:\n  "
            + "\n  ".join(lines[:_MOST])
            + more
            + "\nGive a target of the model that was saved, factorized likewise (merge makes it "
            "dense), or none to take what is there"
        )
    return map_kernels(lambda path, _: found[path], target)


def _phrase(path: str, kernel: Any) -> str:
    """A kernel in words, which are equal for kernels that can take each other's place."""
    if is_factorized(kernel):
        dtypes = {name: str(np.dtype(factor.dtype)) for name, factor in kernel.children()}
        if len(set(dtypes.values())) == 1:
            return f"{phrase(row_of(path, kernel))} in {dtypes.popitem()[1]}"
        named = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        return f"{phrase(row_of(path, kernel))} in {named}"
    if not hasattr(kernel, "shape") or not hasattr(kernel, "dtype"):
        raise TypeError(
            f"{path} of the target is a {type(kernel).__name__}, expected an array, a weight or a "
            "jax.ShapeDtypeStruct"
        )
    return f"an array {tuple(kernel.shape)} of {kernel.dtype}"
