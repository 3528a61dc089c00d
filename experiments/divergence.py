"""NaN and infinity: which leaves of the state hold them, and the error that says when and where."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from experiments import processes
from experiments.errors import RunError
from experiments.state import TrainState
from lowrank_jax.norm_replay import raise_if_vanished
from lowrank_jax.tree import path_string


def not_finite(state: TrainState | Any) -> list[str]:
    """Paths of the leaves that hold NaN or infinity: of a whole state, parameters first, or of any
    other tree. Each process looks at what it holds, and only the answers are gathered."""
    whole = isinstance(state, TrainState)
    leaves = [
        (path_string(path), leaf)
        for part in ([state.params, state.model_state, state.opt_state] if whole else [state])
        for path, leaf in jax.tree_util.tree_leaves_with_path(part)
    ]
    spoiled = processes.anywhere(np.array([not _finite_here(leaf) for _, leaf in leaves]))
    return [path for (path, _), bad in zip(leaves, spoiled, strict=True) if bad]


def _finite_here(leaf: Any) -> bool:
    """Whether the parts of an array that this process holds are finite; of a part that lies on
    several devices one copy counts."""
    if not isinstance(leaf, jax.Array):
        return bool(np.isfinite(leaf).all())
    parts = [part.data for part in leaf.addressable_shards if part.replica_id == 0]
    return all(bool(np.isfinite(np.asarray(part)).all()) for part in parts)


def diverged(
    state: TrainState, step: int, losses: np.ndarray, batches: int, saved: int | None
) -> RunError:
    """The error for a loss or a state that is not finite.

    Args:
      state: after the dispatch.
      step: steps done before it.
      losses: of its steps; if all are finite, it is the last step that spoiled the state.
      batches: steps in an epoch.
      saved: the step of the latest checkpoint.
    """
    try:
        raise_if_vanished(state.opt_state)
    except ValueError as error:
        return RunError(
            f"norms cannot be replayed: {error}. The checkpoint of step {saved} is intact"
        )
    finite = np.isfinite(losses)
    what, index = ("state", len(losses) - 1) if finite.all() else ("loss", int(np.argmin(finite)))
    at = step + index + 1
    bad = not_finite(state)
    where = f"; not finite: {', '.join(bad[:3])}" + (f" and {len(bad) - 3} more" if bad[3:] else "")
    return RunError(
        f"the {what} is not finite at step {at} (epoch {(at - 1) // batches + 1})"
        f"{where if bad else ''}. The checkpoint of step {saved} is intact; a lower learning_rate "
        "is the first thing to try"
    )
