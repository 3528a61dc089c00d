"""The models of the experiments: plain dense Flax models, each with the kernels worth factorizing.

A model knows nothing of factorization: `lowrank_jax.factorize` changes its parameter tree, and its
layers apply whatever kernel they find there.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import linen as nn

from experiments.errors import RunError
from experiments.models import resnet


class Entry(NamedTuple):
    """What the experiments know of a model."""

    build: Callable[..., nn.Module]  # called with num_classes and the fields of `config.model`
    factorized: str  # pattern of the paths of the kernels that the published system factorizes


MODELS: dict[str, Entry] = {
    "resnet": Entry(resnet.ResNet, resnet.FACTORIZED),
}


def find(name: str) -> Entry:
    """The entry of the model called `name`; an unknown name is a `RunError`."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise RunError(f"unknown model {name!r}{hint}; known are {', '.join(sorted(MODELS))}")
    return MODELS[name]


def build(model: Mapping[str, Any], num_classes: int) -> nn.Module:
    """The dense model that a config's `model` group describes.

    Args:
      model: `name`, and the fields of that model, e.g. `depth` and `width`.
      num_classes: number of logits.

    Raises:
      RunError: for an unknown model, or a field value that it refuses.
    """
    fields = dict(model)
    entry = find(fields.pop("name"))
    try:
        return entry.build(num_classes=num_classes, **fields)
    except ValueError as error:
        raise RunError(str(error)) from error
