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
from experiments import recipe, tally
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
      task: has ``network``, ``splits``, ``evaluate`` and ``logits``, see `experiments.tasks`.
      params, model_state: of the trained network, arrays.

    Raises:
      RunError: the logits differ by more than `TOLERANCE`.
    """
    split = jax.device_put(task.splits["test"])
    # In bfloat16, rounding would hide what is compared.
    in_float32 = dataclasses.replace(task, network=task.network.in_float32)
    measure, logits_of = jax.jit(in_float32.evaluate), jax.jit(in_float32.logits)
    merged_params = lrj.merge(params)
    # Accelerators multiply in lower precision unless told otherwise; the two forms would differ.
    with jax.default_matmul_precision("highest"):
        factored = measure(params, model_state, split)
        merged = measure(merged_params, model_state, split)
        logits, others = (
            np.asarray(logits_of(form, model_state, split)) for form in (params, merged_params)
        )
    difference = float(np.max(np.abs(logits - others)))
    if largest := float(np.max(np.abs(logits))):
        difference /= largest
    if not difference <= TOLERANCE:
        raise RunError(
            f"factored and merged logits differ by {difference:.2e} of the largest logit, more "
            f"than {TOLERANCE:.0e}"
        )
    return Comparison(
        examples=int(factored["count"]),
        factored=_scores(factored, recipe.counted_parameters(config, params)),
        merged=_scores(merged, recipe.counted_parameters(config, merged_params)),
        logit_difference=difference,
        tolerance=TOLERANCE,
    )


def _scores(sums: dict[str, jax.Array], parameters: int) -> Scores:
    found = tally.means(sums)
    return Scores(accuracy=found["accuracy"], loss=found["loss"], parameters=parameters)
