"""The finished run that a run starts from: its network, dense, where else a random one would be.

What the run had factorized is merged, and its batch statistics come along; its optimizer state does
not. What makes the network compute the same here as there has to agree: the model, the data, and
the protocol, which decides how images are normalised.

Validation images select, so no step may have been taken on them, in the run before as little as in
this one. Which images are held out is a function of `validation` and `seed`: a run that holds any
out has to have both from its start. A start of a start is subject to the same rule.
"""

from __future__ import annotations

from typing import Any

import jax
from ml_collections import ConfigDict

import lowrank_jax as lrj
from experiments import config_keys, models
from experiments.errors import RunError
from experiments.finished_run import FinishedRun
from experiments.result import Data
from experiments.state import Variables

_SAME = ("task", "protocol", "data.name", "model.")
"""Keys, and the beginning of keys, in which a run agrees with its start."""


def load(config: ConfigDict, network: Any, data: Data | None = None) -> Variables | None:
    """The dense variables of the run that a config starts from, in the memory of the host.

    Args:
      config: settled.
      network: the dense network of the config, see `experiments.state.plan`.
      data: what is trained on, to be compared with the run's; not given where nothing is trained.

    Returns:
      The variables as NumPy arrays; None if the config starts from no run.

    Raises:
      RunError: `start` is not a finished run, its state cannot be restored, or it does not agree
        with the config or the data.
    """
    if not config.start:
        return None
    run = FinishedRun.read(config.start)
    _require_agreement(run, config)
    state = run.restore(run.plan(network), data or run.data)
    return jax.device_get(Variables(lrj.merge(state.params), state.model_state))


def _require_agreement(run: FinishedRun, config: ConfigDict) -> None:
    apart = config_keys.differences(run.config, config, ignore=())
    found = [key for key in apart if key.startswith(_SAME)]
    if "kind" in apart and _network_fields(run.config) != _network_fields(config):
        found.append("kind")
    if found:
        words = [f"{key} is {apart[key][0]!r} there and {apart[key][1]!r} here" for key in found]
        raise RunError(f"{run.folder} cannot be the start of this run: {'; '.join(words)}")
    if config.get("validation") and not apart.keys().isdisjoint({"validation", "seed"}):
        raise RunError(
            f"validation={config.validation:g} and seed={config.seed} hold out images that "
            f"{run.folder}, the start, was trained on: it has validation={run.config.validation:g} "
            f"and seed={run.config.seed}. Take both from it, or give validation=0"
        )


def _network_fields(config: ConfigDict) -> Any:
    """What a kind makes of a model: with some, convolutions are separable."""
    return models.find(config.model.name).factorization(config.kind).fields
