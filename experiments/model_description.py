"""What stands in the manifest of an exported network: which one it is, and what it expects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.tasks.task import Task


def description(
    config: ConfigDict,
    task: Task,
    measured: Mapping[str, Any],
    commit: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What a model is and what it expects, as plain data for the manifest of an export.

    Args:
      config: of the run, settled.
      task: of the run, see `experiments.tasks`.
      measured: what it was found to do, with the split.
      commit: of the source tree that trained it, see `experiments.result.commit`.
    """
    return {
        "run": config.name,
        "seed": config.seed,
        "commit": commit,
        "model": config.model.to_dict(),
        "kind": config.kind,
        "data": {"name": task.data.name, "fingerprint": task.data.fingerprint},
        **task.description(),
        "measured": dict(measured),
    }
