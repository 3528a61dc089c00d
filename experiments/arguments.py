"""The vocabulary of the configs: typed arguments, and a config that is whole and consistent.

A config is one `ml_collections.ConfigDict` whose keys are defined, with their types, in
`configs/base.py`. It is refined twice: by the argument behind the config's file name,

    --config=configs/cifar_resnet.py:depth=20,rank_scale=0.111,data=fashion_small

(`apply`, called by the config file), and by flags of the form `--config.epochs=3` (parsed by
`ml_collections.config_flags`). Since the flags come last, `settle` looks at the outcome as a whole:
it checks every value and fills in the ones that follow from the protocol.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.accepted_values import check
from experiments.config_keys import (
    ADDED_LATER,
    REMOVED,
    SIZES,
    TENSOR_KINDS,
    can_be_merged,
    flatten,
    has_factors,
    selects_ranks,
    usual_head_scale,
)
from experiments.errors import RunError
from lowrank_jax.rank_selection import PRESETS

Preset = Callable[[ConfigDict], None]


def apply(
    config: ConfigDict,
    text: str | None,
    presets: Mapping[str, Preset | Mapping[str, Preset]] | None = None,
) -> ConfigDict:
    """Refines `config` in place by an argument such as 'depth=32,decay=frobenius', and returns it.

    A name is the dotted path of a key ('data.dir'), or its last part where that is unique
    ('depth'), or a group, which stands for its name ('data' for 'data.name'). The default of a key
    fixes its type. Presets are named refinements: one of its own ('runlocal', 'runlocal=True') or
    one of several ('model=vgg19'). They come before the other arguments, in their own order,
    wherever they stand, so that an explicit argument always wins. One of `SIZES` takes the place of
    whichever the config has.

    Raises:
      RunError: for an unknown or ambiguous name, a name given twice, or a value of the wrong type.

    Example:
      >>> config = apply(ConfigDict({'epochs': 200, 'data': {'name': 'cifar10'}}), 'data=digits')
      >>> config.data.name, config.epochs
      ('digits', 200)
    """
    presets = presets or {}
    names = _names(config)
    values: dict[str, str] = {}
    # What has a colon and no name of its own goes on with the value before it: a mesh has commas.
    for part in filter(None, map(str.strip, re.split(r",(?!\s*\w+:-?\d+\s*(?:,|$))", text or ""))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name in presets:
            key = name
        elif name not in names:
            raise RunError(_unknown(name, [*names, *presets]))
        elif len(names[name]) > 1:
            raise RunError(
                f"config argument {name!r} is ambiguous: write one of {', '.join(names[name])}"
            )
        else:
            key = names[name][0]
        if key in values:
            raise RunError(f"config argument {name!r} is given twice in {text!r}")
        if not equals:
            switch = callable(presets[key]) if key in presets else _is_switch(config, key)
            if not switch:
                raise RunError(f"config argument {name!r} has no value: write {name}=VALUE")
            value = "True"
        values[key] = value
    for name, preset in presets.items():
        if name not in values:
            continue
        value = values.pop(name)
        if not callable(preset):
            if value not in preset:
                raise RunError(f"{name}={value!r}: expected one of {', '.join(preset)}")
            preset[value](config)
        elif _parse(name, value, bool):
            preset(config)
    if len([key for key in values if key in SIZES]) == 1:
        # The one that is asked for takes the place of the one that the config has by default.
        config.update({key: 0.0 for key in SIZES if key in config})
    for key, value in values.items():
        group, _, last = key.rpartition(".")
        owner = config[group] if group else config
        owner[last] = check(key, _parse(key, value, owner.get_type(last)))
    return config


def settle(config: ConfigDict) -> ConfigDict:
    """A copy of `config` that is whole and consistent: what a run computes from and writes down.

    Checks every value against its choices and bounds, and fills in the keys left at None:
    `validation` (0.1 under protocol=ours, 0 under published), `warmup_epochs` (1 for a ResNet of
    depth 56 or more, otherwise 0) and `model.head_scale` (see `usual_head_scale`);
    `steps_per_dispatch` stays open, since the device decides. Settling a settled config changes
    nothing.

    Raises:
      RunError: names the key, the value found and what is accepted.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for key in REMOVED & flatten(config).keys():
            group, _, last = key.rpartition(".")
            owner = config[group] if group else config
            del owner[last]
            if group and not owner:
                del config[group]
        for key in ADDED_LATER.keys() - flatten(config).keys():
            group, _, last = key.rpartition(".")
            if group == "augment" and group not in config:
                continue  # What is not made of images has no such keys.
            if group and group not in config:
                config[group] = ConfigDict()
            (config[group] if group else config)[last] = ADDED_LATER[key]
    published = config.protocol == "published"
    if config.get("validation", 0.0) is None:
        config.validation = 0.0 if published else 0.1
    if config.warmup_epochs is None:
        config.warmup_epochs = int(
            config.model.name == "resnet" and config.model.get("depth", 0) >= 56
        )
    if config.model.get("head_scale", 1.0) is None:
        config.model.head_scale = usual_head_scale(config)
    if config.selection.minimum_fraction is None:
        of_preset = PRESETS.get(config.selection.preset, {})
        config.selection.minimum_fraction = of_preset.get("minimum_fraction", 0.0)
    for key, value in flatten(config).items():
        check(key, value)
    if published and config.get("validation"):
        raise RunError(
            f"validation={config.validation:g} with protocol=published: the published protocol "
            "trains on the whole training set; leave validation out or use protocol=ours"
        )
    _settle_size(config)
    _settle_norms(config)
    if selects_ranks(config):
        _settle_selection(config)
    return config


def _settle_size(config: ConfigDict) -> None:
    """Raises RunError where the keys that say how large the network becomes contradict."""
    sizes = {key: config[key] for key in SIZES if config[key]}
    given = " and ".join(f"{key}={value:g}" for key, value in sizes.items())
    if len(sizes) > 1:
        raise RunError(f"{given}: one says how large the network becomes; set the others to 0")
    if config.energy and not config.start:
        raise RunError(
            f"{given}: singular values are worth something in a trained network only; name one "
            "by start=RUN"
        )
    if config.ratio and config.model.get("head_scale", 1.0) != 1:
        raise RunError(
            f"{given} with model.head_scale={config.model.head_scale:g}: a ratio is reached by "
            "ranks alone; give head_scale=1, or a rank_scale"
        )
    if config.method == "prune" and config.kind in TENSOR_KINDS:
        raise RunError(f"method=prune with kind={config.kind}: what is pruned is convolutions")
    if config.method == "prune" and not config.ratio:
        raise RunError(f"method=prune with {given or 'ratio=0'}: give the ratio to prune to")
    if sizes and not config.rank_scale and config.kind in TENSOR_KINDS:
        raise RunError(f"{given} with kind={config.kind}: its ranks come from a rank_scale")
    if config.kind in TENSOR_KINDS and config.init not in ("spectral", "regular"):
        raise RunError(
            f"init={config.init} with kind={config.kind}: tensors start at spectral or regular"
        )
    if config.kind in TENSOR_KINDS and config.overcomplete != "complement":
        raise RunError(
            f"overcomplete={config.overcomplete} with kind={config.kind}: tensors are never padded"
        )
    if selects_ranks(config) and sizes:
        raise RunError(
            f"method={config.method} with {given}: ranks are selected in training; leave it out"
        )
    factorized = has_factors(config)
    if config.start and factorized and not config.init.startswith("spectral"):
        raise RunError(
            f"init={config.init} with start={config.start}: the trained kernels would be thrown "
            "away; init=spectral keeps the best of them"
        )
    if config.variant != "flat" and (not factorized or config.kind in TENSOR_KINDS):
        raise RunError(
            f"variant={config.variant} with {given or 'rank_scale=0'}, method={config.method}, "
            f"kind={config.kind}: only factorized matrices and convolutions have a factor in the "
            "middle (rank_scale=1 is the published deep network)"
        )


def _settle_selection(config: ConfigDict) -> None:
    """Fills in the epoch of the switch; raises RunError where it could not be carried out."""
    method, chosen = f"method={config.method}", config.selection
    if config.steps:
        raise RunError(f"{method} with steps={config.steps}: it counts in epochs; give epochs")
    if not chosen.epoch:
        share = 80 / 300 if config.method == "pufferfish" else 1 / 2
        chosen.epoch = max(1, int(share * config.epochs))
    if chosen.epoch >= config.epochs:
        raise RunError(
            f"{method} with selection.epoch={chosen.epoch} and epochs={config.epochs}: nothing "
            "would be left to train at low rank"
        )
    if config.kind in TENSOR_KINDS:
        raise RunError(f"{method} with kind={config.kind}: it selects ranks of matrices")
    if config.method == "pufferfish" and chosen.kept == "profile":
        raise RunError(
            f"{method} with selection.kept=profile: it times nothing; give published, none, or a "
            "pattern"
        )
    if config.start and config.method == "cuttlefish":
        raise RunError(
            f"{method} with start={config.start}: its ranks are relative to those of a random "
            "network; begin with one"
        )
    if (config.init, config.variant) != ("spectral", "flat"):
        raise RunError(
            f"{method} with init={config.init} and variant={config.variant}: trained kernels "
            "become their two factors, init=spectral and variant=flat"
        )


def _settle_norms(config: ConfigDict) -> None:
    """Raises RunError where what is asked of factors is asked where there are none."""
    if not can_be_merged(config):
        if config.decay == "frobenius":
            raise RunError(
                "factor_norm=True with decay=frobenius: with a norm between the factors their "
                "product means nothing; give decay=plain, or factor_norm=False"
            )
        if config.merge:
            raise RunError(
                "factor_norm=True with merge=True: factors with a norm between cannot be merged"
            )
    for key in ("replay", "record_norms"):
        if config[key] and selects_ranks(config):
            raise RunError(f"{key}={config[key]} with method={config.method}: the run begins dense")
    for key in ("replay", "record_norms", "merge"):
        if config[key] and not has_factors(config):
            sizes = ", ".join(f"{size}={config[size]:g}" for size in SIZES)
            raise RunError(
                f"{key}={config[key]} with method={config.method}, {sizes}: nothing is factorized"
            )
    if config.replay and config.kind in TENSOR_KINDS:
        raise RunError(f"replay={config.replay} with kind={config.kind}: two factors are rescaled")


def _names(config: ConfigDict) -> dict[str, list[str]]:
    """Every name an argument may have, with the dotted keys it could mean."""
    keys = list(flatten(config))
    names: dict[str, list[str]] = {}
    for key in keys:
        names.setdefault(key.rpartition(".")[2], []).append(key)
    names |= {group: [f"{group}.name"] for group in config if f"{group}.name" in keys}
    return names | {key: [key] for key in keys}  # a full path means itself


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    short = sorted({key for key in known if "." not in key})
    return f"unknown config argument {name!r}{hint}; known are {', '.join(short)}"


def _parse(key: str, text: str, kind: type) -> Any:
    """The value of type `kind` that `text` stands for."""
    if kind is bool:
        words = {"true": True, "1": True, "false": False, "0": False}
        if text.lower() in words:
            return words[text.lower()]
        raise RunError(f"config argument {key}={text!r}: expected True or False")
    if kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            expected = "a whole number" if kind is int else "a number"
            raise RunError(f"config argument {key}={text!r}: expected {expected}") from None
        return number
    if kind is str:
        return text
    raise RunError(
        f"config argument {key!r} takes a {kind.__name__}: write --config.{key}=... instead"
    )


def _is_switch(config: ConfigDict, key: str) -> bool:
    return isinstance(flatten(config)[key], bool)
