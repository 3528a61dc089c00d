"""Dispatches: several training steps in one call into the device.

An epoch is cut at fixed places, whether a run was interrupted or not, so that the same compiled
function computes the same step every time. How the steps of a dispatch are looped is told in
``looping.py``, how a step takes its batch in parts in ``accumulation.py``.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments import mesh as meshes
from experiments import state as states
from experiments.accumulation import mean_gradient, micro_batch_size
from experiments.looping import Loop, on_cpu, written_out
from experiments.state import Plan, TrainState
from experiments.tasks.task import Batch, Task
from experiments.windows import dispatch_places
from lowrank_jax.sharding import gathered_over

_MOST_STEPS = 16
_MOST_BYTES = 2**28  # Of images that are sent to the devices for a dispatch.
_MULTIPLY_ADDS_PER_DISPATCH = 3 * 10**11  # Seconds on a few cores.
_NOISE_STREAM = 0x0D20  # Keeps these keys apart from those of the order and the augmentation.


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """Consecutive steps that run in one call.

    Attributes:
      first: the step within the epoch at which it begins.
      steps: how many.
      batch: the shape of the batch of each of them.
      example: where in the epoch's order the first batch begins.
    """

    first: int
    steps: int
    batch: Batch
    example: int


def dispatches(batches: Sequence[Batch], limit: int) -> list[Dispatch]:
    """Cuts an epoch into dispatches of equal batches, at most ``limit`` steps each.

    Of equal batches in a row the largest equal cut is preferred, if it is at least half the limit:
    each distinct length is compiled once.

    >>> [d.steps for d in dispatches([Batch(128)] * 39, 16)]
    [13, 13, 13]
    >>> [(d.steps, d.batch.size) for d in dispatches([Batch(8)] * 5 + [Batch(3)], 2)]
    [(2, 8), (2, 8), (1, 8), (1, 3)]
    """
    cuts: list[Dispatch] = []
    first = example = 0
    for batch, run in itertools.groupby(batches):
        length = len(list(run))
        most = min(limit, length)
        even = next((k for k in range(most, most // 2, -1) if length % k == 0), most)
        for begin in range(0, length, even):
            steps = min(even, length - begin)
            cuts.append(Dispatch(first, steps, batch, example))
            first, example = first + steps, example + steps * batch.size
    return cuts


def loop_of(plan: Plan) -> Loop:
    """How the steps of a dispatch, and the micro-batches of a step, are looped."""
    return written_out if on_cpu() and not plan.batch_minor else jax.lax.scan


def default_steps(plan: Plan, batches: Sequence[Batch], bytes_per_example: int = 0) -> int:
    """The default: sixteen where steps are scanned, one where they would be written out, or where
    batches of several shapes take turns, of which few are in a row.

    On a CPU, where a step may take seconds, fewer if a dispatch would be very long: a run can only
    be stopped between two. Fewer as well where the batches of sixteen steps, which are sent to the
    devices together if they are not there, would be large.
    """
    if loop_of(plan) is not jax.lax.scan or len(set(batches)) > 1:
        return 1
    most = _MOST_STEPS
    if bytes_per_example:
        most = min(most, _MOST_BYTES // (bytes_per_example * plan.config.batch_size))
    if on_cpu():
        # The backward pass costs about twice the forward pass.
        of_step = 3 * plan.multiply_adds * plan.config.batch_size
        most = min(most, _MULTIPLY_ADDS_PER_DISPATCH // of_step)
    return max(1, most)


def dispatch_function(task: Task, plan: Plan, steps: int, batch: Batch) -> Any:
    """Several steps on batches of one shape as one jitted function; the state is donated.

    Raises:
      RunError: the batch cannot be split into ``accumulate_steps`` micro-batches.
    """
    parts = plan.config.accumulate_steps
    part = dataclasses.replace(batch, size=micro_batch_size(batch.size, parts))
    everywhere = meshes.replicated(plan.mesh)
    part_place = meshes.batch_sharding(plan.mesh, part.size)
    array_places = dispatch_places(task.splits, plan.mesh, part.size)
    state_places = states.shardings(plan)
    whole = gathered_over("fsdp", state_places.params)
    loop = loop_of(plan)

    @functools.partial(
        jax.jit,
        in_shardings=(state_places, array_places, everywhere, everywhere, everywhere),
        out_shardings=(state_places, everywhere),
        donate_argnums=0,
    )
    def run(
        state: TrainState, arrays: Any, order: jax.Array, epoch: jax.Array, example: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def step(state: TrainState, start: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
            params = jax.lax.with_sharding_constraint(state.params, whole)

            def gradient(model_state: Any, start: jax.Array) -> tuple[Any, tuple[Any, Any]]:
                indices = jax.lax.dynamic_slice_in_dim(order, start, part.size)
                inputs = task.batch(arrays, indices, epoch, part)
                inputs = jax.lax.with_sharding_constraint(inputs, part_place)
                noise = _noise_key(plan.config.seed, epoch, start)
                differentiated = plan.in_layout(jax.value_and_grad(task.loss, has_aux=True))
                (_, (model_state, sums)), grads = differentiated(params, model_state, inputs, noise)
                return model_state, (grads, sums)

            starts = start + part.size * jnp.arange(parts, dtype=jnp.int32)
            model_state, grads, sums = mean_gradient(gradient, state.model_state, starts, loop)
            updates, opt_state = plan.tx.update(grads, state.opt_state, state.params)
            params = jax.tree.map(lambda p, u: p + u, state.params, updates)
            return TrainState(state.step + 1, params, model_state, opt_state), sums

        starts = example + batch.size * jnp.arange(steps, dtype=jnp.int32)
        return loop(step, state, starts)

    return run


def _noise_key(seed: int, epoch: jax.Array, start: jax.Array) -> jax.Array:
    """The key of what is random inside the network, for the batch that begins at `start` of the
    order of an epoch."""
    key = jax.random.fold_in(jax.random.key(seed), _NOISE_STREAM)
    return jax.random.fold_in(jax.random.fold_in(key, epoch), start)
