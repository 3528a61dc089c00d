"""The vocabulary of the configs: typed arguments, and the values each key accepts.

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
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.config_keys import (
    ADDED_LATER,
    REMOVED,
    SIZES,
    TENSOR_KINDS,
    flatten,
    has_factors,
    usual_head_scale,
)
from experiments.errors import RunError

# The words a key accepts. `data.name` and `model.name` are checked where those are looked up.
CHOICES: dict[str, tuple[str, ...]] = {
    "protocol": ("ours", "published"),
    "method": ("factorize", "prune"),
    "kind": ("conv", "linear", "projections", "tensor_train", "tucker"),
    "precision": ("float32", "bfloat16"),
    "variant": ("flat", "deep"),
    "init": ("spectral", "regular", "variance_matched", "spectral_ones"),
    "layout": ("auto", "batch_minor", "as_written"),
    "forms": ("measure", "count"),
    "overcomplete": ("complement", "zero"),
    "decay": ("none", "plain", "frobenius", "crs"),
    "optimizer": ("sgd", "adam", "lamb"),
    "schedule": ("milestones", "inverse_sqrt", "linear"),
    "decay_position": ("coupled", "decoupled", "published"),
    "products.init": ("none", "qk", "ov", "qk_ov"),
    "products.decay": ("none", "qk", "ov", "qk_ov"),
    "data.source": ("auto", "tfds", "files", "embedded"),
    "data.download": ("auto", "never"),
}

# Bounds as (test, words); a value that fails its test is refused with the words.
_BOUNDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": (lambda v: 0 <= v < 2**31, "a whole number from 0 to 2147483647"),
    "model.width": (lambda v: v > 0, "a positive number"),
    "rank_scale": (lambda v: v >= 0, "0 (the dense network) or a positive number"),
    "ratio": (lambda v: 0 <= v < 1, "0 (the dense network) or a share of its parameters below 1"),
    "energy": (lambda v: 0 <= v <= 1, "0 or a share of the squared singular values, at most 1"),
    "weight_decay": (lambda v: v >= 0, "0 or a positive number"),
    "frobenius_decay": (lambda v: v >= 0, "0 (as weight_decay) or a positive number"),
    "clip_norm": (lambda v: v >= 0, "0 (no clipping) or a positive number"),
    "steps": (lambda v: v >= 0, "0 (as epochs says) or a positive whole number"),
    "warmup_steps": (lambda v: v >= 1, "a whole number, at least 1"),
    "validation": (lambda v: 0 <= v < 1, "a fraction of the training set: 0 <= validation < 1"),
    "learning_rate": (lambda v: v > 0, "a positive number"),
    "momentum": (lambda v: 0 <= v < 1, "a number in [0, 1)"),
    "milestones": (
        lambda v: all(_is_number(x) and 0 < x <= 1 for x in v) and list(v) == sorted(v),
        "ascending fractions of the run, each in (0, 1]",
    ),
    "milestone_factor": (lambda v: v > 0, "a positive number"),
    "warmup_epochs": (lambda v: v >= 0, "0 or a positive whole number"),
    "warmup_learning_rate": (lambda v: v > 0, "a positive number"),
    "profile_steps": (
        lambda v: not v or (len(v) == 2 and all(type(x) is int for x in v) and 1 <= v[0] <= v[1]),
        "two step numbers FIRST,LAST with 1 <= FIRST <= LAST, or () for none",
    ),
    "diagnostics_share": (lambda v: 0 < v <= 1, "a share of the time: 0 < diagnostics_share <= 1"),
    "model.head_scale": (lambda v: 0 < v <= 1, "a share of the full head size, in (0, 1]"),
    "label_smoothing": (lambda v: 0 <= v < 1, "a number in [0, 1)"),
    "model.dropout": (lambda v: 0 <= v < 1, "a number in [0, 1)"),
    "model.ffn_dropout": (lambda v: 0 <= v < 1, "a number in [0, 1)"),
    "decoding.length_penalty": (lambda v: v >= 0, "0 or a positive number"),
    "augment.crop": (lambda v: v >= 0, "0 (no cropping) or a positive number of pixels"),
    "augment.cutout": (lambda v: v >= 0, "0 (none) or a positive number of pixels"),
} | {
    key: (lambda v: v >= 1, "a whole number, at least 1")
    for key in (
        "epochs",
        "batch_size",
        "accumulate_steps",
        "eval_batch_size",
        "steps_per_dispatch",
        "checkpoint_every_epochs",
        "keep_checkpoints",
        "diagnostics_every",
        "vocabulary_size",
        "max_length",
        "block_length",
        "model.d_model",
        "model.d_ff",
        "model.heads",
        "model.layers",
        "model.max_length",
        "decoding.beam",
        "decoding.max_length",
    )
}


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
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
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
        owner[last] = _check(key, _parse(key, value, owner.get_type(last)))
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
        for key in ADDED_LATER.keys() - flatten(config).keys():
            group, _, last = key.rpartition(".")
            if group == "augment" and group not in config:
                continue  # What is not made of images has no such keys.
            if group and group not in config:
                config[group] = ConfigDict()
            (config[group] if group else config)[last] = ADDED_LATER[key]
        for key in [key for key in REMOVED if key in config]:
            del config[key]
    published = config.protocol == "published"
    if config.get("validation", 0.0) is None:
        config.validation = 0.0 if published else 0.1
    if config.warmup_epochs is None:
        config.warmup_epochs = int(
            config.model.name == "resnet" and config.model.get("depth", 0) >= 56
        )
    if config.model.get("head_scale", 1.0) is None:
        config.model.head_scale = usual_head_scale(config)
    for key, value in flatten(config).items():
        _check(key, value)
    if published and config.get("validation"):
        raise RunError(
            f"validation={config.validation:g} with protocol=published: the published protocol "
            "trains on the whole training set; leave validation out or use protocol=ours"
        )
    _settle_size(config)
    _settle_norms(config)
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
    factorized = sizes and config.method == "factorize"
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


def _settle_norms(config: ConfigDict) -> None:
    """Raises RunError where what is asked of factors is asked where there are none."""
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _check(key: str, value: Any) -> Any:
    """Returns `value` if the key accepts it."""
    if key in CHOICES and value not in CHOICES[key]:
        near = difflib.get_close_matches(str(value), CHOICES[key], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise RunError(f"{key}={value!r}: expected one of {', '.join(CHOICES[key])}{hint}")
    if key in _BOUNDS and value is not None:
        accepts, words = _BOUNDS[key]
        if (_is_number(value) and not math.isfinite(value)) or not accepts(value):
            raise RunError(f"{key}={value!r}: expected {words}")
    return value
