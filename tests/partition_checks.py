"""Training steps compiled for eight devices; prints what each sends around, in numbers, as JSON.

Run in a process of its own, since the number of CPU devices is fixed when JAX starts.
"""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import lowrank_jax as lrj
from lowrank_jax.sharding import gathered_over, partition, partition_state

CHANNELS, RANK = 256, 8
# Kernel, rule, and the input of one example. Activations are smaller than a kernel.
NETWORKS = {
    "matrix": ((CHANNELS, CHANNELS), lrj.Rule("kernel", lrj.FixedRank(RANK)), (CHANNELS,)),
    "matrix_deep": (
        (CHANNELS, CHANNELS),
        lrj.Rule("kernel", lrj.FixedRank(RANK), depth=3),
        (CHANNELS,),
    ),
    "spatial": (
        (3, 3, CHANNELS, CHANNELS),
        lrj.Rule("kernel", lrj.FixedRank(RANK), lrj.SpatialLowRank),
        (4, 4, CHANNELS),
    ),
    "channel": (
        (3, 3, CHANNELS, CHANNELS),
        lrj.Rule("kernel", lrj.FixedRank(RANK), lrj.ChannelLowRank),
        (4, 4, CHANNELS),
    ),
}
BATCH = 16


def apply(kernel, x):
    if x.ndim == 2:
        return lrj.dot_general(x, kernel, (((1,), (0,)), ((), ())), compose=False)
    return lrj.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), compose=False
    )


def apply_dense(kernel, x):
    if x.ndim == 2:
        return x @ kernel
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
SENT = re.compile(rf" = (.*) ({'|'.join(KINDS)})(?:-start)?\(")


def sent(params, apply, example, mesh):
    """Sizes of the results of all collective operations in the optimized program of a step, by
    kind."""
    tx = optax.chain(lrj.decay(1e-4), optax.sgd(0.1, momentum=0.9))
    opt_state = jax.eval_shape(tx.init, params)
    placed = partition(params, mesh)
    places = placed, partition_state(opt_state, params, placed)

    def step(params, opt_state, x):
        whole = jax.lax.with_sharding_constraint(params, gathered_over("fsdp", placed))

        def loss(params):
            hidden = jax.nn.relu(apply(params["kernel"], x))
            return jnp.mean(jnp.square(apply(params["kernel"], hidden)))

        updates, opt_state = tx.update(jax.grad(loss)(whole), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    batch = NamedSharding(mesh, P(("fsdp",)))
    x = jax.ShapeDtypeStruct((BATCH, *example), jnp.float32)
    compiled = (
        jax.jit(step, in_shardings=(*places, batch), out_shardings=places)
        .lower(params, opt_state, x)
        .compile()
    )
    found = {kind: [] for kind in KINDS}
    for line in compiled.as_text().splitlines():
        if match := SENT.search(line):
            found[match[2]] += [
                math.prod(map(int, filter(None, shape.split(","))))
                for shape in re.findall(r"f32\[([\d,]*)\]", match[1])
            ]
    return found


def main():
    assert jax.device_count() == 8
    found = {}
    for fsdp, tensor in [(8, 1), (4, 2), (1, 8)]:
        mesh = Mesh(np.array(jax.devices()).reshape(fsdp, tensor), ("fsdp", "tensor"))
        for name, (shape, rule, example) in NETWORKS.items():
            dense = {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
            factorized = lrj.factorize(dense, [rule])
            found[f"{name}-{fsdp}x{tensor}"] = {
                "kernel": math.prod(shape),
                "factor": math.prod(factorized["kernel"].u.shape),
                "factored": sent(factorized, apply, example, mesh),
                "dense": sent(dense, apply_dense, example, mesh),
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
