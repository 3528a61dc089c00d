"""The models of the experiments: plain dense Flax models, each with the kernels worth factorizing.

A model knows nothing of factorization: `lowrank_jax.factorize` changes its parameter tree, and its
layers apply whatever kernel they find there.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

import lowrank_jax as lrj
from experiments.errors import RunError
from experiments.models import projection_resnet, resnet, vgg, wide_resnet
from lowrank_jax.initializers import Initializer


class Factorization(NamedTuple):
    """What the published system factorizes in a model, and how.

    Attributes:
      pattern: of the paths of the kernels.
      weight: the kind of weight they become.
      regular: what the published code starts them at without spectral initialization.
      fields: of the model, which give it these kernels.
    """

    pattern: str
    weight: type[lrj.FactorizedWeight]
    regular: Initializer
    fields: Mapping[str, Any] = {}


class Entry(NamedTuple):
    """What the experiments know of a model.

    Attributes:
      build: called with num_classes, dtype, remat, and the fields of `config.model`.
      statistics: what the published code normalises images by: ImageNet's mean and deviation for
        every data set, or the data set's.
      factorizations: by the word for them in a config (`kind`).
    """

    build: Callable[..., nn.Module]
    statistics: Literal["imagenet", "data_set"]
    factorizations: Mapping[str, Factorization]

    def factorization(self, kind: str) -> Factorization:
        """The factorization of a kind; one that the model does not have is a `RunError`."""
        if kind not in self.factorizations:
            having = [name for name, entry in MODELS.items() if kind in entry.factorizations]
            raise RunError(
                f"kind={kind}: this model has {', '.join(self.factorizations)} only; models that "
                f"have it: {', '.join(having)} (configs/tensor.py)"
            )
        return self.factorizations[kind]


# The published code of the tensor experiments draws the matrix that is to be decomposed like
# PyTorch's linear layers: uniformly within 1 / sqrt(in).
_LINEAR_UNIFORM = lrj.regular("kernel", scale=1 / 3, distribution="uniform")

MODELS: dict[str, Entry] = {
    "projection_resnet": Entry(
        projection_resnet.ProjectionResNet,
        "data_set",
        {"conv": Factorization(projection_resnet.FACTORIZED, lrj.SpatialLowRank, lrj.regular())},
    ),
    "resnet": Entry(
        resnet.ResNet,
        "imagenet",
        {"conv": Factorization(resnet.FACTORIZED, lrj.SpatialLowRank, lrj.regular())},
    ),
    "vgg": Entry(
        vgg.VGG,
        "data_set",
        {"conv": Factorization(vgg.FACTORIZED, lrj.SpatialLowRank, lrj.regular("kernel"))},
    ),
    "wide_resnet": Entry(
        wide_resnet.WideResNet,
        "data_set",
        {
            "conv": Factorization(
                wide_resnet.FACTORIZED, lrj.SpatialLowRank, lrj.regular("kernel", mode="fan_out")
            ),
            "tensor_train": Factorization(
                wide_resnet.POINTWISE, lrj.TensorTrain, _LINEAR_UNIFORM, {"separable": True}
            ),
            "tucker": Factorization(
                wide_resnet.POINTWISE, lrj.Tucker, _LINEAR_UNIFORM, {"separable": True}
            ),
        },
    ),
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
    *,
    kind: str = "conv",
    precision: str = "float32",
    remat: bool = False,
) -> nn.Module:
    """The dense model that a config's `model` group describes.

    Args:
      model: `name`, and the fields of that model, e.g. `depth` and `width`.
      num_classes: number of logits.
      kind: what is to be factorized in it, see `Entry`; at "conv" it is the ordinary network.
      precision: dtype of products and activations, "float32" or "bfloat16". Parameters, batch
        statistics and logits are float32 in any case.
      remat: whether the backward pass computes the inside of the model's blocks again.

    Raises:
      RunError: for an unknown model, a kind it does not have, or a field value that it refuses.
    """
    fields = dict(model)
    entry = find(fields.pop("name"))
    fields |= entry.factorization(kind).fields
    try:
        return entry.build(
            num_classes=num_classes, dtype=jnp.dtype(precision), remat=remat, **fields
        )
    except ValueError as error:
        raise RunError(str(error)) from error
