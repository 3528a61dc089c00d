"""Rounds of one computation inside a compiled function: training steps, micro-batches.

They are a `lax.scan`, with one exception: XLA compiles the weight gradients of convolutions inside
a loop to code for CPUs that is many times slower than outside of one. Where there are such, the
rounds are written out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# As `lax.scan(body, carry, xs)`.
Loop = Callable[[Callable[[Any, jax.Array], tuple[Any, Any]], Any, jax.Array], tuple[Any, Any]]


def on_cpu() -> bool:
    """Whether compiled functions run on a CPU."""
    return jax.default_backend() == "cpu"


def written_out(
    body: Callable[[Any, jax.Array], tuple[Any, Any]], carry: Any, xs: jax.Array
) -> tuple[Any, Any]:
    """As `lax.scan(body, carry, xs)` for at least one round, one round after the other.

    Args:
      body: from carry and one of `xs` to the next carry and an output, both pytrees.
      carry: for the first round.
      xs: one entry per round, along the first axis.

    Returns:
      The last carry, and the outputs stacked along a new first axis.

    Example:
      >>> last, seen = written_out(lambda sum, x: (sum + x, sum), jnp.int32(0), jnp.arange(4))
      >>> int(last), seen.tolist()
      (6, [0, 0, 1, 3])
    """
    outputs = []
    for x in xs:
        carry, output = body(carry, x)
        outputs.append(output)
    return carry, jax.tree.map(lambda *values: jnp.stack(values), *outputs)
