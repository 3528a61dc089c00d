"""What stands in the manifest of an exported network: which one it is, and what it expects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.data import image_set


def description(
    config: ConfigDict, task: Any, accuracy: float, commit: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What a model is and what it expects, as plain data for the manifest of an export.

    Args:
      config: of the run, settled.
      task: of the run, see `experiments.tasks`.
      accuracy: on the test images, a fraction.
      commit: of the source tree that trained it, see `experiments.result.commit`.
    """
    return {
        "run": config.name,
        "seed": config.seed,
        "commit": commit,
        "model": config.model.to_dict(),
        "kind": config.kind,
        "classes": image_set(config.data.name).num_classes,
        "data": {"name": task.data.name, "fingerprint": task.data.fingerprint},
        "images": {
            "size": task.pipeline.size,
            "mean": [float(mean) for mean in task.pipeline.mean],
            "std": [float(std) for std in task.pipeline.std],
        },
        "test_accuracy": accuracy,
    }
