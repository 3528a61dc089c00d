"""Overcomplete training: wide or deep factors are trained, and merged into a compact dense network
at the end, which was thereby trained better than by itself, without a teacher. As in
"Initialization and Regularization of Factorized Neural Layers" (Khodak, Tenenholtz, Mackey, Fusi,
ICLR 2021), section on overcomplete training.

Commands:
  python -m experiments.main --config=configs/distillation.py
  python -m experiments.main --config=configs/distillation.py:variant=wide,depth=56
  python -m experiments.main --config=configs/distillation.py:variant=wide,rank_scale=9
  python -m experiments.main --config=configs/distillation.py:variant=deep,init=regular,decay=plain
  python -m experiments.main --config=configs/distillation.py:data=cifar100,protocol=published
  python -m experiments.main --config=configs/distillation.py:runlocal=True

Arguments: `variant=deep` (three factors, u m vt, at rank scale 1), `variant=wide` (two factors at
rank scale 3, or 9 if `rank_scale=9` is given) or `variant=full` (two factors at rank scale 1); and
every key of `configs/base.py`, above all depth (32, 56, 110), data, init, decay, seed, protocol.
Wide factors start at regular initialization, as published; deep and full ones at the singular
vectors. `runlocal=True` is 204 steps of a ResNet-20 on embedded data.

In each step the factors are multiplied into one kernel for each layer. At the end they are merged:
result.json has the compact network's parameters and accuracy beside those of training, its logits
are compared with the factors' on all test images, and compact.safetensors is the network
(`lowrank_jax.export.load`).

Cost: 200 epochs of CIFAR are work for an accelerator; `runlocal` takes a few minutes on two cores.
The dense network to compare with is configs/cifar_resnet.py:rank_scale=0.
"""

from ml_collections import ConfigDict

from configs import base, study
from experiments import arguments


def get_config(arg: str | None = None) -> ConfigDict:
    """ResNet-32 on CIFAR-10, trained with three factors a layer, with SI and FD."""
    config = base.get_config()
    config.name = "distillation"
    config.model.depth = 32
    config.merge = True
    _deep(config)
    variants = {"deep": _deep, "wide": _wide, "full": _full}
    return arguments.apply(config, arg, presets={"variant": variants, "runlocal": study.runlocal})


def _deep(config: ConfigDict) -> None:
    config.variant, config.rank_scale, config.init = "deep", 1.0, "spectral"


def _wide(config: ConfigDict) -> None:
    config.variant, config.rank_scale, config.init = "flat", 3.0, "regular"


def _full(config: ConfigDict) -> None:
    config.variant, config.rank_scale, config.init = "flat", 1.0, "spectral"
