"""ResNet-50 on ImageNet, dense or low rank, by the recipe it is published with: He et al. 2016
(arXiv 1512.03385) as Goyal et al. 2017 (arXiv 1706.02677, section 5.1) have settled it.

Commands:
  python -m experiments.main --config=configs/imagenet_resnet50.py
  python -m experiments.main --config=configs/imagenet_resnet50.py:batch=1024,rank_scale=0.25
  python -m experiments.main --config=configs/imagenet_resnet50.py:rank_scale=0.25,init=regular
  python -m experiments.main --config=configs/imagenet_resnet50.py:data=imagenette
  python -m experiments.main --config=configs/imagenet_resnet50.py:runlocal

Arguments: every key of `configs/base.py`, above all rank_scale (0: dense), init, decay, precision,
data_workers; and
  batch      256, 1024 or 8192 images in all, on however many devices, at the learning rate for it:
             0.1 for each 256, to which it rises from 0.1 within five epochs
`runlocal=True` is a run of a minute on embedded data, to see that everything works; its images lie
in memory, so to see photographs streamed take the smaller `data=imagenette`.

Data: imagenet2012 as TFDS prepares it; docs/large_data.md says how, what it costs, and how many
cores decode it fast enough. ImageNet's own validation split is `test`; under protocol=published, as
here, all training images are trained on, and the best epoch is found on it, too.
Recipe: 90 epochs, SGD with momentum 0.9, a tenth of the learning rate after 30, 60 and 80 epochs,
decay 1e-4 of kernels alone, random resized crops and mirror images. Left out: the last norm of
every block begins at one, and not at zero.

Cost: 90 epochs are 1.4e18 multiply-adds of the dense network: work for several accelerators.
Expected result: dense 76.4 % of the test images were published for batches from 256 to 8192; nobody
has run this config on ImageNet yet.
"""

from ml_collections import ConfigDict

from configs import base
from experiments import arguments


def get_config(arg: str | None = None) -> ConfigDict:
    """The dense ResNet-50 on ImageNet, in batches of 256."""
    config = base.get_config()
    config.name = "imagenet_resnet50"
    config.protocol = "published"
    config.model = ConfigDict({"name": "resnet50", "width": 1.0})
    config.data.name = "imagenet2012"
    config.augment.crop = 0  # Photographs are cropped as a part of their area.
    config.epochs = 90
    config.milestones = (1 / 3, 2 / 3, 8 / 9)
    config.warmup, config.warmup_epochs, config.warmup_learning_rate = "linear", 5, 0.1
    config.weight_decay = 1e-4
    config.decay_vectors = False
    config.eval_batch_size = 256
    _batch(256)(config)
    sizes = {str(size): _batch(size) for size in (256, 1024, 8192)}
    return arguments.apply(config, arg, presets={"batch": sizes, "runlocal": _runlocal})


def _batch(size: int) -> arguments.Preset:
    def preset(config: ConfigDict) -> None:
        config.batch_size, config.learning_rate = size, 0.1 * size / 256

    return preset


def _runlocal(config: ConfigDict) -> None:
    """A narrow network and two short epochs on digits, which need no download."""
    config.name = "imagenet_resnet50_local"
    config.data.name = "digits"
    config.model.width = 0.125
    config.epochs, config.batch_size = 2, 64
    config.warmup_epochs = 0
    config.augment.crop = 1
    config.augment.flip = False  # A mirrored digit is another sign.
