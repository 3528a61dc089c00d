"""The digest of a state: the same wherever its parts are, and another one for any other state."""

from __future__ import annotations

import hashlib
import itertools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import state_digest_checks
from eight_devices import printed_by
from tiny_runs import ROOT

import lowrank_jax as lrj
from experiments.state_digest import agrees, digest

MODULUS = 2**64


def drawn(seed: int, number: int) -> int:
    """SplitMix64: the number of this place, counted from 1."""
    s = (seed + number * 0x9E3779B97F4A7C15) % MODULUS
    s = (s ^ (s >> 30)) * 0xBF58476D1CE4E5B9 % MODULUS
    s = (s ^ (s >> 27)) * 0x94D049BB133111EB % MODULUS
    return s ^ (s >> 31)


def by_hand(state: Any) -> str:
    """The digest, entry by entry in whole numbers of Python, of entries of at most 64 bits."""
    lines = ""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        dtype = leaf.dtype
        array = np.asarray(jax.random.key_data(leaf) if str(dtype) == "key<fry>" else leaf)
        entries = [int.from_bytes(entry.tobytes(), sys.byteorder) for entry in array.reshape(-1)]
        total = sum(drawn(entry, place) for place, entry in enumerate(entries, 1)) % MODULUS
        lines += f"{jax.tree_util.keystr(path)} {dtype} {array.shape} {total:016x}\n"
    return f"sums:{hashlib.sha256(lines.encode()).hexdigest()}"


def test_the_generator() -> None:
    """The first numbers that SplitMix64 draws from 1234567, as Rosetta Code has them."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [drawn(1234567, place) for place in range(1, 6)] == expected


def test_it_is_the_same_however_the_state_is_cut() -> None:
    script = Path(__file__).with_name("state_digest_checks.py")
    found = printed_by(script, imports=(ROOT,), optimized=False)
    expected = by_hand(state_digest_checks.state())
    ways = 2 * len(state_digest_checks.SPECS)
    assert found == {name: [expected] * ways for name in state_digest_checks.MESHES}


def test_entries_of_more_bits_and_more_entries_than_a_block() -> None:
    long = np.random.default_rng(0).normal(size=2**15 + 3)
    assert digest([long]) == by_hand([long])
    for array in (long[::-1], np.asfortranarray(long[:6].reshape(2, 3)), np.float64(3.0)):
        assert digest([array]) == by_hand([array])
    # A complex number of 128 bits is two numbers of 64 here.
    pairs = long[:-1].reshape(-1, 2)
    line = f"[0] complex128 ({len(pairs)},) "
    total = sum(
        drawn(int.from_bytes(entry.tobytes(), sys.byteorder), place)
        for place, entry in enumerate(pairs.reshape(-1), 1)
    )
    expected = hashlib.sha256(f"{line}{total % MODULUS:016x}\n".encode()).hexdigest()
    assert digest([pairs.view(np.complex128)[:, 0]]) == f"sums:{expected}"


@pytest.mark.parametrize("dtype", [np.float32, np.float64, jnp.bfloat16, np.int8, np.uint32])
def test_every_bit_counts(dtype: Any) -> None:
    entries = np.arange(1, 25).astype(dtype).reshape(4, 6)
    digests = {digest([entries])}
    for bit in range(8 * entries.nbytes):
        changed = entries.copy()
        changed.reshape(-1).view(np.uint8)[bit // 8] ^= 1 << (bit % 8)
        digests.add(digest([changed]))
    assert len(digests) == 8 * entries.nbytes + 1


def test_the_place_of_every_entry_counts() -> None:
    """Powers of two differ in few bits; all pairs of them, in each order of the rest."""
    entries = np.exp2(np.arange(-20, 20, dtype=np.float32)).reshape(8, 5)
    digests = {digest([entries])}
    pairs = list(itertools.combinations(range(entries.size), 2))
    for one, other in pairs:
        swapped = entries.copy()
        flat = swapped.reshape(-1)
        flat[[one, other]] = flat[[other, one]]
        digests.add(digest([swapped]))
    assert len(digests) == len(pairs) + 1
    others = [entries[::-1], entries[:, ::-1], np.roll(entries, 1), entries.reshape(5, 8)]
    assert len(digests | {digest([other]) for other in others}) == len(digests) + len(others)


def test_what_leaves_are_and_where_counts() -> None:
    ones, twos = np.full((3, 4), 1.0, np.float32), np.full((3, 4), 2.0, np.float32)
    states: list[Any] = [
        {"a": ones, "b": twos},
        {"a": twos, "b": ones},
        {"a": ones, "c": twos},
        {"a": ones, "b": twos, "c": np.zeros(0)},
        {"a": ones, "b": twos.view(np.int32)},
        {"a": ones, "b": twos.reshape(4, 3)},
        {"a": lrj.LowRank(u=ones, vt=twos.T)},
        {"a": lrj.LowRank(u=twos, vt=ones.T)},
        {"a": np.zeros(2)},
        {"a": -np.zeros(2)},
        {"a": np.zeros(2, bool)},
        {"a": jax.random.key(0)},
        {"a": jax.random.key_data(jax.random.key(0))},
    ]
    assert len({digest(state) for state in states}) == len(states)


def test_what_is_written_is_compared() -> None:
    state = {"a": np.arange(3.0), "b": jnp.int8(4)}
    assert agrees(state, digest(state)) and not agrees(state | {"b": jnp.int8(5)}, digest(state))
    with pytest.raises(ValueError, match="its digest is of the kind 'later', and 'sums' is"):
        agrees(state, "later:0123")


def test_a_digest_of_whole_leaves_is_still_compared() -> None:
    state = {"a": np.arange(3.0), "b": jnp.int8(4)}
    sha = hashlib.sha256(b"['a'] float64 (3,)" + state["a"].tobytes() + b"['b'] int8 ()\x04")
    assert agrees(state, sha.hexdigest())
    assert not agrees(state | {"b": jnp.int8(5)}, sha.hexdigest())
