"""CIFAR ResNets with factorized block convolutions, as in "Initialization and Regularization of
Factorized Neural Layers" (Khodak, Tenenholtz, Mackey, Fusi, ICLR 2021), section on ResNets.

Commands:
  python -m experiments.main --config=configs/cifar_resnet.py
  python -m experiments.main --config=configs/cifar_resnet.py:depth=56,rank_scale=0.333,seed=2
  python -m experiments.main --config=configs/cifar_resnet.py:rank_scale=0,data=cifar100
  python -m experiments.main --config=configs/cifar_resnet.py:rank_scale=1,variant=deep
  python -m experiments.main --config=configs/cifar_resnet.py:protocol=published
  python -m experiments.main --config=configs/cifar_resnet.py:runlocal=True

Arguments: every key of `configs/base.py`, above all depth, width, rank_scale, variant, init,
overcomplete, decay, weight_decay, data, validation, protocol, seed, epochs, batch_size,
learning_rate. `runlocal=True` is a run of seconds on embedded data, to see that everything works.

Cost: 200 epochs of CIFAR are work for an accelerator; on a few CPU cores, take the quick start.
Expected result: `python -m experiments.report RUN...` makes the table from finished runs.
"""

from ml_collections import ConfigDict

from configs import base
from experiments import arguments


def get_config(arg: str | None = None) -> ConfigDict:
    """ResNet-32 on CIFAR-10 at rank scale 1/9: spectral initialization and Frobenius decay."""
    config = base.get_config()
    config.name = "cifar_resnet"
    config.model.depth = 32
    config.rank_scale = 0.111
    return arguments.apply(config, arg, presets={"runlocal": _runlocal})


def _runlocal(config: ConfigDict) -> None:
    """A smaller network, two short epochs, and digits (8 x 8 pixels), which need no download."""
    config.name = "cifar_resnet_local"
    config.data.name = "digits"
    config.model.depth = 8
    config.epochs = 2
    config.augment.crop = 1
    config.augment.flip = False  # a mirrored digit is another sign
