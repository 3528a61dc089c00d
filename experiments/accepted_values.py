"""What the keys of a config accept: words, and bounds of numbers.

The keys themselves, with their types, are defined in `configs/base.py`. `data.name` and
`model.name` are checked where those are looked up.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any, get_args

from experiments.config_keys import SELECTING
from experiments.errors import RunError
from lowrank_jax.rank_selection.cuttlefish import PRESETS, Metric


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


CHOICES: dict[str, tuple[str, ...]] = {
    "protocol": ("ours", "published"),
    "method": ("factorize", "prune", *SELECTING),
    "kind": ("conv", "channel", "linear", "projections", "tensor_train", "tucker"),
    "precision": ("float32", "bfloat16"),
    "variant": ("flat", "deep"),
    "init": ("spectral", "regular", "variance_matched", "spectral_ones"),
    "layout": ("auto", "batch_minor", "as_written"),
    "forms": ("measure", "count"),
    "overcomplete": ("complement", "zero"),
    "decay": ("none", "plain", "frobenius", "crs"),
    "optimizer": ("sgd", "adam", "lamb"),
    "schedule": ("milestones", "inverse_sqrt", "linear"),
    "warmup": ("constant", "linear"),
    "selection.preset": tuple(PRESETS),
    "selection.metric": get_args(Metric),
    "selection.moments": ("reset", "project"),
    "decay_position": ("coupled", "decoupled", "published"),
    "products.init": ("none", "qk", "ov", "qk_ov"),
    "products.decay": ("none", "qk", "ov", "qk_ov"),
    "data.source": ("auto", "tfds", "files", "embedded"),
    "data.download": ("auto", "never"),
}
"""The words that a key accepts."""

BOUNDS: dict[str, tuple[Callable[[Any], bool], str]] = (
    {
        "seed": (lambda v: 0 <= v < 2**31, "a whole number from 0 to 2147483647"),
        "model.width": (lambda v: v > 0, "a positive number"),
        "rank_scale": (lambda v: v >= 0, "0 (the dense network) or a positive number"),
        "ratio": (
            lambda v: 0 <= v < 1,
            "0 (the dense network) or a share of its parameters below 1",
        ),
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
            lambda v: (
                not v or (len(v) == 2 and all(type(x) is int for x in v) and 1 <= v[0] <= v[1])
            ),
            "two step numbers FIRST,LAST with 1 <= FIRST <= LAST, or () for none",
        ),
        "diagnostics_share": (
            lambda v: 0 < v <= 1,
            "a share of the time: 0 < diagnostics_share <= 1",
        ),
        "selection.fraction": (lambda v: 0 < v <= 1, "a share of full rank, in (0, 1]"),
        "selection.threshold": (lambda v: v >= 0, "0 (of the preset) or ranks per epoch"),
        "selection.minimum_fraction": (lambda v: 0 <= v <= 1, "a share of full rank, in [0, 1]"),
        "selection.speed_up": (lambda v: v > 0, "a positive number"),
        "model.head_scale": (lambda v: 0 < v <= 1, "a share of the full head size, in (0, 1]"),
        "label_smoothing": (lambda v: 0 <= v < 1, "a number in [0, 1)"),
        "model.dropout": (lambda v: 0 <= v < 1, "a number in [0, 1)"),
        "model.ffn_dropout": (lambda v: 0 <= v < 1, "a number in [0, 1)"),
        "decoding.length_penalty": (lambda v: v >= 0, "0 or a positive number"),
        "augment.crop": (lambda v: v >= 0, "0 (no cropping) or a positive number of pixels"),
        "augment.cutout": (lambda v: v >= 0, "0 (none) or a positive number of pixels"),
    }
    | {
        key: (lambda v: v >= 0, "0 or a positive whole number")
        for key in (
            "selection.epoch",
            "selection.window",
            "selection.tail",
            "selection.rewarmup_epochs",
            "selection.recalibration_batches",
            "data_workers",
        )
    }
    | {
        key: (lambda v: v >= 1, "a whole number, at least 1")
        for key in (
            "selection.multiple_of",
            "epochs",
            "batch_size",
            "accumulate_steps",
            "batch_norm_parts",
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
)
"""Tests and words; a value that fails its test is refused with the words."""


def check(key: str, value: Any) -> Any:
    """Returns `value` if the key accepts it.

    Raises:
      RunError: names the key, the value, and what is accepted.
    """
    if key in CHOICES and value not in CHOICES[key]:
        near = difflib.get_close_matches(str(value), CHOICES[key], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise RunError(f"{key}={value!r}: expected one of {', '.join(CHOICES[key])}{hint}")
    if key in BOUNDS and value is not None:
        accepts, words = BOUNDS[key]
        if (_is_number(value) and not math.isfinite(value)) or not accepts(value):
            raise RunError(f"{key}={value!r}: expected {words}")
    return value
