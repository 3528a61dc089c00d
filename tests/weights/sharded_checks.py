"""Norms, gradients and kernels on eight devices; prints its findings as JSON.

Run in a process of its own, since the number of CPU devices is fixed when JAX starts.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lowrank_jax import ChannelLowRank, LowRank, SpatialLowRank, TensorTrain, Tucker

# Kind, static axes, factor shapes, and for every layout the spec of each factor.
WEIGHTS = {
    "matrix": (
        LowRank,
        {},
        {"u": (16, 4), "vt": (4, 8), "m": (4, 4)},
        {
            "in": {"u": P("x", None)},
            "out": {"vt": P(None, "x")},
            "in_out": {"u": P("x", None), "vt": P(None, "y")},
            "in_out_eager": {"u": P("x", None), "vt": P(None, "y")},
        },
    ),
    "heads": (
        LowRank,
        {"in_axes": 1, "out_axes": 2},
        {"u": (8, 4), "vt": (4, 4, 6)},
        {"in_heads": {"u": P("y", None), "vt": P(None, "x", None)}},
    ),
    "stack": (
        LowRank,
        {},
        {"u": (4, 8, 2), "vt": (4, 2, 6), "m": (4, 2, 2)},
        {
            "batch": {k: P("x", None, None) for k in ("u", "vt", "m")},
            "batch_out": {
                "u": P("x", None, None),
                "vt": P("x", None, "y"),
                "m": P("x", None, None),
            },
        },
    ),
    "spatial": (
        SpatialLowRank,
        {},
        {"u": (1, 3, 8, 4), "vt": (3, 1, 4, 6), "m": (4, 4)},
        {"in_out": {"u": P(None, None, "x", None), "vt": P(None, None, None, "y")}},
    ),
    "channel": (
        ChannelLowRank,
        {},
        {"u": (3, 3, 8, 4), "vt": (1, 1, 4, 6)},
        {"in_out": {"u": P(None, None, "x", None), "vt": P(None, None, None, "y")}},
    ),
    "train": (
        TensorTrain,
        {"outputs": 8, "spatial_axes": 2},
        {"core1": (4, 1, 4, 2), "core2": (4, 2, 4, 2), "core3": (4, 2, 3, 1)},
        {
            "batch": {f"core{k}": P("x", None, None, None) for k in (1, 2, 3)},
            "batch_middle": {
                "core1": P("y", None, "x", None),
                "core2": P("y", None, "x", None),
                "core3": P("y", None, None, None),
            },
            "ranks": {"core1": P(None, None, None, "y"), "core2": P(None, "y", "x", None)},
        },
    ),
    "tucker": (
        Tucker,
        {"outputs": 8},
        {
            "core1": (4, 1, 2, 4),
            "core2": (4, 4, 2, 2),
            "core3": (4, 2, 2, 1),
            "factor1": (4, 4, 2),
            "factor2": (4, 4, 2),
            "factor3": (4, 3, 2),
        },
        {
            "batch": {f"core{k}": P("x", None, None, None) for k in (1, 2, 3)}
            | {f"factor{k}": P("x", None, None) for k in (1, 2, 3)},
            "factors": {f"factor{k}": P(None, "x", None) for k in (1, 2)},
        },
    ),
}


def half_squared_norm(weight):
    return 0.5 * weight.squared_norm()


def relative(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@jax.jit
def quantities(weight):
    return half_squared_norm(weight), jax.grad(half_squared_norm)(weight), weight.dense()


def check(weight, specs, mesh, eager):
    """Largest relative errors and whether every gradient is sharded as its leaf is."""
    placed = {
        name: jax.device_put(value, NamedSharding(mesh, specs.get(name, P(*[None] * value.ndim))))
        for name, value in weight.children()
    }
    sharded = weight.replace(**placed)
    with jax.set_mesh(mesh):
        apply = quantities.__wrapped__ if eager else quantities
        norm, gradient, dense = apply(sharded)
    expected_norm, expected, expected_dense = quantities(weight)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(sharded), strict=True)
    return {
        "norm": relative(norm, expected_norm),
        "dense": relative(dense, expected_dense),
        "gradient": max(jax.tree.leaves(jax.tree.map(relative, gradient, expected))),
        "shardings": [
            [str(mine.sharding.spec), str(leaf.sharding.spec)]
            for mine, leaf in pairs
            if not mine.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
        ],
    }


def main():
    assert jax.device_count() == 8
    results = {}
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
        for name, (kind, axes, shapes, layouts) in WEIGHTS.items():
            generator = np.random.default_rng(0)
            factors = {
                key: jnp.asarray(generator.standard_normal(shape), jnp.float32)
                for key, shape in shapes.items()
            }
            for layout, specs in layouts.items():
                label = f"{axis_type.name}-{name}-{layout}"
                try:
                    eager = label.endswith("-in_out_eager")
                    results[label] = check(kind(**factors, **axes), specs, mesh, eager)
                except Exception as error:
                    results[label] = {"error": f"{type(error).__name__}: {error}"[:2000]}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
