"""Frobenius decay on eight devices: the same numbers, shardings and dtypes as on one.

Fake CPU devices must be asked for before JAX starts, so this file is also the script that the test
runs in a process of its own; it prints one JSON object.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight_devices import printed_by
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lowrank_jax import LowRank, Product, SpatialLowRank, View, decay, frobenius_penalty

P = PartitionSpec
PRODUCT = Product("query", "key", dimension_numbers=(((2,), (2,)), ((1,), (1,))))
FACTORIZED = Product("query weight", "key", dimension_numbers=PRODUCT.dimension_numbers)
WHOLE = View("fused").split(-1, (3, 4, 2))
FUSED = Product(WHOLE.take(-3, 0), WHOLE.take(-3, 1), dimension_numbers=PRODUCT.dimension_numbers)
BOTH = [View("fused, sharded twice").split(-1, (3, 4, 2)).take(-3, part) for part in (0, 1)]
RANGES = [View("fused heads").take(-1, (start, start + 2)) for start in (0, 2)]
PRODUCTS = [
    PRODUCT,
    FACTORIZED,
    FUSED,
    Product(*BOTH, dimension_numbers=PRODUCT.dimension_numbers),
    Product(*RANGES, dimension_numbers=PRODUCT.dimension_numbers),
]
RULE = decay(0.25, 0.5, products=PRODUCTS)

# Axis type, dtype, and tolerance: in bfloat16 a rounding of one result.
RUNS = [
    ("automatic", "float32", 1e-6),
    ("explicit", "float32", 1e-6),
    ("explicit", "bfloat16", 2**-8),
]


def placed() -> dict[str, tuple[Any, Any]]:
    """Weights and the partition specs of their factors, by name."""
    both = ("x", "y")
    matrix = {"u": (16, 4), "vt": (4, 8), "m": (4, 4)}
    stacked = {name: (2, *shape) for name, shape in matrix.items()}
    heads = {"u": (16, 4), "vt": (4, 4, 8)}
    conv = {"u": (1, 3, 8, 4), "vt": (3, 1, 4, 8)}
    table: dict[str, tuple[Any, dict[str, tuple[int, ...]], dict[str, Any]]] = {
        "in and out": (LowRank, matrix, {"u": P("x"), "vt": P(None, "y"), "m": P()}),
        "in over both": (LowRank, matrix, {"u": P(both), "vt": P(), "m": P()}),
        "rank": (LowRank, matrix, {"u": P(None, "y"), "vt": P("y"), "m": P()}),
        "batch, in, out": (LowRank, stacked, {"u": P("x", "y"), "vt": P("x", None, "y"), "m": P()}),
        "heads": (
            functools.partial(LowRank, out_axes=2),
            heads,
            {"u": P("x"), "vt": P(None, "y", "x")},
        ),
        "spatial": (
            SpatialLowRank,
            conv,
            {"u": P(None, None, "x"), "vt": P(None, None, None, "y")},
        ),
    }
    generator = np.random.default_rng(0)

    def normal(shape: tuple[int, ...]) -> jax.Array:
        return jnp.asarray(generator.standard_normal(shape), jnp.float32)

    weights: dict[str, tuple[Any, Any]] = {
        name: (kind(**{n: normal(s) for n, s in shapes.items()}), kind(**specs))
        for name, (kind, shapes, specs) in table.items()
    }
    return weights | {
        "query": (normal((16, 4, 2)), P("x", "y")),
        "key": (normal((16, 4, 2)), P("x", "y")),
        "query weight": (
            LowRank(normal((16, 4)), normal((4, 4, 2)), out_axes=2),
            LowRank(P("y"), P(None, "x"), out_axes=2),
        ),
        "fused": (normal((16, 24)), P("x")),
        "fused, sharded twice": (normal((16, 24)), P("x", "y")),
        "fused heads": (normal((16, 4, 8)), P("x", None, "y")),
        "bias": (normal((8,)), P("y")),
    }


def check(mesh: Mesh, dtype: Any) -> dict[str, list[Any]]:
    """For each leaf: largest relative error, whether the sharding was kept, and the dtype."""
    table = placed()
    plain = {name: jax.tree.map(lambda x: x.astype(dtype), w) for name, (w, _) in table.items()}
    specs = {name: spec for name, (_, spec) in table.items()}
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P)
    )
    params = jax.device_put(plain, shardings)

    def update(updates: Any, params: Any) -> Any:
        added, _ = RULE.update(updates, RULE.init(params), params)
        return added, frobenius_penalty(params, PRODUCTS)

    zeros = jax.tree.map(jnp.zeros_like, plain)
    wanted, single = jax.jit(update)(zeros, plain)
    with jax.set_mesh(mesh):
        found, penalty = jax.jit(update)(jax.device_put(zeros, shardings), params)
    report: dict[str, list[Any]] = {}
    for (path, leaf), reference, start in zip(
        jax.tree_util.tree_leaves_with_path(found),
        jax.tree.leaves(wanted),
        jax.tree.leaves(params),
        strict=True,
    ):
        a, b = np.asarray(leaf, np.float64), np.asarray(reference, np.float64)
        # Where a replicated leaf's result goes, the compiler decides on automatic axes.
        free = AxisType.Auto in mesh.axis_types and start.sharding.is_fully_replicated
        kept = free or leaf.sharding.is_equivalent_to(start.sharding, leaf.ndim)
        error = float(np.abs(a - b).max() / np.abs(b).max())
        report[jax.tree_util.keystr(path)] = [error, kept, str(leaf.dtype)]
    report["penalty"] = [float(abs(penalty - single) / single), True, str(dtype)]
    return report


def main() -> None:
    report = {}
    kinds = {"automatic": AxisType.Auto, "explicit": AxisType.Explicit}
    for name, dtype, _ in RUNS:
        mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kinds[name],) * 2)
        report[f"{name} {dtype}"] = check(mesh, jnp.dtype(dtype))
    print(json.dumps({"devices": jax.device_count(), "report": report}))


@pytest.fixture(scope="module")
def result() -> Any:
    return printed_by(Path(__file__), optimized=False)


def test_there_are_eight_devices(result: Any) -> None:
    assert result["devices"] == 8


@pytest.mark.parametrize(("axes", "dtype", "tolerance"), RUNS)
def test_eight_devices_decay_as_one(result: Any, axes: str, dtype: str, tolerance: float) -> None:
    leaves = result["report"][f"{axes} {dtype}"]
    assert len(leaves) == len(jax.tree.leaves({k: w for k, (w, _) in placed().items()})) + 1
    assert {path: e for path, (e, _, _) in leaves.items() if not e <= tolerance} == {}
    assert [path for path, (_, kept, _) in leaves.items() if not kept] == []
    assert {found for _, _, found in leaves.values()} == {dtype}


if __name__ == "__main__":
    main()
