"""Times one application of a factorized weight in its two forms, factored and composed.

Timed is what training does with it: the product and the gradients of its input and of its factors,
compiled, in the layout of the run. The forms take turns, so that a change of the machine's speed
meets both; of each form's times the median counts.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.form_cache import Seconds
from experiments.state import Plan
from lowrank_jax.applications import Application

_LEAST_ROUNDS, _MOST_ROUNDS = 10, 100
_SECONDS = 0.5  # No further round after that long, if the least number is done.


def time_forms(application: Application, plan: Plan) -> Seconds:
    """The median times of both forms, on random numbers on the default device.

    Args:
      application: has both forms.
      plan: gives the layout.
    """
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.random.normal(next(keys), leaf.shape, leaf.dtype)

    def swapped(image: jax.Array) -> jax.Array:
        """Between the layouts: in the middle of a network, images are stored as they are used."""
        minor = plan.batch_minor and image.ndim == 4
        return jnp.transpose(image, (3, 1, 2, 0)) if minor else image

    x, weight = draw(application.inputs), jax.tree.map(draw, application.weight)
    shape = jax.eval_shape(functools.partial(application.apply, compose=True), x, weight)
    arguments = jax.jit(swapped)(x), weight, jax.jit(swapped)(draw(shape))

    def compiled(compose: bool) -> Callable[..., Any]:
        def projected(x: Any, weight: Any, direction: Any) -> jax.Array:
            return jnp.sum(application.apply(swapped(x), weight, compose) * swapped(direction))

        step = plan.in_layout(jax.value_and_grad(projected, argnums=(0, 1)))
        return jax.jit(step).lower(*arguments).compile()

    forms = [compiled(compose) for compose in (False, True)]
    for run in forms:  # The first call of each is not counted.
        jax.block_until_ready(run(*arguments))
    times: tuple[list[float], list[float]] = ([], [])
    began = time.perf_counter()
    for done in range(_MOST_ROUNDS):
        if done >= _LEAST_ROUNDS and time.perf_counter() - began > _SECONDS:
            break
        order = (0, 1) if done % 2 == 0 else (1, 0)
        for form in order:
            started = time.perf_counter()
            jax.block_until_ready(forms[form](*arguments))
            times[form].append(time.perf_counter() - started)
    return Seconds(*map(statistics.median, times))
