"""Gradient accumulation: a batch taken in equal micro-batches, one after the other.

With n micro-batches the gradient of a step is

    (1 / n) * sum_i  grad(mean loss over micro-batch i)

which is the gradient of the mean over the whole batch wherever an example's loss depends on that
example alone. Batch norm breaks this: each micro-batch is normalized by its own statistics, and the
running statistics are updated n times a step, in order. So the number of micro-batches is a part
of the experiment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.errors import RunError
from experiments.looping import Loop


def micro_batch_size(batch_size: int, accumulate_steps: int) -> int:
    """Examples per micro-batch.

    Raises:
      RunError: the batch cannot be split evenly.

    Example:
      >>> micro_batch_size(128, 4)
      32
    """
    if batch_size % accumulate_steps:
        raise RunError(
            f"accumulate_steps={accumulate_steps} does not divide a batch of {batch_size} "
            "examples: choose a divisor of batch_size (under protocol=published of the last, "
            "partial batch of an epoch as well)"
        )
    return batch_size // accumulate_steps


def mean_gradient(
    gradient: Callable[[Any, jax.Array], tuple[Any, tuple[Any, Any]]],
    model_state: Any,
    micro_batches: jax.Array,
    loop: Loop,
) -> tuple[Any, Any, Any]:
    """The gradient of one step, as the mean over its micro-batches.

    Args:
      gradient: from the model state and one of `micro_batches` to the new model state and a pair:
        the gradient of the mean loss over that micro-batch, and sums of metrics over it.
      model_state: before the step; goes from micro-batch to micro-batch.
      micro_batches: what tells them apart, one entry each along the first axis.
      loop: `lax.scan`, or what does the same.

    Returns:
      The model state after the last micro-batch, the mean of the gradients, and the sums added up.
    """
    count = len(micro_batches)
    if count == 1:
        model_state, (grads, sums) = gradient(model_state, micro_batches[0])
        return model_state, grads, sums

    def add(carry: tuple[Any, Any], micro_batch: jax.Array) -> tuple[tuple[Any, Any], None]:
        model_state, totals = carry
        model_state, added = gradient(model_state, micro_batch)
        return (model_state, jax.tree.map(jnp.add, totals, added)), None

    _, shapes = jax.eval_shape(gradient, model_state, micro_batches[0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (model_state, (grads, sums)), _ = loop(add, (model_state, zeros), micro_batches)
    return model_state, jax.tree.map(lambda total: total / count, grads), sums
