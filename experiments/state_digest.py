"""A digest of a state, for which each process reads only the parts of it that it holds.

An entry of a leaf, its bits read as an unsigned number ``b``, becomes the ``i``-th number that the
generator SplitMix64 draws from the seed ``b``, where ``i`` is its place in the whole leaf, counted
from 1:

    s = b + i γ,    γ = 0x9e3779b97f4a7c15      s ^= s >> 30;   s *= 0xbf58476d1ce4e5b9
                                                s ^= s >> 27;   s *= 0x94d049bb133111eb
                                                s ^= s >> 31                    all modulo 2^64

A leaf is told by the sum of these modulo 2^64, and the state by the SHA-256 of paths, types, shapes
and sums. A sum is the same however the leaf is cut into parts. So the digest is the same on every
mesh and for every number of processes, and between processes travels one number for each leaf. For
a given place the draw is one-to-one: a single entry that has changed is always seen. Several that
have changed, or changed places, are overlooked with a probability of about 2^-64. That is for
accidents; who wants two states to agree will find them.

Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, whose
mixer is Stafford's thirteenth; and, for sums over hashes of entries with their places, Bellare,
Micciancio, "A new paradigm for collision-free hashing", EUROCRYPT 1997.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments import processes

_KIND = "sums"  # Digests of another kind begin otherwise, those of whole leaves with none.

_GAMMA = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
_MODULUS = 2**64

# What is computed with at a time stays in the cache of a core: three times 256 KiB.
_BLOCK = 2**15


def digest(state: Any) -> str:
    """The digest of a state, the same in all processes; all of them must ask for it.

    Args:
      state: a tree of arrays, of JAX or NumPy, and numbers. What is not distributed is taken from
        the first process.
    """
    leaves = [(path, _as_numbers(leaf)) for path, leaf in _named(state)]
    sums = _over_processes(np.array([_sum_here(leaf) for _, (_, leaf) in leaves], np.uint64))
    sha = hashlib.sha256()
    for (path, (dtype, leaf)), value in zip(leaves, sums, strict=True):
        sha.update(f"{path} {dtype} {leaf.shape} {value:016x}\n".encode())
    return f"{_KIND}:{sha.hexdigest()}"


def agrees(state: Any, written: str) -> bool:
    """Whether a digest that was written is that of a state; see `digest`.

    Raises:
      ValueError: it is of a kind that is not known here.
    """
    kind, separator, _ = written.rpartition(":")
    if not separator:
        return _of_whole_leaves(state) == written
    if kind != _KIND:
        raise ValueError(f"its digest is of the kind {kind!r}, and {_KIND!r} is what is known here")
    return digest(state) == written


def _of_whole_leaves(state: Any) -> str:
    """The digest that checkpoints had before this one: SHA-256 over all bytes, for which each
    process needs whole leaves."""
    sha = hashlib.sha256()
    for path, leaf in _named(state):
        array = processes.on_host(leaf)
        sha.update(f"{path} {array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _named(state: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def _as_numbers(leaf: Any) -> tuple[str, jax.Array | np.ndarray]:
    """The type of a leaf, and the leaf as an array of numbers."""
    if not isinstance(leaf, jax.Array):
        leaf = np.asarray(leaf)
    elif jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype), jax.random.key_data(leaf)
    return str(leaf.dtype), leaf


def _over_processes(sums: np.ndarray) -> np.ndarray:
    """The sums of all processes, ``(leaves,)``, each modulo 2^64."""
    if not processes.several():
        return sums
    # As halves: JAX makes 32 bits of 64 where it is not told otherwise.
    halves = np.asarray(multihost_utils.process_allgather(sums.view(np.uint32)))
    return np.ascontiguousarray(halves).view(np.uint64).sum(0)


def _sum_here(leaf: jax.Array | np.ndarray) -> int:
    """The sum over what this process holds of a leaf; of a part that lies on several devices, of
    any process, one copy counts."""
    return sum(_sum(part, starts, leaf.shape) for part, starts in _parts(leaf)) % _MODULUS


def _parts(leaf: jax.Array | np.ndarray) -> Iterator[tuple[np.ndarray, Sequence[int]]]:
    """Parts of a leaf, and where on each axis they begin."""
    distributed = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if not distributed and not processes.is_first():
        return  # All have it.
    if not isinstance(leaf, jax.Array):
        yield leaf, [0] * leaf.ndim
        return
    for part in leaf.addressable_shards:
        if part.replica_id == 0:
            yield np.asarray(part.data), [cut.start or 0 for cut in part.index]


def _sum(part: np.ndarray, starts: Sequence[int], shape: tuple[int, ...]) -> int:
    """The sum over one part of a leaf of this shape."""
    size = min(part.itemsize, np.dtype(np.uint64).itemsize)
    words = part.reshape(-1).view(f"u{size}")
    # An entry of more than 64 bits is several, on an axis of their own.
    more = part.itemsize // size
    axes = _joined((*part.shape, more), (*starts, 0), (*shape, more))
    total = 0
    for first in range(0, words.size, _BLOCK):
        block = words[first : first + _BLOCK]
        drawn = _places(first, first + block.size, axes)
        drawn *= np.uint64(_GAMMA)
        drawn += block
        shifted = np.empty_like(drawn)
        for shift, factor in _MIX:
            np.right_shift(drawn, np.uint64(shift), out=shifted)
            drawn ^= shifted
            if factor != 1:
                drawn *= np.uint64(factor)
        total += int(drawn.sum())
    return total % _MODULUS


def _joined(
    sizes: Sequence[int], starts: Sequence[int], whole: Sequence[int]
) -> list[tuple[int, int, int]]:
    """Size, start and whole size of as few axes as have the same places, from the last one: what is
    left of an axis that is there as a whole is one with it."""
    axes: list[tuple[int, int, int]] = []
    for axis in reversed(list(zip(sizes, starts, whole, strict=True))):
        if axes and axes[-1][0] == axes[-1][2]:
            length = axes.pop()[2]
            axis = (axis[0] * length, axis[1] * length, axis[2] * length)
        axes.append(axis)
    return axes


def _places(first: int, last: int, axes: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """The places in the whole leaf, counted from 1, of the entries from `first` to `last` of a part
    of it."""
    left = np.arange(first, last, dtype=np.uint64)
    *inner, (_, outermost, _) = axes
    places: np.ndarray | np.uint64 = np.uint64(1)
    stride = 1
    for size, start, whole in inner:
        above = left // np.uint64(size)
        places = places + (left - above * np.uint64(size) + np.uint64(start)) * np.uint64(stride)
        left, stride = above, stride * whole
    left += np.uint64(outermost)
    left *= np.uint64(stride)
    left += places
    return left
