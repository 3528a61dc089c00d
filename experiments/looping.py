"""Rounds of one computation inside a compiled function: training steps, micro-batches.

On accelerators they are a `lax.scan`; on a CPU they are written out, because XLA compiles the
weight gradients of convolutions inside a loop to code that is many times slower than outside of
one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def on_cpu() -> bool:
    """Whether compiled functions run on a CPU."""
    return jax.default_backend() == "cpu"


def repeat(
    body: Callable[[Any, jax.Array], tuple[Any, Any]], carry: Any, xs: jax.Array
) -> tuple[Any, Any]:
    """As `lax.scan(body, carry, xs)`, for at least one round.

    Args:
      body: from carry and one of `xs` to the next carry and an output, both pytrees.
      carry: for the first round.
      xs: one entry per round, along the first axis.

    Returns:
      The last carry, and the outputs stacked along a new first axis.

    Example:
      >>> last, seen = repeat(lambda total, x: (total + x, total), jnp.int32(0), jnp.arange(4))
      >>> int(last), seen.tolist()
      (6, [0, 0, 1, 3])
    """
    if not on_cpu():
        return jax.lax.scan(body, carry, xs)
    outputs = []
    for x in xs:
        carry, output = body(carry, x)
        outputs.append(output)
    return carry, jax.tree.map(lambda *values: jnp.stack(values), *outputs)
