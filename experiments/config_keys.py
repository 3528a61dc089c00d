"""What the keys of a config mean: which of them decide what a run computes.

A config is read in two forms, the `ml_collections.ConfigDict` of a run and the dict in its
`config.json`, and is compared with others as {dotted key: value}. What a key accepts is said in
`accepted_values.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

# Keys that say where things are on a host.
OF_A_HOST = (
    "data.source",
    "data.download",
    "data.dir",
    "data.tfds_dir",
    "data_workers",
    "compilation_cache",
)

# Keys that say where and how a run is carried out, not what it computes. Two runs that differ in
# nothing else are the same experiment.
OPERATIONAL = (
    "name",
    "workdir",
    *OF_A_HOST,
    "eval_batch_size",
    "steps_per_dispatch",
    "layout",
    "forms",
    "remat",
    "profile_steps",
    "checkpoint_every_epochs",
    "keep_checkpoints",
    "diagnostics_every",
    "diagnostics_share",
    "record_norms",
    "merge",
    "expected_accuracy",
    "mesh",
)

# The keys of which one says how large the network becomes; all at 0 keep it dense.
SIZES = ("rank_scale", "ratio", "energy")

# The words of `kind` for networks in which convolutions are separable, and factors tensors.
TENSOR_KINDS = ("tensor_train", "tucker")

# The words of `method` for networks that begin dense and become low rank while they are trained.
SELECTING = ("pufferfish", "cuttlefish")

# The keys that change nothing where there are no factors.
FACTOR_KEYS = ("init", "variant", "overcomplete", "decay", "factor_norm")

# Keys that came later, with the values that mean what was done before: a config.json that does not
# have them is read as if it did.
ADDED_LATER: dict[str, Any] = {
    "precision": "float32",
    "accumulate_steps": 1,
    "layout": "as_written",
    "forms": "count",
    "remat": False,
    "compilation_cache": "",
    "profile_steps": (),
    "method": "factorize",
    "ratio": 0.0,
    "energy": 0.0,
    "kind": "conv",
    "augment.cutout": 0,
    "start": "",
    "replay": "",
    "record_norms": False,
    "merge": False,
    "diagnostics_every": 100,
    "diagnostics_share": 0.03,
    "optimizer": "sgd",
    "nesterov": False,
    "clip_norm": 0.0,
    "schedule": "milestones",
    "warmup_steps": 1,
    "steps": 0,
    "frobenius_decay": 0.0,
    "decay_position": "coupled",
    "products.init": "none",
    "products.decay": "none",
    "decay_vectors": True,
    "warmup": "constant",
    "factor_norm": False,
    "selection.epoch": 0,
    "selection.preset": "cifar",
    "selection.window": 0,
    "selection.tail": 0,
    "selection.threshold": 0.0,
    "selection.metric": "scaled_stable",
    "selection.minimum_fraction": 0.0,
    "selection.fraction": 0.25,
    "selection.multiple_of": 1,
    "selection.kept": "profile",
    "selection.speed_up": 1.5,
    "selection.moments": "reset",
    "selection.rewarmup_epochs": 0,
    "selection.recalibration_batches": 0,
    "batch_norm_parts": 1,
    "mesh": "data:-1",
    "data_workers": 0,
}

# Keys that there were once, and that changed nothing that is computed: not read.
REMOVED = frozenset({"diagnostics_every_epochs", "mesh.data", "mesh.fsdp", "mesh.tensor"})


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """A nested config, or the dict read from a `config.json`, as {dotted key: value}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            # JSON has no tuples; a config and its own config.json must compare equal.
            flat[f"{prefix}{key}"] = tuple(value) if isinstance(value, list) else value
    return flat


def complete(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """A whole config flattened, with the keys that there were not yet when it was written, and
    without those that are gone."""
    flat = ADDED_LATER | flatten(config)
    return {key: value for key, value in flat.items() if key not in REMOVED}


def begins_with_factors(flat: Mapping[str, Any] | ConfigDict) -> bool:
    """Whether kernels are stored as factors from the beginning of a run, by a config."""
    return flat["method"] == "factorize" and any(flat[key] for key in SIZES)


def has_factors(flat: Mapping[str, Any] | ConfigDict) -> bool:
    """Whether kernels are stored as factors at the end of a run at the latest, by a config."""
    return begins_with_factors(flat) or selects_ranks(flat)


def selects_ranks(flat: Mapping[str, Any] | ConfigDict) -> bool:
    """Whether a run begins dense and chooses ranks while it trains, by a config."""
    return flat["method"] in SELECTING


def can_be_merged(flat: Mapping[str, Any] | ConfigDict) -> bool:
    """Whether the dense kernels that factors stand for are all that there is of them, by a config:
    with a norm between two factors they are not."""
    return not (flat["factor_norm"] and has_factors(flat))


def usual_head_scale(flat: Mapping[str, Any] | ConfigDict) -> float:
    """The share of the full head size that attention has where a config does not say it: it is as
    small as the rest."""
    return flat["rank_scale"] if 0 < flat["rank_scale"] < 1 else 1.0


def experiment(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """The keys with their values that decide what is computed, flattened and in order.

    Two runs for which they are the same are the same experiment: keys that say how a run is carried
    out are left out, those of factors where there are none, and those of the selection of ranks
    where ranks are given.
    """
    flat = complete(config)
    idle = {*OPERATIONAL} | (set() if has_factors(flat) else {*FACTOR_KEYS})
    if not selects_ranks(flat):
        idle |= {key for key in flat if key.startswith("selection.")}
    return {key: flat[key] for key in sorted(flat.keys() - idle)}


def differences(
    one: Mapping[str, Any] | ConfigDict,
    other: Mapping[str, Any] | ConfigDict,
    ignore: Iterable[str] = OPERATIONAL,
) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configs differ: {dotted key: (value in one, value in other)}.

    A key that only one of them has counts as None in the other.
    """
    a, b = complete(one), complete(other)
    keys = sorted((a.keys() | b.keys()) - set(ignore))
    return {key: (a.get(key), b.get(key)) for key in keys if _place(key, a) != _place(key, b)}


def _place(key: str, config: Mapping[str, Any]) -> Any:
    """A value to compare; the folders of other runs are the same however they are written."""
    value = config.get(key)
    return Path(value).resolve() if key in ("start", "replay") and value else value
