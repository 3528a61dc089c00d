"""One state, cut into parts in many ways over eight devices; prints the digest of each.

    python state_digest_checks.py

Run in a process of its own, since the number of CPU devices is fixed when JAX starts.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import lowrank_jax as lrj
from experiments import state_digest

MESHES = {"a": (8, 1, 1), "b": (2, 2, 2), "c": (1, 4, 2)}
# Of up to three axes; a leaf of fewer is cut by what of it there is.
SPECS = (
    P(),
    P("x"),
    P(None, "y"),
    P("y", "x"),
    P(None, ("x", "z")),
    P(("z", "y", "x")),
    P("x", None, "z"),
    P(None, None, ("y", "x")),
)


def state() -> dict[str, Any]:
    """On one device: leaves of many types, all axes of them of a size that eight divides."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    return {
        "weight": lrj.LowRank(u=normal(16, 8), vt=normal(8, 24)),
        "cube": normal(8, 16, 8),
        "vector": normal(8),
        "half": normal(16, 8).astype(jnp.bfloat16),
        "flags": jnp.asarray(random.integers(0, 2, (8, 8)), bool),
        "small": jnp.asarray(random.integers(-128, 128, (8, 16)), jnp.int8),
        "key": jax.random.split(jax.random.key(3), 8),
        "step": jnp.int32(7),
        "empty": jnp.zeros((0, 8)),
        "of_the_host": np.arange(6.0).reshape(2, 3),
    }


def place(leaf: Any, mesh: Mesh, spec: P) -> Any:
    if not isinstance(leaf, jax.Array):
        return leaf
    return jax.device_put(leaf, NamedSharding(mesh, P(*spec[: leaf.ndim])))


def digests(state: Any) -> dict[str, list[str]]:
    """By mesh, of each way to cut, in blocks of the usual size and in small ones."""
    found: dict[str, list[str]] = {}
    usual = state_digest._BLOCK
    for name, shape in MESHES.items():
        mesh = Mesh(np.array(jax.devices()).reshape(shape), ("x", "y", "z"))
        found[name] = []
        for spec in SPECS:
            placed = jax.tree.map(lambda leaf, mesh=mesh, spec=spec: place(leaf, mesh, spec), state)
            for state_digest._BLOCK in (usual, 7):
                found[name].append(state_digest.digest(placed))
    return found


if __name__ == "__main__":
    print(json.dumps(digests(state())))
