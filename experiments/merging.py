"""A trained network against its merged twin: both must give the same logits for the test images.

    max |factored - merged|  <=  1e-4  max |factored|,      in float32, whatever a run computes in

The merged network has, in place of every factorized weight, the dense kernel that it stands for. It
is what is deployed after overcomplete training, and the two may differ by rounding alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import lowrank_jax as lrj
from experiments import recipe
from experiments.errors import RunError

TOLERANCE = 1e-4
"""Largest accepted difference of two logits, as a share of the largest logit."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """One form of a network on the test images: accuracy, mean loss, and how many parameters."""

    accuracy: float
    loss: float
    parameters: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A network as it was trained and merged.

    Attributes:
      examples: how many test images there are.
      factored, merged: the scores of the two forms.
      logit_difference: the largest difference of two logits, as a share of the largest logit.
      tolerance: how large that may be.
    """

    examples: int
    factored: Scores
    merged: Scores
    logit_difference: float
    tolerance: float


def compare(config: ConfigDict, task: Any, params: Any, model_state: Any) -> Comparison:
    """Applies a network to the whole test set, as it is and merged.

    Args:
      config: settled.
      task: has ``network``, ``splits`` and ``evaluate``, see `experiments.tasks`.
      params, model_state: of the trained network, arrays.

    Raises:
      RunError: the logits differ by more than `TOLERANCE`.
    """
    split = jax.device_put(task.splits["test"])
    # In bfloat16, rounding would hide what is compared.
    measure = jax.jit(dataclasses.replace(task, network=task.network.in_float32).evaluate)
    merged_params = lrj.merge(params)
    # Accelerators multiply in lower precision unless told otherwise; the two forms would differ.
    with jax.default_matmul_precision("highest"):
        factored = measure(params, model_state, split)
        merged = measure(merged_params, model_state, split)
    logits, others = np.asarray(factored["logits"]), np.asarray(merged["logits"])
    difference = float(np.max(np.abs(logits - others)))
    if largest := float(np.max(np.abs(logits))):
        difference /= largest
    if not difference <= TOLERANCE:
        raise RunError(
            f"factored and merged logits differ by {difference:.2e} of the largest logit, more "
            f"than {TOLERANCE:.0e}"
        )
    count = len(task.splits["test"][1])
    return Comparison(
        examples=count,
        factored=_scores(factored, count, recipe.counted_parameters(config, params)),
        merged=_scores(merged, count, recipe.counted_parameters(config, merged_params)),
        logit_difference=difference,
        tolerance=TOLERANCE,
    )


def _scores(sums: dict[str, jax.Array], count: int, parameters: int) -> Scores:
    return Scores(
        accuracy=int(sums["correct"]) / count,
        loss=float(sums["loss"]) / count,
        parameters=parameters,
    )
