"""Times a part of a network as training computes it: forward and backward, compiled.

    value and gradient of    sum(function(inputs, params, others) * direction)

with respect to ``inputs`` and ``params``, on random numbers, in the layout of the run. Contenders
that compute the same in different ways take turns (see `benchmark/alternation.py`), so that a
change of the machine's speed meets all of them. The first turns, which warm up, are not counted;
of the others the median is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.alternation import Say, Turn, alternate, timed
from experiments.state import Plan

_FEWEST_TURNS = 10
_SECONDS = 0.5  # For all turns, unless the fewest take longer.


class Contender(NamedTuple):
    """One way to compute something.

    Attributes:
      function: of inputs, params and others; gives arrays, of the same shapes as its rivals'.
      params: what there is a gradient of beside the inputs; as shapes, in trees.
      others: what there is none of; likewise.
    """

    function: Callable[[Any, Any, Any], Any]
    params: Any
    others: Any = None


def time_gradients(
    contenders: Mapping[str, Contender], inputs: Any, plan: Plan, say: Say
) -> dict[str, float]:
    """The median seconds of each contender, on the default device.

    Args:
      contenders: by name.
      inputs: of all of them, as shapes; those with four axes are images.
      plan: gives the layout.
      say: where a line goes when it takes long.
    """
    numbers = np.random.default_rng(0)
    first = next(iter(contenders.values()))
    outputs = jax.eval_shape(first.function, inputs, first.params, first.others)
    stored = jax.eval_shape(lambda *ends: _swapped(ends, plan), inputs, outputs)
    drawn, directions = _drawn(stored, numbers)

    def turn(contender: Contender) -> Turn:
        params, others = _drawn((contender.params, contender.others), numbers)
        arguments = (drawn, params, others, directions)
        run = jax.jit(gradients(contender.function, plan)).lower(*arguments).compile()
        return timed(lambda: jax.block_until_ready(run(*arguments)))

    turns = {name: turn(contender) for name, contender in contenders.items()}
    samples = alternate(turns, _FEWEST_TURNS, say, seconds=_SECONDS)
    return {name: samples.time(name).median for name in turns}


def gradients(function: Callable[[Any, Any, Any], Any], plan: Plan) -> Callable[..., Any]:
    """What is timed, a function of inputs, params, others and directions.

    Images among the inputs and directions are in the layout of the run. It returns the value of the
    module's formula and a list: the gradients of inputs and params, without those of whole numbers.
    """

    def projected(inputs: Any, params: Any, others: Any, directions: Any) -> jax.Array:
        outputs = function(_swapped(inputs, plan), params, others)
        products = jax.tree.map(lambda y, d: jnp.sum(y * d), outputs, _swapped(directions, plan))
        return sum(jax.tree.leaves(products), start=jnp.zeros(()))

    def step(*arguments: Any) -> tuple[jax.Array, list[jax.Array]]:
        gradient = jax.value_and_grad(projected, argnums=(0, 1), allow_int=True)
        value, found = gradient(*arguments)
        return value, [leaf for leaf in jax.tree.leaves(found) if leaf.dtype != jax.dtypes.float0]

    return plan.in_layout(step)


def _swapped(tree: Any, plan: Plan) -> Any:
    """Between the layouts: in the middle of a network, images are stored as they are used."""

    def swap(leaf: jax.Array) -> jax.Array:
        return jnp.transpose(leaf, (3, 1, 2, 0)) if leaf.ndim == 4 else leaf

    return jax.tree.map(swap, tree) if plan.batch_minor else tree


def _drawn(tree: Any, numbers: np.random.Generator) -> Any:
    """Normal numbers; keys; of whole numbers and truth values all 1. Nothing is compiled for it."""

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(0), leaf.shape)
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            normal = numbers.standard_normal(leaf.shape, np.float32)
            return jax.device_put(normal.astype(leaf.dtype))
        return jax.device_put(np.ones(leaf.shape, leaf.dtype))

    return jax.tree.map(draw, tree)
