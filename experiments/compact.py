"""The compact network that an overcomplete one was trained for: its factors merged, and saved.

Wide and deep factors train a dense network, and what is deployed has the parameters of that one
alone. It is written at the end of a run with `merge`, after a comparison with the factors on the
whole test set: no logit may differ by more than 1e-4 of the largest.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import lowrank_jax as lrj
from experiments import files, merging
from experiments.errors import RunError
from experiments.model_description import description
from experiments.result import Compact
from experiments.state import Variables

FILE_NAME = "compact.safetensors"


def require_writer() -> None:
    """Raises RunError where what writes the file is not installed: before training, not after."""
    if importlib.util.find_spec("safetensors") is None:
        raise RunError("merge=True needs safetensors: pip install safetensors, or merge=False")


def save(
    folder: Path,
    config: ConfigDict,
    task: Any,
    network: Variables,
    commit: Mapping[str, Any] | None,
) -> Compact:
    """Writes the merged network of a trained state to a run folder.

    Args:
      folder: of the run.
      config: settled.
      task: with the test images, see `experiments.tasks`.
      network: trained.
      commit: of the source tree, for the file's manifest.

    Raises:
      RunError: it cannot be written, or its logits are not those of the factors.
    """
    tree = {"params": merging.merged(config, network.params), **network.model_state}
    found = merging.compare(config, task, network.params, network.model_state)
    assert found.merged is not None and found.logit_difference is not None
    path = folder / FILE_NAME
    with files.writing(path):
        measured = {"split": "test", "accuracy": found.merged.accuracy}
        lrj.export.save(path, tree, description(config, task, measured, commit))
    return Compact(
        parameters=found.merged.parameters,
        accuracy=found.merged.accuracy,
        loss=found.merged.loss,
        logit_difference=found.logit_difference,
        file=FILE_NAME,
    )
