"""A trained network against its merged twin: both must give the same logits for the test images.

    max |factored - merged|  <=  1e-4  max |factored|,      in float32, whatever a run computes in

The merged network has, in place of every factorized weight, the dense kernel that it stands for. It
is what is deployed after overcomplete training, and the two may differ by rounding alone. A network
with norms between its factors has no such twin.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

import lowrank_jax as lrj
from experiments import config_keys, recipe, tally
from experiments import feed as feeds
from experiments import mesh as meshes
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
      factored, merged: the scores of the two forms; None where there is no merged one.
      logit_difference: the largest difference of two logits, as a share of the largest logit; None
        likewise.
      tolerance: how large that may be.
    """

    examples: int
    factored: Scores
    merged: Scores | None
    logit_difference: float | None
    tolerance: float


def merged(config: ConfigDict, params: Any) -> Any:
    """The dense kernels that the factors of a trained network stand for.

    Raises:
      RunError: there are norms between the factors.
    """
    if not config_keys.can_be_merged(config):
        raise RunError(
            "with factor_norm=True there are norms between the factors: the network cannot be "
            "merged into dense kernels"
        )
    return lrj.merge(params)


def compare(config: ConfigDict, task: Any, params: Any, model_state: Any) -> Comparison:
    """Applies a network to the whole test set, as it is and, where it can be, merged.

    Args:
      config: settled.
      task: has ``network``, ``splits``, ``evaluate`` and ``logits``, see `experiments.tasks`.
      params, model_state: of the trained network, arrays.

    Raises:
      RunError: the logits differ by more than `TOLERANCE`.
    """
    # In bfloat16, rounding would hide what is compared.
    in_float32 = dataclasses.replace(task, network=task.network.in_float32)
    measure, logits_of = jax.jit(in_float32.evaluate), jax.jit(in_float32.logits)
    forms = {"factored": params}
    if config_keys.can_be_merged(config):
        forms["merged"] = merged(config, params)
    # Accelerators multiply in lower precision unless told otherwise; the two forms would differ.
    sums: dict[str, list[Any]] = {form: [] for form in forms}
    apart = largest = 0.0
    feed = feeds.of(task, _mesh_of(params))
    with jax.default_matmul_precision("highest"), contextlib.closing(feed):
        for part in feed.held_out("test"):
            for form, of_form in forms.items():
                sums[form].append(jax.device_get(measure(of_form, model_state, part)))
            if "merged" not in forms:
                continue
            factored, merged_ones = (
                np.asarray(logits_of(of_form, model_state, part)) for of_form in forms.values()
            )
            # Of what is not a number the largest is none either, whatever the order.
            apart = float(np.maximum(apart, np.max(np.abs(factored - merged_ones))))
            largest = float(np.maximum(largest, np.max(np.abs(factored))))
    difference = None
    if "merged" in forms:
        difference = apart / largest if largest else apart
        if not difference <= TOLERANCE:
            raise RunError(
                f"factored and merged logits differ by {difference:.2e} of the largest logit, more "
                f"than {TOLERANCE:.0e}"
            )
    scores = {
        form: _scores(tally.added(sums[form]), recipe.counted_parameters(config, of_form))
        for form, of_form in forms.items()
    }
    return Comparison(
        examples=sum(int(part["count"]) for part in sums["factored"]),
        factored=scores["factored"],
        merged=scores.get("merged"),
        logit_difference=difference,
        tolerance=TOLERANCE,
    )


def _mesh_of(params: Any) -> Mesh:
    """The devices that the parameters are on; one of this process where they are on the host."""
    for leaf in jax.tree.leaves(params):
        place = getattr(leaf, "sharding", None)
        if isinstance(place, NamedSharding) and isinstance(place.mesh, Mesh):
            return place.mesh
    return Mesh(np.asarray(jax.local_devices()[:1]).reshape(1, 1, 1), meshes.AXES)


def _scores(sums: dict[str, Any], parameters: int) -> Scores:
    found = tally.means(sums)
    return Scores(accuracy=found["accuracy"], loss=found["loss"], parameters=parameters)
