"""What is asked of eight CPU devices, in a process of its own; prints JSON.

python on_eight_devices.py
"""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import tiny_main
import tiny_runs
from jax.sharding import NamedSharding, PartitionSpec

from experiments import mesh as meshes
from experiments import models
from experiments import state as states
from experiments.planning import as_text
from experiments.planning.collectives import collectives
from experiments.planning.needs import needs_of
from experiments.planning.planned_run import planned_run
from experiments.planning.replica_groups import axes_of

MESHES = ("data:8", "data:2,fsdp:2,tensor:2")
P = PartitionSpec


def communicated(mesh: Any, compiled: Any) -> list[tuple[str, list[str], int, float]]:
    found = collectives(compiled.as_text(), mesh.size)
    sizes = dict(mesh.shape)
    return [(one.kind, list(axes_of(one.groups, sizes)), one.count, one.bytes) for one in found]


def gradient_of_parallel_data() -> Any:
    """Parameters everywhere, examples split: what is exchanged is the gradient."""
    mesh = meshes.make("data:8")
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    params = {"u": jnp.ones((16, 5)), "vt": jnp.ones((5, 24)), "bias": jnp.ones(24)}

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.tanh(x @ params["u"] @ params["vt"] + params["bias"]) ** 2)

    step = jax.jit(jax.grad(loss), in_shardings=(everywhere, split), out_shardings=everywhere)
    return communicated(mesh, step.lower(params, jnp.ones((32, 16))).compile())


def as_written() -> dict[str, Any]:
    """Collectives that a program asks for by name, on 64 x 32 floats for each device."""
    mesh = meshes.make("data:2,fsdp:4")
    lax: Any = jax.lax

    def summed(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return lax.psum(jnp.sin(x), "data"), None

    inside = {
        "psum": lambda x: lax.psum(x, "fsdp"),
        "psum_of_all": lambda x: lax.psum(x, ("data", "fsdp")),
        "gather": lambda x: lax.all_gather(x, "fsdp", tiled=True)[:64],
        "scatter": lambda x: jnp.tile(lax.psum_scatter(x, "fsdp", tiled=True), (4, 1)),
        "all_to_all": lambda x: lax.all_to_all(x, "data", 0, 0, tiled=True),
        "permute": lambda x: lax.ppermute(x, "fsdp", [(0, 1), (1, 2), (2, 3), (3, 0)]),
        "loop": lambda x: lax.scan(summed, x, length=6)[0],
    }
    found = {}
    for name, function in inside.items():
        spread = P(("data", "fsdp"))
        mapped = jax.shard_map(
            function, mesh=mesh, in_specs=spread, out_specs=spread, check_vma=False
        )
        x = jax.ShapeDtypeStruct((512, 32), jnp.float32, sharding=NamedSharding(mesh, spread))
        found[name] = communicated(mesh, jax.jit(mapped).lower(x).compile())
    return found


def planned(mesh: str) -> dict[str, Any]:
    """Needs of a tiny run, and what its arrays really have on the first device."""
    run = planned_run(tiny_runs.config(mesh=mesh, layout="as_written"))
    state = states.create(run.plan, run.task.network)

    def on_first(tree: Any) -> int:
        device = run.plan.mesh.devices.flat[0]
        return sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(tree)
            for shard in leaf.addressable_shards
            if shard.device == device
        )

    found = needs_of(run)
    return {
        "needs": as_text.plain(found),
        "text": as_text.text(found),
        "real": {
            "parameters": on_first(state.params),
            "optimizer_state": on_first((state.step, state.opt_state)),
            "model_state": on_first(state.model_state),
        },
        "arguments": run.programs.compile(run.cut).memory_analysis().argument_size_in_bytes,
    }


if __name__ == "__main__":
    assert jax.device_count() == 8
    models.MODELS["tiny"] = tiny_main.ENTRY
    print(
        json.dumps(
            {
                "gradient": gradient_of_parallel_data(),
                "as_written": as_written(),
                "planned": {mesh: planned(mesh) for mesh in MESHES},
            }
        )
    )
