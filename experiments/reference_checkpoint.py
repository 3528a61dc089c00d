"""Networks trained by the paper's PyTorch code (https://github.com/microsoft/fnl_paper) as ours.

The same networks have other names for their modules there: `block_7/conv1` is `layer2.1.conv1` in a
ResNet of depth 32, `block2.0.layer.2.conv1` in WRN-28-10. VGGs number their modules, ReLUs and
poolings included. And factorizing a module there takes away a container around it, so that a dense
one lies deeper: `downsample.0.weight`, but `downsample.U`.

PyTorch is not needed: a state dict is NumPy arrays by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

import lowrank_jax as lrj
from experiments import arguments
from experiments import state as states
from experiments.data import image_set
from experiments.errors import RunError
from experiments.mesh import on_this_machine
from experiments.models import vgg
from experiments.tasks.classification import Network
from lowrank_jax import torch_state_dict
from lowrank_jax.tree import kernels

_STAGES = 3


@dataclasses.dataclass(frozen=True)
class _Names:
    """What the modules of one residual network are called there, by ours.

    Attributes:
      outside: of the blocks.
      block: a block, by stage (from 1) and index in it (from 0).
      inside: of a block.
      dense: of a block, those that have another name where they are dense.
    """

    outside: Mapping[str, str]
    block: str
    inside: dict[str, str]
    dense: dict[str, str]


_CONVOLUTIONS = {"conv1": "conv1", "norm1": "bn1", "conv2": "conv2", "norm2": "bn2"}
_RESIDUAL = {
    "resnet": _Names(
        outside={"stem": "conv1", "stem_norm": "bn1", "head": "linear"},
        block="layer{stage}.{index}",
        inside=_CONVOLUTIONS,
        dense={},
    ),
    "projection_resnet": _Names(
        outside={"stem": "conv1", "stem_norm": "bn", "head": "linear"},
        block="layer{stage}.{index}",
        inside=_CONVOLUTIONS | {"projection": "downsample", "projection_norm": "bn3"},
        dense={"projection": "downsample.0"},
    ),
    "wide_resnet": _Names(
        outside={"stem": "conv1", "norm": "bn1", "head": "fc"},
        block="block{stage}.0.layer.{index}",
        inside=_CONVOLUTIONS | {"projection": "convShortcut"},
        dense={"conv1": "conv1.conv", "conv2": "conv2.conv"},
    ),
}


def module_names(model: Mapping[str, Any], params: Any) -> dict[str, str]:
    """The reference's names of a network's modules, by ours.

    Args:
      model: the `model` group of a config.
      params: of the network, factorized as the state dict is; arrays or shapes.

    Raises:
      RunError: the model is none of the reference's.

    >>> params = {"layer_3": {"conv": {"kernel": 0}, "norm": {"scale": 0}}, "head": {"bias": 0}}
    >>> module_names({"name": "vgg", "depth": 11}, params)
    {'head': 'classifier', 'layer_3/conv': 'feature.8', 'layer_3/norm': 'feature.9'}
    """
    leaves = kernels(params)
    modules = list(dict.fromkeys(path.rpartition("/")[0] for path in leaves))
    if model["name"] == "vgg":
        return {module: _in_vgg(module, model["depth"]) for module in modules}
    if model["name"] not in _RESIDUAL:
        raise RunError(
            f"model.name={model['name']!r} is no network of the paper's code: it has "
            f"{', '.join([*_RESIDUAL, 'vgg'])}"
        )
    names = _RESIDUAL[model["name"]]
    blocks = len({module.split("/")[0] for module in modules if module.startswith("block_")})
    return {
        module: _in_residual(
            module, names, blocks // _STAGES, lrj.is_factorized(leaves.get(f"{module}/kernel"))
        )
        for module in modules
    }


def import_state_dict(config: ConfigDict, state: Mapping[str, Any]) -> dict[str, Any]:
    """The network of a config with the parameters of a state dict of the reference.

    Args:
      config: names the network and how it is factorized: model, rank_scale or ratio, variant, and
        the data set, for the number of classes.
      state: NumPy arrays by name, as `torch.load` and `.numpy()` give them.

    Returns:
      ``params`` and ``batch_stats``.

    Raises:
      RunError: the state dict is of another network than the config.
    """
    config = on_this_machine(arguments.settle(config))
    if config.kind != "conv":
        raise RunError(f"kind={config.kind}: only factorized convolutions can be imported")
    data = image_set(config.data.name)
    network = Network.of(config, data.num_classes, data.image_size)
    plan = states.plan(config, network, batches_per_epoch=1)
    params, model_state = states.abstract_variables(plan)
    try:
        return torch_state_dict.from_state_dict(
            state, {"params": params, **model_state}, module_names(config.model, params)
        )
    except ValueError as error:
        raise RunError(str(error)) from error


def _in_residual(module: str, names: _Names, blocks_in_stage: int, factorized: bool) -> str:
    block, _, inside = module.partition("/")
    if not inside:
        return names.outside[module]
    stage, index = divmod(int(block.removeprefix("block_")) - 1, blocks_in_stage)
    theirs = names.inside if factorized else names.inside | names.dense
    return f"{names.block.format(stage=stage + 1, index=index)}.{theirs[inside]}"


def _in_vgg(module: str, depth: int) -> str:
    layer, _, inside = module.partition("/")
    if not inside:
        return "classifier"
    number = int(layer.removeprefix("layer_"))
    # Before the layer: three modules for each other one, and a pooling for each stage that is over.
    stages = vgg.LAYERS[depth]
    over = sum(number > sum(stages[: stage + 1]) for stage in range(len(stages)))
    return f"feature.{3 * (number - 1) + over + (inside == 'norm')}"
