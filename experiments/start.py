"""The finished run that a run starts from: its network, dense, where else a random one would be.

What the run had factorized is merged, and its batch statistics come along; its optimizer state does
not. What makes the network compute the same here as there has to agree: the model, and for a run of
the same task the data, and the protocol, which decides how images are normalised.

A run of another task gives the parts that both networks have (`begins_with` in `tasks/`), such as
the encoder of a language model to a classifier; the other parts are new. Then the vocabulary has to
agree, and the text may be another one.

Validation images select, so no step may have been taken on them, in the run before as little as in
this one. Which images are held out is a function of `validation` and `seed`: a run that holds any
out has to have both from its start. A start of a start is subject to the same rule. Of one and the
same text the same documents are held out in every run; whether two texts have documents in common
is not known here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from experiments import config_keys, merging, models, tasks
from experiments import state as states
from experiments.errors import RunError
from experiments.finished_run import FinishedRun
from experiments.result import Data
from experiments.state import Variables

_SAME = ("model.", "vocabulary_size")
"""Keys, and the beginning of keys, in which a run agrees with its start."""
_SAME_OF_A_TASK = (*_SAME, "protocol", "data.name")
_OF_ONE_RUN = ("model.name", "model.dropout")
"""Keys in which runs of two tasks may differ all the same."""


class Start(NamedTuple):
    """What a run begins with.

    Attributes:
      variables: the dense ones, in the memory of the host.
      trained: whether all of them are the run's that it starts from; then they are a network to be
        measured.
    """

    variables: Variables
    trained: bool


def load(config: ConfigDict, network: Any, data: Data | None = None) -> Start | None:
    """What the run that a config starts from gives it.

    Args:
      config: settled.
      network: the dense network of the config, see `experiments.state.plan`.
      data: what is trained on, to be compared with the run's; not given where nothing is trained.

    Returns:
      None if the config starts from no run.

    Raises:
      RunError: `start` is not a finished run, its state cannot be restored, or it does not agree
        with the config or the data.
    """
    if not config.start:
        return None
    run = FinishedRun.read(config.start)
    _require_agreement(run, config)
    if run.config.task == config.task:
        state = run.restore(run.plan(network), data or run.data)
        dense = Variables(merging.merged(run.config, state.params), state.model_state)
        return Start(jax.device_get(dense), trained=True)
    _require_text(run, data)
    state = run.restore(run.plan(tasks.network(run.config)), run.data)
    trained = merging.merged(run.config, state.params)
    new = states.dense_variables(network, config.seed)
    taken = {part: trained[part] for part in tasks.find(config).begins_with[run.config.task]}
    begun = new._replace(params={**new.params, **taken})
    return Start(jax.device_get(begun), trained=False)


def _require_agreement(run: FinishedRun, config: ConfigDict) -> None:
    begins_with = tasks.find(config).begins_with
    if run.config.task != config.task and run.config.task not in begins_with:
        fitting = " or ".join([config.task, *begins_with])
        raise RunError(
            f"{run.folder} cannot be the start of this run: task is {run.config.task!r} there and "
            f"{config.task!r} here, which starts from a run of {fitting}"
        )
    apart = config_keys.differences(run.config, config, ignore=())
    if run.config.task == config.task:
        found = [key for key in apart if key.startswith(_SAME_OF_A_TASK)]
    else:
        found = [key for key in apart if key.startswith(_SAME) and key not in _OF_ONE_RUN]
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


def _require_text(run: FinishedRun, data: Data | None) -> None:
    if data is None:
        return
    if data.name == run.data.name and data.fingerprint != run.data.fingerprint:
        raise RunError(
            f"{run.folder} cannot be the start of this run: {data.name} has changed since, and "
            "with it which documents are held out; what is tested here may have been trained on "
            "there"
        )
    if data.vocabulary != run.data.vocabulary:
        raise RunError(
            f"{run.folder} cannot be the start of this run: it was trained with the vocabulary "
            f"{run.data.vocabulary}, and its vocabulary file is {data.vocabulary}"
        )


def _network_fields(config: ConfigDict) -> Any:
    """What a kind makes of a model: with some, convolutions are separable."""
    return models.find(config.model.name).factorization(config.kind).fields
