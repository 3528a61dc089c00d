"""Translates rows of source tokens by a trained Transformer and beam search.

The encoder runs once per batch, then one target per live hypothesis and round: keys and values of
earlier targets and of the source are kept. Rows are sorted by their length, so that those of a
batch take about as long as each other, and padded to a power of two, so that few programs are
compiled: one for each padded length. Padding changes no translation (published decoding avoids it
instead, by batches of one length).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.decoding.beam_search import beam_search
from experiments.models.transformer import Transformer
from experiments.special_tokens import PAD

_SHORTEST = 8  # No program is compiled for sources shorter than this.


def translate(
    model: Transformer,
    variables: Mapping[str, Any],
    source: np.ndarray,
    *,
    beam: int = 5,
    length_penalty: float = 1.0,
    longest: int = 200,
    batch_size: int = 128,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """The best target row for each source row.

    The defaults are the published ones.

    Args:
      model: any `Transformer`, lifted where its kernels are factorized.
      variables: of it, with `params`.
      source: token ids `(rows, source length)`, `EOS` and then `PAD` behind the last. A row of
        nothing but `EOS` is an empty sentence.
      beam, length_penalty: see `beam_search`.
      longest: most tokens of a translation before its `EOS`; `EOS` included, it has no more than
        the model has positions.
      batch_size: rows that are decoded at once.
      progress: called after each batch with the number of rows done.

    Returns:
      Token ids `(rows, length)`, int32, with `EOS` and then `PAD` behind the last; the longest row
      has no padding.

    Raises:
      ValueError: a source is longer than the model has positions, or a limit or a size is too
        small.
    """
    source = np.asarray(source)
    lengths = np.count_nonzero(source != PAD, axis=1)
    if lengths.max(initial=0) > model.max_length:
        row = int(lengths.argmax())
        raise ValueError(
            f"source row {row} has {lengths[row]} tokens, but the model has positions for "
            f"{model.max_length} only: leave longer sentences out"
        )
    if batch_size < 1 or longest < 1:
        raise ValueError(f"batch_size={batch_size}, longest={longest}: expected 1 or more")
    most = min(longest + 1, model.max_length)
    targets = np.full((len(source), most), PAD, np.int32)
    done = 0
    for chosen, padded in _batches(lengths, batch_size, model.max_length):
        rows = np.full((len(chosen), padded), PAD, np.int32)
        width = min(padded, source.shape[1])
        rows[:, :width] = source[chosen, :width]
        found = _translate(
            variables,
            rows,
            np.full(len(chosen), most),
            model=model,
            beam=beam,
            length_penalty=length_penalty,
            max_length=most,
        )
        found = np.asarray(found)[:, : targets.shape[1]]
        targets[chosen, : found.shape[1]] = found
        done = min(done + len(chosen), len(source))
        if progress is not None:
            progress(done)
    return targets[:, : np.count_nonzero(targets != PAD, axis=1).max(initial=0)]


def _batches(lengths: np.ndarray, size: int, positions: int) -> Iterator[tuple[np.ndarray, int]]:
    """The rows of each batch by number, and the length to which they are padded.

    All have `size` rows, or as many as there are at all: the last one repeats its longest.
    """
    order = np.argsort(lengths, kind="stable")
    size = min(size, len(order))
    for begin in range(0, len(order), size or 1):
        chosen = order[begin : begin + size]
        chosen = np.pad(chosen, (0, size - len(chosen)), mode="edge")
        yield chosen, _rounded_up(int(lengths[chosen[-1]]), positions)


def _rounded_up(length: int, positions: int) -> int:
    """The next power of two that is not below `_SHORTEST`, but no more than there are positions."""
    return min(max(_SHORTEST, 1 << (length - 1).bit_length()), positions)


@partial(jax.jit, static_argnames=("model", "beam", "length_penalty", "max_length"))
def _translate(
    variables: Mapping[str, Any],
    source: jax.Array,
    longest: jax.Array,
    *,
    model: Transformer,
    beam: int,
    length_penalty: float,
    max_length: int,
) -> jax.Array:
    """The best rows `(batch, max_length)` of a batch."""
    memory = model.apply(variables, source, False, method="encode")
    # The tokens do not matter: this makes the collections.
    _, kept = model.apply(
        variables,
        jnp.zeros((len(source), max_length), jnp.int32),
        memory,
        source,
        False,
        cached=True,
        method="decode",
        mutable=["cache", "memory"],
    )
    by_hypothesis = partial(jnp.repeat, repeats=beam, axis=0)
    kept = jax.tree.map(lambda leaf: by_hypothesis(leaf) if leaf.ndim else leaf, kept)
    source = by_hypothesis(source)

    # The memory is not part of the state: it is the same for all hypotheses of a sentence.
    def step(tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        logits, changed = model.apply(
            {**variables, "memory": kept["memory"], "cache": cache},
            tokens[:, None],
            None,
            source,
            False,
            cached=True,
            method="decode",
            mutable=["cache"],
        )
        return jax.nn.log_softmax(logits[:, 0]), changed["cache"]

    found = beam_search(
        step,
        kept["cache"],
        longest,
        beam=beam,
        max_length=max_length,
        length_penalty=length_penalty,
    )
    return found.tokens[:, 0]
