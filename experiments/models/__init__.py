"""The models of the experiments: plain dense Flax models, each with the kernels worth factorizing.

A model knows nothing of factorization: `lowrank_jax.factorize` changes its parameter tree, and its
layers apply whatever kernel they find there.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

import lowrank_jax as lrj
from experiments.errors import RunError
from experiments.models import (
    bert,
    deit,
    four_stage_resnet,
    gpt,
    language_model,
    partitions,
    projection_resnet,
    rank_selection,
    resmlp,
    resnet,
    transformer,
    vgg,
    wide_resnet,
)
from experiments.models.rank_selection import RankSelection
from lowrank_jax.initializers import Initializer
from lowrank_jax.ranks import RankRule
from lowrank_jax.sharding import Partition


class Kernels(NamedTuple):
    """Kernels of a model that are factorized alike.

    Attributes:
      pattern: a regular expression for their whole paths.
      regular: what the published code starts them at without spectral initialization.
      axes: the static axes of their weights, where shapes do not say these.
    """

    pattern: str
    regular: Initializer
    axes: Mapping[str, int] = {}


class Factorization(NamedTuple):
    """What is factorized in a model, and how.

    Attributes:
      weight: the kind of weight the kernels become.
      kernels: what is factorized.
      fields: of the model, which give it these kernels.
      measured: pattern of the paths of the kernels that diagnostics are about; '' is all of them.
    """

    weight: type[lrj.FactorizedWeight]
    kernels: Sequence[Kernels]
    fields: Mapping[str, Any] = {}
    measured: str = ""

    @property
    def pattern(self) -> str:
        """Of the paths of all the kernels."""
        return "|".join(kernels.pattern for kernels in self.kernels)

    def rules(self, rank: RankRule, depth: int = 2) -> list[lrj.Rule]:
        """One for each of the kernels, all with this rank."""
        return [
            lrj.Rule(kernels.pattern, rank, self.weight, depth=depth, **kernels.axes)
            for kernels in self.kernels
        ]


class Entry(NamedTuple):
    """What the experiments know of a model.

    Attributes:
      build: called with dtype, remat, what the data decide (the number of classes, the sizes of
        vocabularies), and the fields of `config.model`.
      statistics: what the published code normalises images by: ImageNet's mean and deviation for
        every data set, or the data set's.
      factorizations: by the word for them in a config (`kind`).
      task: that it is for.
      attention: whether it has attention, and so products of queries and keys, outputs and values,
        in leaves of their own.
      rank_selection: what is published of selecting its ranks during training.
      partitions: which kernels are split over a mesh otherwise than by their sizes.
    """

    build: Callable[..., nn.Module]
    statistics: Literal["imagenet", "data_set"]
    factorizations: Mapping[str, Factorization]
    task: str = "classification"
    attention: bool = False
    rank_selection: RankSelection | None = None
    partitions: Sequence[Partition] = ()

    def factorization(self, kind: str) -> Factorization:
        """The factorization of a kind; one that the model does not have is a `RunError`."""
        if kind not in self.factorizations:
            having = [name for name, entry in MODELS.items() if kind in entry.factorizations]
            raise RunError(
                f"kind={kind}: this model has {', '.join(self.factorizations)} only; models that "
                f"have it: {', '.join(having)}"
            )
        return self.factorizations[kind]


# The published code of the tensor experiments draws the matrix that is to be decomposed like
# PyTorch's linear layers: uniformly within 1 / sqrt(in).
_LINEAR_UNIFORM = lrj.regular("kernel", scale=1 / 3, distribution="uniform")
_POINTWISE = Kernels(wide_resnet.POINTWISE, _LINEAR_UNIFORM)

# As the published Transformer: every factor has the distribution of the dense kernel, uniform
# within 0.1 or normal of deviation 0.1.
_UNIFORM_TENTH = lrj.regular("one", scale=0.01 / 3, distribution="uniform")
_NORMAL_TENTH = lrj.regular("one", scale=0.01)

# Factors as layers of their own, which start as all kernels of these models do.
_AS_A_LAYER = lrj.regular("one", scale=0.02**2)

_FEED_FORWARD = Kernels(language_model.FEED_FORWARD, _AS_A_LAYER)
_LANGUAGE_MODEL: dict[str, Factorization] = {
    "linear": Factorization(lrj.LowRank, [_FEED_FORWARD], measured=language_model.FEED_FORWARD),
    "projections": Factorization(
        lrj.LowRank,
        [
            _FEED_FORWARD,
            Kernels(language_model.HEADS_IN, _AS_A_LAYER, {"in_axes": 1, "out_axes": 2}),
            Kernels(language_model.HEADS_OUT, _AS_A_LAYER, {"in_axes": 2, "out_axes": 1}),
        ],
        measured=language_model.FEED_FORWARD,
    ),
}


# As PyTorch's layers start, a factor being a layer of its own.
_UNIFORM_LAYER = lrj.regular(scale=1 / 3, distribution="uniform")


def _convolutions(
    pattern: str, regular: Initializer, *, channel: bool = False
) -> dict[str, Factorization]:
    kinds: dict[str, type[lrj.FactorizedWeight]] = {"conv": lrj.SpatialLowRank}
    if channel:
        kinds["channel"] = lrj.ChannelLowRank
    return {
        word: Factorization(weight, [Kernels(pattern, regular)]) for word, weight in kinds.items()
    }


def _linear(pattern: str, regular: Initializer) -> dict[str, Factorization]:
    return {"linear": Factorization(lrj.LowRank, [Kernels(pattern, regular)])}


MODELS: dict[str, Entry] = {
    "bert": Entry(
        bert.MaskedLanguageModel,
        "data_set",
        _LANGUAGE_MODEL,
        task="masked_language_model",
        attention=True,
        partitions=partitions.TRANSFORMER,
    ),
    "bert_classifier": Entry(
        bert.TextClassifier,
        "data_set",
        _LANGUAGE_MODEL,
        task="text_classification",
        attention=True,
        partitions=partitions.TRANSFORMER,
    ),
    "deit": Entry(
        deit.DeiT,
        "imagenet",
        _linear(deit.FACTORIZED, _AS_A_LAYER),
        rank_selection=rank_selection.DEIT,
    ),
    "gpt": Entry(
        gpt.CausalLanguageModel,
        "data_set",
        _LANGUAGE_MODEL,
        task="causal_language_model",
        attention=True,
        partitions=partitions.TRANSFORMER,
    ),
    "projection_resnet": Entry(
        projection_resnet.ProjectionResNet,
        "data_set",
        _convolutions(projection_resnet.FACTORIZED, lrj.regular()),
    ),
    "resmlp": Entry(
        resmlp.ResMLP,
        "imagenet",
        _linear(resmlp.FACTORIZED, _UNIFORM_LAYER),
        rank_selection=rank_selection.RESMLP,
    ),
    "resnet": Entry(resnet.ResNet, "imagenet", _convolutions(resnet.FACTORIZED, lrj.regular())),
    "resnet18": Entry(
        four_stage_resnet.ResNet18,
        "imagenet",
        _convolutions(four_stage_resnet.CONVOLUTIONS, _UNIFORM_LAYER, channel=True),
        rank_selection=rank_selection.RESNET18,
    ),
    "resnet50": Entry(
        four_stage_resnet.ResNet50,
        "imagenet",
        _convolutions(four_stage_resnet.WITH_PROJECTIONS, lrj.regular(), channel=True),
        rank_selection=rank_selection.RESNET50,
    ),
    "transformer": Entry(
        transformer.Transformer,
        "data_set",
        {
            "linear": Factorization(
                lrj.LowRank,
                [
                    Kernels(transformer.LINEAR, _UNIFORM_TENTH),
                    Kernels(transformer.EMBEDDINGS, _NORMAL_TENTH),
                ],
                measured=transformer.FEED_FORWARD,
            )
        },
        task="translation",
        attention=True,
        partitions=partitions.TRANSFORMER,
    ),
    "vgg": Entry(
        vgg.VGG,
        "data_set",
        _convolutions(vgg.FACTORIZED, lrj.regular("kernel"), channel=True),
        rank_selection=rank_selection.VGG19,
    ),
    "wide_resnet": Entry(
        wide_resnet.WideResNet,
        "data_set",
        _convolutions(wide_resnet.FACTORIZED, lrj.regular("kernel", mode="fan_out"))
        | {
            "tensor_train": Factorization(lrj.TensorTrain, [_POINTWISE], {"separable": True}),
            "tucker": Factorization(lrj.Tucker, [_POINTWISE], {"separable": True}),
        },
    ),
    "wide_resnet50": Entry(
        four_stage_resnet.WideResNet50,
        "imagenet",
        _convolutions(four_stage_resnet.WITH_PROJECTIONS, lrj.regular(), channel=True),
        rank_selection=rank_selection.RESNET50,
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
    kind: str | None = None,
    precision: str = "float32",
    remat: bool = False,
) -> nn.Module:
    """The dense image model that a config's `model` group describes: `build_for` classification."""
    return build_for(
        "classification",
        model,
        {"num_classes": num_classes},
        kind=kind,
        precision=precision,
        remat=remat,
    )


def build_for(
    task: str,
    model: Mapping[str, Any],
    sizes: Mapping[str, int],
    *,
    kind: str | None,
    precision: str,
    remat: bool,
) -> nn.Module:
    """The dense model that a config's `model` group describes.

    Args:
      task: that it is to be for.
      model: `name`, and the fields of that model, e.g. `depth` and `width`.
      sizes: the fields of the model that the data decide, e.g. `num_classes`.
      kind: what is to be factorized in it, see `Entry`; None: nothing, it is the ordinary network.
      precision: dtype of products and activations, "float32" or "bfloat16". Parameters, batch
        statistics and logits are float32 in any case.
      remat: whether the backward pass computes the inside of the model's blocks again.

    Raises:
      RunError: for an unknown model, one for another task, a kind it does not have, or a field
        value that it refuses.
    """
    fields = dict(model)
    name = fields.pop("name")
    entry = find(name)
    if entry.task != task:
        fitting = ", ".join(sorted(n for n, other in MODELS.items() if other.task == task))
        raise RunError(f"model={name} is for {entry.task}; for {task} there is {fitting}")
    if kind is not None:
        fields |= entry.factorization(kind).fields
    try:
        return entry.build(**sizes, dtype=jnp.dtype(precision), remat=remat, **fields)
    except (TypeError, ValueError) as error:
        raise RunError(str(error)) from error
