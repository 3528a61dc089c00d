"""In which order examples are taken: shuffled anew in each epoch, in order where they are measured.

With `key = jax.random.key(seed)`, epoch `e` visits `n` examples in the order
`permutation(fold_in(fold_in(key, 0xDA7A), e), n)`; a last partial batch is left out in training.
It is a function of seed and epoch alone, so a run that is resumed goes on where it was.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_ORDER_STREAM = 0xDA7A


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Number of full batches in an epoch.

    Raises `ValueError` if there is none.
    """
    if not 0 < batch_size <= n:
        raise ValueError(f"batch size {batch_size} with {n} training examples: expected 1 to {n}")
    return n // batch_size


@functools.partial(jax.jit, static_argnames="n")
def epoch_permutation(seed: int | jax.Array, epoch: int | jax.Array, n: int) -> jax.Array:
    """The order of the examples in an epoch: int32 `(n,)`."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _ORDER_STREAM), epoch)
    return jax.random.permutation(key, n)


@functools.partial(jax.jit, static_argnames="batch_size")
def permutation_batch(permutation: jax.Array, i: int | jax.Array, batch_size: int) -> jax.Array:
    """The `i`-th full batch of an epoch's permutation: int32 `(batch_size,)`.

    The permutation is computed once per epoch; this is what the steps of a `lax.scan` do with it.
    `i` must be below `len(permutation) // batch_size`.
    """
    return jax.lax.dynamic_slice_in_dim(permutation, i * batch_size, batch_size)


@functools.partial(jax.jit, static_argnames=("n", "batch_size"))
def batch_indices(
    seed: int | jax.Array, step: int | jax.Array, n: int, batch_size: int
) -> jax.Array:
    """The examples of training step `step`, counted from 0 over all epochs: int32 `(batch_size,)`.

    A pure function of the seed and the step. It computes a whole permutation, so a loop should
    rather use `epoch_permutation` and `permutation_batch`, with the same result.
    """
    epoch, i = jnp.divmod(step, steps_per_epoch(n, batch_size))
    return permutation_batch(epoch_permutation(seed, epoch, n), i, batch_size)


def shareable_batch(size: int, parts: int) -> int:
    """The size of a batch to be measured: so many examples, or a few more, so that each of its
    parts has as many.

    >>> shareable_batch(500, 8), shareable_batch(512, 8)
    (504, 512)
    """
    return size + -size % parts


def padded_evaluation_indices(n: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """All examples in order, in batches of one size: every example is valid exactly once.

    Returns:
      int32 `(batches, batch_size)` indices, padded with 0 at the end, and bool
      `(batches, batch_size)`, False on the padding.

    >>> padded_evaluation_indices(3, 2)[1].tolist()
    [[True, True], [True, False]]
    """
    batches = -(-n // batch_size)
    flat = np.arange(batches * batch_size, dtype=np.int32)
    valid = flat < n
    shape = (batches, batch_size)
    return np.where(valid, flat, 0).astype(np.int32).reshape(shape), valid.reshape(shape)
