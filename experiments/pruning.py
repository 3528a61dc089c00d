"""Gradual magnitude pruning: the baseline that low rank is compared with at the same budget.

    s_t = s_f + (s_i - s_f) (1 - (t - t0) / (t1 - t0))^3,    s_i = 0,    t0 <= t <= t1

After step t the share s_t of all entries of the prunable kernels is zero: those that were smallest
in magnitude, compared across all these kernels at once. An entry that is zero by this stays zero.
Source: Zhu and Gupta, "To prune, or not to prune" (2017, arXiv 1710.01878), section 3, with one
threshold for the network, since its budget is one, where theirs is one for each layer.

The count is of nonzero parameters alone. Neither masks nor the indices that a sparse format would
store are counted, and a step takes the time and memory of the dense network's, plus the masks.

JaxPruner (arXiv 2304.14082) has this method too, but is not on the package index, so that a package
that is installed from there cannot depend on it: hence this small transform.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.errors import RunError
from lowrank_jax.tree import near_misses, path_string

_MOST_MASK_UPDATES = 40  # Each costs 64 passes over the kernels.
_BITS = np.uint32(1) << np.arange(31, -1, -1, dtype=np.uint32)  # The highest first.


@dataclasses.dataclass(frozen=True)
class PruningSchedule:
    """When entries go; steps are counted from 1, so that t of them are done after step t.

    Attributes:
      begin_step: t0, up to which nothing is pruned.
      end_step: t1, from which on the masks stay as they are.
      every: steps from one update of the masks to the next; the last one is at `end_step`.

    Raises:
      RunError: unless 0 <= begin_step < end_step and every >= 1.
    """

    begin_step: int
    end_step: int
    every: int

    def __post_init__(self) -> None:
        if not (0 <= self.begin_step < self.end_step and self.every >= 1):
            raise RunError(f"{self}: expected 0 <= begin_step < end_step and every >= 1")

    @classmethod
    def of_run(cls, total_steps: int) -> PruningSchedule:
        """From the first step to half of the run, in at most 40 updates of the masks.

        Half is where the published recipe lowers its learning rate for the first time: what is left
        can make up for what goes at the large rate, and the small ones train a network whose zeros
        are settled.

        >>> PruningSchedule.of_run(total_steps=800)
        PruningSchedule(begin_step=0, end_step=400, every=10)
        """
        end = max(1, total_steps // 2)
        return cls(begin_step=0, end_step=end, every=math.ceil(end / _MOST_MASK_UPDATES))

    @property
    def mask_steps(self) -> tuple[int, ...]:
        """The steps that end with new masks.

        >>> PruningSchedule(begin_step=0, end_step=5, every=2).mask_steps
        (2, 4, 5)
        """
        return *range(self.begin_step + self.every, self.end_step, self.every), self.end_step

    def share(self, step: int) -> float:
        """s_t / s_f: how much of the final sparsity there is after a step, from 0 to 1."""
        passed = (step - self.begin_step) / (self.end_step - self.begin_step)
        return 1 - (1 - min(max(passed, 0.0), 1.0)) ** 3


class PruningState(NamedTuple):
    """Steps done, and for each prunable kernel, in the order of the tree, which entries stay."""

    count: jax.Array  # type: ignore[assignment]
    masks: tuple[jax.Array, ...]


def magnitude_pruning(
    pattern: str, ratio: float, schedule: PruningSchedule
) -> optax.GradientTransformation:
    """Sets the smallest entries to zero, more of them as training goes on.

    The last transform of a chain: it judges the parameters as the final updates make them, and
    turns the updates of pruned entries into what takes these to exactly zero. All other updates are
    passed on unchanged. Of equal magnitudes the first in the tree stay, so that the counts are
    exact. One threshold may leave a kernel without any entry; NaN counts as large, so that it is
    seen.

    Args:
      pattern: a regular expression for the whole paths of the prunable kernels.
      ratio: nonzero parameters at the end, as a share of all; see `kept_entries`.
      schedule: when.

    Raises:
      RunError: at `init`, if the pattern matches nothing or the ratio cannot be reached.
      ValueError: at `update`, without the parameters.

    Source: Zhu and Gupta 2017 (arXiv 1710.01878), section 3.

    >>> schedule = PruningSchedule(begin_step=0, end_step=1, every=1)
    >>> tx = optax.chain(optax.sgd(1.0), magnitude_pruning("kernel", 0.5, schedule))
    >>> params = {"kernel": jnp.array([[4.0, -3.0], [2.0, 0.5]])}
    >>> gradient = {"kernel": jnp.array([[3.0, 0.0], [0.0, 0.0]])}
    >>> updates, _ = tx.update(gradient, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"].tolist()
    [[0.0, -3.0], [2.0, 0.0]]
    """

    def init(params: Any) -> PruningState:
        kept_entries(params, pattern, ratio)  # For its errors: the earlier the better.
        masks = (jnp.ones(kernel.shape, bool) for kernel in prunable(params, pattern).values())
        return PruningState(jnp.zeros([], jnp.int32), tuple(masks))

    def update(updates: Any, state: PruningState, params: Any = None) -> tuple[Any, PruningState]:
        if params is None:
            raise ValueError("magnitude_pruning needs params: update(updates, state, params)")
        kernels, changes = prunable(params, pattern), prunable(updates, pattern)
        # The counts come from the host: float32 would miss them beyond 2^24 entries.
        size, kept = _size(kernels), kept_entries(params, pattern, ratio)
        numbers = [size - round(schedule.share(t) * (size - kept)) for t in schedule.mask_steps]
        count = optax.safe_increment(state.count)
        due = jnp.asarray(schedule.mask_steps) == count

        def renewed() -> tuple[jax.Array, ...]:
            entries = [kernels[path] + changes[path] for path in kernels]
            return _largest(entries, state.masks, jnp.sum(jnp.where(due, jnp.asarray(numbers), 0)))

        masks = jax.lax.cond(jnp.any(due), renewed, lambda: state.masks)
        mask_of = dict(zip(kernels, masks, strict=True))

        def visit(key_path: Any, change: Any, parameter: Any) -> Any:
            mask = mask_of.get(path_string(key_path))
            return change if mask is None else jnp.where(mask, change, -parameter)

        updates = jax.tree_util.tree_map_with_path(visit, updates, params)
        return updates, PruningState(count, masks)

    return optax.GradientTransformation(init, update)


def prunable(params: Any, pattern: str) -> dict[str, Any]:
    """The leaves that may lose entries, by path: arrays, or shapes in an abstract tree.

    Raises:
      RunError: the pattern matches no path.
    """
    leaves = {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    found = {path: leaf for path, leaf in leaves.items() if re.fullmatch(pattern, path)}
    if not found:
        near = near_misses(pattern, leaves)
        raise RunError(f"nothing to prune: {pattern!r} matches no path; {near}")
    return found


def kept_entries(params: Any, pattern: str, ratio: float) -> int:
    """How many entries of the prunable kernels stay, for a share of the whole network to stay.

    Args:
      params: the parameters, arrays or `ShapeDtypeStruct`; all of them count, norms and head too.
      pattern: of the paths of the prunable kernels; everything else stays.
      ratio: nonzero parameters as a share of all; round(ratio * all) of them stay.

    Raises:
      RunError: the ratio is not between 0 and 1, or leaves no entry to the prunable kernels; the
        pattern matches nothing.

    >>> params = {"kernel": jax.ShapeDtypeStruct((8, 10), "float32"), "bias": jnp.zeros(20)}
    >>> kept_entries(params, "kernel", 0.25)
    5
    """
    total = _size(params)
    rest = total - _size(prunable(params, pattern))
    kept = round(ratio * total) - rest if 0 < ratio < 1 else 0
    if kept < 1:
        smallest = math.ceil((rest + 1) / total * 1e6) / 1e6
        raise RunError(
            f"ratio={ratio} cannot be reached by pruning: expected a share below 1 and at least "
            f"{smallest:g}, because {rest:,} of the {total:,} parameters are never pruned"
        )
    return kept


def nonzero_parameters(params: Any, pattern: str) -> int:
    """What is really left: the nonzero entries of prunable kernels, and all of everything else.

    Fewer than the budget where an entry that was kept happens to be zero.

    Raises:
      RunError: the pattern matches no path.

    >>> nonzero_parameters({"kernel": jnp.array([0.0, 2.0, 0.0]), "bias": jnp.zeros(4)}, "kernel")
    5
    """
    kernels = prunable(params, pattern)
    nonzero = sum(int(jnp.count_nonzero(kernel)) for kernel in kernels.values())
    return _size(params) - _size(kernels) + nonzero


def _size(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _largest(
    entries: Sequence[jax.Array], masks: Sequence[jax.Array], number: jax.Array
) -> tuple[jax.Array, ...]:
    """Masks of the `number` largest magnitudes among the entries that the masks keep now.

    Magnitudes are compared in float32.
    """
    keys = [_key(x, mask) for x, mask in zip(entries, masks, strict=True)]
    threshold = _kth_largest(keys, number)
    # Of the entries at the threshold the first ones, as many as are missing: again a k-th largest,
    # of keys that fall from the first entry of the tree to the last.
    missing = number - _count(key > threshold for key in keys)
    turns, left = [], _size(keys)
    for key in keys:
        position = jnp.arange(key.size, dtype=jnp.uint32).reshape(key.shape)
        turns.append(jnp.where(key == threshold, jnp.uint32(left) - position, jnp.uint32(0)))
        left -= key.size
    turn = _kth_largest(turns, missing)
    return tuple((key > threshold) | (at >= turn) for key, at in zip(keys, turns, strict=True))


def _key(entries: jax.Array, mask: jax.Array) -> jax.Array:
    """Integers in the order of the magnitudes, from 1; 0 for what is pruned already.

    The bits of a float without its sign, read as an integer, are in the order of the floats.
    """
    bits = jax.lax.bitcast_convert_type(jnp.abs(entries).astype(jnp.float32), jnp.uint32)
    return jnp.where(mask, bits + 1, jnp.uint32(0))


def _kth_largest(keys: Sequence[jax.Array], k: jax.Array) -> jax.Array:
    """The k-th largest of all keys, bit by bit: the largest number that k keys reach.

    No sorting, and no copy that joins the kernels: they may be sharded, each in its way.
    """

    def with_bit(found: jax.Array, bit: jax.Array) -> tuple[jax.Array, None]:
        reached = _count(key >= found | bit for key in keys) >= k
        return jnp.where(reached, found | bit, found), None

    return jax.lax.scan(with_bit, jnp.uint32(0), jnp.asarray(_BITS))[0]


def _count(conditions: Iterable[jax.Array]) -> jax.Array:
    counts = [jnp.sum(condition, dtype=jnp.int32) for condition in conditions]
    return jnp.sum(jnp.stack(counts), dtype=jnp.int32)
