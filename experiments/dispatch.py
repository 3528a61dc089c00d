"""Dispatches: several training steps in one call into the device.

An epoch is cut at fixed places, whether a run was interrupted or not, so that the same compiled
function computes the same step every time. How the steps of a dispatch are looped is told in
``looping.py``, how a step takes its batch in parts in ``accumulation.py``.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from experiments import mesh as meshes
from experiments import state as states
from experiments.accumulation import mean_gradient, micro_batch_size
from experiments.looping import Loop, on_cpu, written_out
from experiments.state import Plan, TrainState

_MOST_STEPS = 16
_MULTIPLY_ADDS_PER_DISPATCH = 3 * 10**11  # Seconds on a few cores.


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """Consecutive steps that run in one call.

    Attributes:
      first: the step within the epoch at which it begins.
      steps: how many.
      batch_size: of each of them.
      example: where in the epoch's order the first batch begins.
    """

    first: int
    steps: int
    batch_size: int
    example: int


def dispatches(batch_sizes: list[int], limit: int) -> list[Dispatch]:
    """Cuts an epoch into dispatches of equal batch sizes, at most ``limit`` steps each.

    The largest equal cut is preferred if it is at least half the limit: each distinct length is
    compiled once.

    >>> [d.steps for d in dispatches([128] * 39, 16)]
    [13, 13, 13]
    >>> [(d.steps, d.batch_size) for d in dispatches([8, 8, 8, 8, 8, 3], 2)]
    [(2, 8), (2, 8), (1, 8), (1, 3)]
    """
    full = sum(1 for size in batch_sizes if size == batch_sizes[0])
    limit = min(limit, full)
    even = next((k for k in range(limit, limit // 2, -1) if full % k == 0), limit)
    cuts = [(first, min(even, full - first)) for first in range(0, full, even)]
    cuts += [(first, 1) for first in range(full, len(batch_sizes))]
    return [
        Dispatch(first, steps, batch_sizes[first], sum(batch_sizes[:first]))
        for first, steps in cuts
    ]


def loop_of(plan: Plan) -> Loop:
    """How the steps of a dispatch, and the micro-batches of a step, are looped."""
    return written_out if on_cpu() and not plan.batch_minor else jax.lax.scan


def default_steps(plan: Plan) -> int:
    """The default: sixteen where steps are scanned, one where they would be written out.

    On a CPU, where a step may take seconds, fewer if a dispatch would be very long: a run can only
    be stopped between two.
    """
    if loop_of(plan) is not jax.lax.scan:
        return 1
    if not on_cpu():
        return _MOST_STEPS
    # The backward pass costs about twice the forward pass.
    of_step = 3 * plan.multiply_adds * plan.config.batch_size
    return max(1, min(_MOST_STEPS, _MULTIPLY_ADDS_PER_DISPATCH // of_step))


def dispatch_function(task: Any, plan: Plan, steps: int, batch_size: int) -> Any:
    """Several steps of one batch size as one jitted function; the state is donated.

    Raises:
      RunError: the batch cannot be split into ``accumulate_steps`` micro-batches.
    """
    parts = plan.config.accumulate_steps
    part_size = micro_batch_size(batch_size, parts)
    everywhere = meshes.replicated(plan.mesh)
    part_place = meshes.batch_sharding(plan.mesh, part_size)
    state_places = states.shardings(plan)
    loop = loop_of(plan)

    @functools.partial(
        jax.jit,
        in_shardings=(state_places, everywhere, everywhere, everywhere, everywhere),
        out_shardings=(state_places, everywhere),
        donate_argnums=0,
    )
    def run(
        state: TrainState, arrays: Any, order: jax.Array, epoch: jax.Array, example: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def step(state: TrainState, start: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
            def gradient(model_state: Any, start: jax.Array) -> tuple[Any, tuple[Any, Any]]:
                indices = jax.lax.dynamic_slice_in_dim(order, start, part_size)
                batch = task.batch(arrays, indices, epoch)
                batch = jax.lax.with_sharding_constraint(batch, part_place)
                differentiated = plan.in_layout(jax.value_and_grad(task.loss, has_aux=True))
                (_, (model_state, sums)), grads = differentiated(state.params, model_state, batch)
                return model_state, (grads, sums)

            starts = start + part_size * jnp.arange(parts, dtype=jnp.int32)
            model_state, grads, sums = mean_gradient(gradient, state.model_state, starts, loop)
            updates, opt_state = plan.tx.update(grads, state.opt_state, state.params)
            params = jax.tree.map(lambda p, u: p + u, state.params, updates)
            return TrainState(state.step + 1, params, model_state, opt_state), sums

        starts = example + batch_size * jnp.arange(steps, dtype=jnp.int32)
        return loop(step, state, starts)

    return run
