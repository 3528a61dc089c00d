"""Measuring a network on a held-out split: batch by batch, every example counted once.

A batch is split over the devices of a run as one of training is. It is made so large that each gets
as many examples; what fills it up is not counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.data.example_order import padded_evaluation_indices, shareable_batch


@dataclasses.dataclass(frozen=True)
class Place:
    """Where batches of a held-out split are measured.

    Attributes:
      parts: into which a batch is split.
      put: from a tree of arrays whose first axis counts examples to the same on the devices.
    """

    parts: int
    put: Callable[[Any], Any]


ONE_DEVICE = Place(1, lambda batch: batch)


def over_batches(
    measure: Callable[[jax.Array, jax.Array], Any],
    examples: int,
    size: int,
    place: Place = ONE_DEVICE,
) -> Any:
    """What `measure` makes of each batch of a split, stacked.

    Args:
      measure: gets the numbers of the examples of a batch, int32 ``(size,)``, and which of them are
        there, bool ``(size,)``: the last batch may be filled up.
      examples: of the split.
      size: of a batch; with several devices it may be a few more.
      place: of the batches.
    """
    indices, valid = padded_evaluation_indices(examples, shareable_batch(size, place.parts))
    return jax.lax.map(
        lambda batch: measure(*place.put(batch)), (jnp.asarray(indices), jnp.asarray(valid))
    )


def totals(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Sums over a split from those of its batches."""
    return {name: jnp.sum(values) for name, values in sums.items()}


def cross_entropy_sums(
    logits: jax.Array, targets: jax.Array, counted: jax.Array
) -> dict[str, jax.Array]:
    """What a batch contributes: summed ``loss`` (in nats), ``correct`` and ``count``.

    Args:
      logits: ``(..., classes)``.
      targets: integers ``(...)``.
      counted: bool ``(...)``; the others count for nothing.

    >>> sums = cross_entropy_sums(jnp.zeros((2, 4)), jnp.array([0, 1]), jnp.array([True, False]))
    >>> float(sums["loss"]), int(sums["correct"]), int(sums["count"])
    (1.3862943649291992, 1, 1)
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return {
        "loss": jnp.sum(jnp.where(counted, losses, 0.0)),
        "correct": jnp.sum(counted & (jnp.argmax(logits, axis=-1) == targets)),
        "count": jnp.sum(counted),
    }
