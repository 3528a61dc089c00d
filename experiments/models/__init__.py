"""The models of the experiments: plain dense Flax models, each with the kernels worth factorizing.

A model knows nothing of factorization: `lowrank_jax.factorize` changes its parameter tree, and its
layers apply whatever kernel they find there.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from experiments.errors import RunError
from experiments.models import projection_resnet, resnet


class Entry(NamedTuple):
    """What the experiments know of a model."""

    # Called with num_classes, dtype, remat and the fields of `config.model`.
    build: Callable[..., nn.Module]
    factorized: str  # pattern of the paths of the kernels that the published system factorizes


MODELS: dict[str, Entry] = {
    "projection_resnet": Entry(projection_resnet.ProjectionResNet, projection_resnet.FACTORIZED),
    "resnet": Entry(resnet.ResNet, resnet.FACTORIZED),
}


def find(name: str) -> Entry:
    """The entry of the model called `name`; an unknown name is a `RunError`."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise RunError(f"unknown model {name!r}{hint}; known are {', '.join(sorted(MODELS))}")
    return MODELS[name]


def build(
    model: Mapping[str, Any],
    num_classes: int,
    precision: str = "float32",
    remat: bool = False,
) -> nn.Module:
    """The dense model that a config's `model` group describes.

    Args:
      model: `name`, and the fields of that model, e.g. `depth` and `width`.
      num_classes: number of logits.
      precision: dtype of products and activations, "float32" or "bfloat16". Parameters, batch
        statistics and logits are float32 in any case.
      remat: whether the backward pass computes the inside of the model's blocks again.

    Raises:
      RunError: for an unknown model, or a field value that it refuses.
    """
    fields = dict(model)
    entry = find(fields.pop("name"))
    try:
        return entry.build(
            num_classes=num_classes, dtype=jnp.dtype(precision), remat=remat, **fields
        )
    except ValueError as error:
        raise RunError(str(error)) from error
