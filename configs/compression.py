"""Compression of VGG-19 and of the wide ResNet-32 to a share of their parameters, as in
"Initialization and Regularization of Factorized Neural Layers" (Khodak, Tenenholtz, Mackey, Fusi,
ICLR 2021), section on model compression.

Commands:
  python -m experiments.main --config=configs/compression.py
  python -m experiments.main --config=configs/compression.py:model=vgg19,ratio=0.05,seed=2
  python -m experiments.main --config=configs/compression.py:init=regular,decay=plain
  python -m experiments.main --config=configs/compression.py:ratio=0
  python -m experiments.main --config=configs/compression.py:method=prune
  python -m experiments.main --config=configs/compression.py:protocol=published,data=tiny_imagenet
  python -m experiments.main --config=configs/compression.py:runlocal=True

Arguments: `model=resnet32` (64, 128, 256 channels and 1x1 shortcuts) or `model=vgg19`, each with
its published weight decay; and every key of `configs/base.py`, above all data, ratio (of all
parameters; 0 is the dense network), method, init, decay, width, seed, protocol. `runlocal=True` is
a run of seconds on embedded data, to see that everything works.

The whole grid of the paper is a sweep: configs/sweeps/compression.py.

Cost: 200 epochs of CIFAR are work for an accelerator. A quarter-width twin on embedded data
(`width=0.25,data=fashion_small,epochs=10`) takes minutes on a few CPU cores.
Expected result: `python -m experiments.report RUN...` makes the tables from finished runs.
"""

from ml_collections import ConfigDict

from configs import base
from experiments import arguments


def get_config(arg: str | None = None) -> ConfigDict:
    """The wide ResNet-32 on CIFAR-10 at a tenth of its parameters, with SI and FD."""
    config = base.get_config()
    config.name = "compression"
    config.ratio = 0.1
    _resnet32(config)
    models = {"resnet32": _resnet32, "vgg19": _vgg19}
    return arguments.apply(config, arg, presets={"model": models, "runlocal": _runlocal})


def _resnet32(config: ConfigDict) -> None:
    config.model.name, config.model.depth = "projection_resnet", 32
    config.weight_decay = 1e-4


def _vgg19(config: ConfigDict) -> None:
    config.model.name, config.model.depth = "vgg", 19
    config.weight_decay = 2e-4


def _runlocal(config: ConfigDict) -> None:
    """A narrow, shallow network, two short epochs, and digits, which need no download."""
    config.name = "compression_local"
    config.data.name = "digits"
    config.model.depth = 11 if config.model.name == "vgg" else 8
    config.model.width = 0.125
    config.ratio = 0.3
    config.epochs = 2
    config.augment.crop = 1
    config.augment.flip = False  # a mirrored digit is another sign
