"""Low-rank convolutions against tensor decompositions in WRN-28-10, as in "Initialization and
Regularization of Factorized Neural Layers" (Khodak, Tenenholtz, Mackey, Fusi, ICLR 2021), section
on tensor comparisons.

Commands:
  python -m experiments.main --config=configs/tensor.py
  python -m experiments.main --config=configs/tensor.py:kind=tensor_train
  python -m experiments.main --config=configs/tensor.py:kind=tucker,rank_scale=0.211,decay=crs
  python -m experiments.main --config=configs/tensor.py:kind=conv,ratio=0
  python -m experiments.main --config=configs/tensor.py:kind=tensor_train,runlocal=True

Arguments: `kind=conv` factorizes the convolutions to a `ratio` of all parameters. With
`kind=tensor_train` and `kind=tucker` the convolutions of the blocks become depthwise-separable, and
their pointwise kernels are tensor trains or Tucker decompositions of a `rank_scale`. Each kind
starts at the larger of the two published sizes, about a fifteenth of the parameters; the smaller
ones are ratio=0.01667, rank_scale=0.234 and rank_scale=0.211. Further: init, decay
(none|plain|crs|frobenius), seed, width (0.4 is WRN-28-4) and every key of `configs/base.py`. The
published code never applied Frobenius decay to tensors: there, decay=none is what it did.
`runlocal=True` is a run of seconds on embedded data.

The whole grid of the paper is a sweep: configs/sweeps/tensor.py.

Cost: 200 epochs of WRN-28-10 are work of a day for an accelerator.
Expected result: `python -m experiments.report RUN...` makes the tables from finished runs.
"""

from ml_collections import ConfigDict

from configs import base
from experiments import arguments


def get_config(arg: str | None = None) -> ConfigDict:
    """WRN-28-10 on CIFAR-10 with low-rank convolutions, SI and FD."""
    config = base.get_config()
    config.name = "tensor"
    config.model.name, config.model.depth = "wide_resnet", 28
    config.weight_decay = 5e-4
    config.milestones, config.milestone_factor = (0.3, 0.6, 0.8), 0.2
    config.augment.cutout = 16
    _conv(config)
    kinds = {"conv": _conv, "tensor_train": _tensor_train, "tucker": _tucker}
    return arguments.apply(config, arg, presets={"kind": kinds, "runlocal": _runlocal})


def _conv(config: ConfigDict) -> None:
    config.kind, config.ratio, config.rank_scale = "conv", 0.06667, 0.0


def _tensor_train(config: ConfigDict) -> None:
    config.kind, config.ratio, config.rank_scale = "tensor_train", 0.0, 0.705


def _tucker(config: ConfigDict) -> None:
    config.kind, config.ratio, config.rank_scale = "tucker", 0.0, 0.68


def _runlocal(config: ConfigDict) -> None:
    """A narrow, shallow network, two short epochs, and digits, which need no download."""
    config.name = "tensor_local"
    config.data.name = "digits"
    config.model.depth, config.model.width = 10, 0.1
    config.epochs = 2
    config.augment.crop, config.augment.cutout = 1, 4
    config.augment.flip = False  # a mirrored digit is another sign
